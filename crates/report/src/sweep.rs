//! The levels side by side, in the order of the load that was really delivered, with what a bare
//! summary does not say: how many tokens a request had and what the throughput column counts.

use crate::context::Context;
use crate::summary::LevelSummary;

/// How far the two sides of an equation may be apart before it does not hold, as a fraction.
const AGREE: f64 = 0.1;

/// One level with every number that the findings need; all finite and above zero.
#[derive(Debug, Clone)]
pub struct Point {
    /// Its place in [`Sweep::levels`].
    pub index: usize,
    load: f64,
    /// Clients asked for; `None` in an open loop.
    pub asked: Option<f64>,
    /// Requests per second of the schedule; `None` in a closed loop.
    pub scheduled: Option<f64>,
    /// Requests in flight, mean over time.
    pub delivered: f64,
    /// Requests per second.
    pub rate: f64,
    /// Output tokens per second.
    pub output: f64,
    /// Prompt and output tokens per second, where the prompt is known.
    pub total: Option<f64>,
    /// Mean TTFT, s.
    pub ttft: f64,
    /// Mean ITL, s.
    pub itl: f64,
    /// Mean E2E, s.
    pub e2e: f64,
    /// Requests of the level.
    pub requests: Option<f64>,
}

impl Point {
    /// The load, in the sweep's [`LoadUnit`].
    pub fn load(&self) -> f64 {
        self.load
    }

    /// How often the clients' places were filled: requests / clients.
    pub fn waves(&self) -> Option<f64> {
        Some(self.requests? / self.asked?)
    }
}

/// What the throughput column counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// Prompt and output tokens.
    Total,
    /// Output tokens.
    Output,
    /// Neither fits.
    Unknown,
}

/// What the levels of a sweep differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadUnit {
    /// Clients of closed loops.
    Clients,
    /// Requests per second of schedules.
    Rate,
    /// Requests in flight, to a tenth where no number was asked for: levels of both kinds.
    InFlight,
}

impl LoadUnit {
    fn of(levels: &[LevelSummary]) -> LoadUnit {
        let rate = |l: &LevelSummary| l.open_loop && positive(l.scheduled_rate).is_some();
        let clients = |l: &LevelSummary| !l.open_loop && positive(l.concurrency).is_some();
        if !levels.is_empty() && levels.iter().all(rate) {
            LoadUnit::Rate
        } else if levels.iter().all(clients) {
            LoadUnit::Clients
        } else {
            LoadUnit::InFlight
        }
    }

    /// The axis of a plot.
    pub fn axis(self) -> &'static str {
        match self {
            LoadUnit::Clients => "concurrency (clients)",
            LoadUnit::Rate => "load (requests/s)",
            LoadUnit::InFlight => "requests in flight",
        }
    }

    /// The head of a column.
    pub fn column(self) -> &'static str {
        match self {
            LoadUnit::Clients => "clients",
            LoadUnit::Rate | LoadUnit::InFlight => "level",
        }
    }

    /// "1 client", "2.5 requests/s", "3.1 in flight".
    pub fn say(self, load: f64) -> String {
        match self {
            LoadUnit::Clients => clients(load),
            LoadUnit::Rate => format!("{load} requests/s"),
            LoadUnit::InFlight => format!("{load} in flight"),
        }
    }
}

/// A sweep, ready to be judged.
#[derive(Debug, Clone)]
pub struct Sweep<'a> {
    /// Every level, as given.
    pub levels: &'a [LevelSummary],
    /// What is known beside them.
    pub context: &'a Context,
    /// The levels whose numbers are complete and the server's, by rising load: what is found is found in
    /// these. Of levels of the same load the one with the median throughput stands for all.
    pub points: Vec<Point>,
    /// The other levels of a load that was run more than once.
    pub repeats: Vec<Point>,
    /// Those at which the load generator was the limit, by rising load: to be shown, not judged.
    pub limited: Vec<Point>,
    /// What the levels differ in.
    pub unit: LoadUnit,
    /// Output tokens a request.
    pub output_tokens: Option<f64>,
    /// Prompt tokens a request.
    pub prompt_tokens: Option<f64>,
    /// What the throughput column counts.
    pub counts: Counts,
    /// Tokens of a request that the throughput column counts, by Little's law.
    pub counted_tokens: Option<f64>,
    /// Did the token counts have to be inferred from latencies and rates?
    pub inferred: bool,
}

impl<'a> Sweep<'a> {
    /// Put levels side by side.
    pub fn of(levels: &'a [LevelSummary], context: &'a Context) -> Sweep<'a> {
        let mut sweep = Sweep {
            levels,
            context,
            points: Vec::new(),
            repeats: Vec::new(),
            limited: Vec::new(),
            unit: LoadUnit::of(levels),
            output_tokens: None,
            prompt_tokens: None,
            counts: Counts::Unknown,
            counted_tokens: None,
            inferred: false,
        };
        sweep.infer_tokens();
        let mut points: Vec<Point> = (0..levels.len()).filter_map(|i| sweep.point(i)).collect();
        points.sort_by(|a, b| {
            (a.load(), a.delivered)
                .partial_cmp(&(b.load(), b.delivered))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        (sweep.limited, points) = points
            .into_iter()
            .partition(|p| levels[p.index].client_limited());
        for mut run in same_load(points) {
            run.sort_by(|a, b| a.output.total_cmp(&b.output));
            sweep.points.push(run.remove((run.len() - 1) / 2));
            sweep.repeats.extend(run);
        }
        sweep
    }

    fn infer_tokens(&mut self) {
        let known_output = median(self.levels.iter().filter_map(|l| positive(l.output_tokens)));
        let known_prompt = median(self.levels.iter().filter_map(|l| positive(l.prompt_tokens)));
        self.inferred = known_output.is_none();
        // E2E = TTFT + (n - 1) ITL, solved for n.
        self.output_tokens = known_output.or_else(|| {
            let n = median(self.levels.iter().filter_map(|l| {
                let (ttft, itl, e2e) = (
                    positive(l.ttft_ms)?,
                    positive(l.itl_ms)?,
                    positive(l.e2e_ms)?,
                );
                (e2e > ttft).then(|| (e2e - ttft) / itl + 1.0)
            }))?;
            // A count is whole where every request has the same.
            Some(if (n - n.round()).abs() < 0.02 * n {
                n.round()
            } else {
                n
            })
        });
        // Little's law: column x E2E = tokens counted in a request x requests in flight, and these
        // cannot be more than the clients. Where the clients are kept busy they are as many, so the
        // largest quotients are the tokens; what is far below belongs to levels that were not full.
        let mut quotients: Vec<f64> = self
            .levels
            .iter()
            .filter(|l| !l.open_loop)
            .filter_map(|l| {
                Some(positive(l.throughput)? * positive(l.e2e_ms)? / 1e3 / positive(l.concurrency)?)
            })
            .collect();
        quotients.sort_by(f64::total_cmp);
        let largest = quotients.last().copied().unwrap_or(0.0);
        let counted = median(quotients.into_iter().filter(|q| *q >= 0.97 * largest));
        self.counted_tokens = counted;
        self.counts = match (counted, self.output_tokens) {
            _ if self
                .levels
                .iter()
                .any(|l| l.output_tokens_per_second.is_some()) =>
            {
                Counts::Total
            }
            (Some(t), Some(n)) if (t / n - 1.0).abs() <= AGREE => Counts::Output,
            (Some(t), Some(n)) if t / n > 1.0 + AGREE => Counts::Total,
            _ => Counts::Unknown,
        };
        self.prompt_tokens = known_prompt.or(match (self.counts, counted, self.output_tokens) {
            // Whole where that changes little; the measured quotient scatters more than that.
            (Counts::Total, Some(t), Some(n)) if t - n > 20.0 => Some((t - n).round()),
            (Counts::Total, Some(t), Some(n)) => Some(t - n),
            _ => None,
        });
    }

    /// A level's numbers, `None` where one is missing or makes no sense.
    fn point(&self, index: usize) -> Option<Point> {
        let l = &self.levels[index];
        let (ttft, itl, e2e) = (
            positive(l.ttft_ms)? / 1e3,
            positive(l.itl_ms)? / 1e3,
            positive(l.e2e_ms)? / 1e3,
        );
        let per_request = match self.counts {
            Counts::Unknown => None,
            Counts::Output => self.output_tokens,
            Counts::Total => match (self.output_tokens, self.prompt_tokens) {
                (Some(n), Some(p)) => Some(n + p),
                _ => self.counted_tokens,
            },
        };
        let rate = positive(l.requests_per_second)
            .or_else(|| Some(positive(l.throughput)? / per_request?))?;
        let output =
            positive(l.output_tokens_per_second).or_else(|| Some(rate * self.output_tokens?))?;
        let asked = positive(l.concurrency).filter(|_| !l.open_loop);
        let delivered = positive(l.delivered_concurrency).unwrap_or(rate * e2e);
        let scheduled = positive(l.scheduled_rate).filter(|_| l.open_loop);
        let rate_asked = scheduled.filter(|_| self.unit == LoadUnit::Rate);
        Some(Point {
            index,
            load: rate_asked
                .or(asked)
                .unwrap_or((delivered * 10.0).round() / 10.0),
            asked,
            scheduled,
            delivered,
            rate,
            output,
            total: match self.counts {
                Counts::Total => positive(l.throughput),
                _ => None,
            },
            ttft,
            itl,
            e2e,
            requests: l
                .total
                .or(l.successful)
                .map(|n| n as f64)
                .filter(|n| *n > 0.0),
        })
    }

    /// The point of a level, whoever was its limit.
    pub fn point_of(&self, index: usize) -> Option<&Point> {
        let judged = self.points.iter().chain(&self.repeats);
        let mut all = judged.chain(&self.limited);
        all.find(|p| p.index == index)
    }

    /// Was the load generator the limit at a level above all that can be judged?
    pub fn cut_short_by_the_client(&self) -> bool {
        let highest = self.points.last().map_or(0.0, Point::load);
        self.limited.iter().any(|p| p.load() > highest)
    }

    /// A load in words: "5 clients".
    pub fn at(&self, load: f64) -> String {
        self.unit.say(load)
    }

    /// The level of a point.
    pub fn level(&self, point: &Point) -> &'a LevelSummary {
        &self.levels[point.index]
    }

    /// By how much throughput differs between runs of the same load, at most, as a share of the median; and how
    /// often a load was run. `None` where each was run once.
    pub fn scatter(&self) -> Option<(f64, usize)> {
        let runs = |p: &Point| {
            let load = p.load();
            let again = self.repeats.iter().filter(move |r| r.load() == load);
            let outputs: Vec<f64> = again.map(|r| r.output).chain([p.output]).collect();
            let low = outputs.iter().copied().fold(f64::MAX, f64::min);
            let high = outputs.iter().copied().fold(0.0, f64::max);
            ((high - low) / p.output, outputs.len())
        };
        let all = self.points.iter().map(runs);
        let worst = all.fold((0.0, 0), |a, b| (f64::max(a.0, b.0), a.1.max(b.1)));
        (worst.1 > 1).then_some(worst)
    }

    /// The point with the most output tokens a second.
    pub fn peak(&self) -> Option<&Point> {
        self.points
            .iter()
            .max_by(|a, b| a.output.total_cmp(&b.output))
    }

    /// The points of a closed loop, whose number of clients is known.
    pub fn closed(&self) -> impl Iterator<Item = (&Point, f64)> {
        self.points.iter().filter_map(|p| Some((p, p.asked?)))
    }

    /// The most requests that one level sent, for predictions of the same run once more.
    pub fn requests(&self) -> Option<f64> {
        self.points.last().and_then(|p| p.requests)
    }
}

/// Points by rising load, those of one load together. Only a load that was asked for can be the same.
fn same_load(points: Vec<Point>) -> Vec<Vec<Point>> {
    let mut all: Vec<Vec<Point>> = Vec::new();
    for point in points {
        let same = |run: &&mut Vec<Point>| {
            let asked = |p: &Point| (p.asked, p.scheduled);
            asked(&run[0]) == asked(&point) && asked(&point) != (None, None)
        };
        match all.last_mut().filter(same) {
            Some(run) => run.push(point),
            None => all.push(vec![point]),
        }
    }
    all
}

/// "1 client", "5 clients".
pub fn clients(n: f64) -> String {
    format!("{n} client{}", if n == 1.0 { "" } else { "s" })
}

/// A number that can stand in a quotient.
fn positive(v: Option<f64>) -> Option<f64> {
    v.filter(|v| v.is_finite() && *v > 0.0)
}

/// The middle value; `None` for none.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    match all.len() {
        0 => None,
        n if n % 2 == 1 => Some(all[middle]),
        _ => Some((all[middle - 1] + all[middle]) / 2.0),
    }
}
