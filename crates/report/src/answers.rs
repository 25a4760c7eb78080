//! The three questions of a reader, answered in words and numbers: how does this setup perform, where is
//! the bottleneck, what to change next and what that will gain. Markdown, HTML and the terminal say the
//! same.

use crate::findings::{Finding, first};
use crate::plots::duration;
use crate::sweep::{Point, Sweep};

/// The text of a report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answers {
    /// The answer to all three in one sentence each.
    pub headline: Vec<String>,
    /// How does this serving setup perform?
    pub performance: Vec<String>,
    /// Where is the bottleneck?
    pub bottleneck: Vec<String>,
    /// What to change next, and what that will gain.
    pub next: Vec<String>,
    /// What the data cannot decide, and what would.
    pub unsure: Vec<String>,
}

/// Findings that say what limits, in the order of what they cost.
const LIMITS: [&str; 7] = [
    "collapse",
    "more_places",
    "step_time_jump",
    "plateau",
    "admission_queue",
    "server_queue",
    "kv_cache_full",
];

/// Findings that say what the machines lack.
const MACHINES: [&str; 6] = [
    "memory_full",
    "cpu_quota",
    "gpu_idle",
    "gpu_heat",
    "gpu_power_cap",
    "host_cpu_full",
];

/// Findings that say that others were on the machine too.
const DISTURBED: [&str; 2] = ["cpu_stolen", "other_programs"];

/// What to do where the client's limit hides the server's.
const NEXT_CLIENT: &str = "Run these levels again with a load generator that is not the limit: on another machine, with more cores, or on several machines at once.";

/// Answer from a sweep and what was found in it.
pub fn of(sweep: &Sweep<'_>, findings: &[Finding]) -> Answers {
    let mut a = Answers::default();
    a.performance
        .extend(sweep.context.conclusions.iter().cloned());
    let (Some(peak), Some(low), Some(high)) =
        (sweep.peak(), sweep.points.first(), sweep.points.last())
    else {
        if !sweep.limited.is_empty() {
            a.headline.push("The load generator was the limit at every level, so nothing can be said about the server.".into());
            a.next.push(NEXT_CLIENT.into());
            a.headline.push(format!("Next: {NEXT_CLIENT}"));
            let limited = findings.iter().filter(|f| f.id == "client_limited");
            a.unsure.extend(limited.map(|f| f.evidence.clone()));
            return a;
        }
        a.headline
            .push("No level has complete numbers, so nothing can be said about the server.".into());
        a.performance.push("Throughput, TTFT, ITL and E2E are needed for at least one level; see the table for what there is.".into());
        return a;
    };
    let get = |id: &str| first(findings, id);
    a.performance.push(format!(
        "{}: at {} a request takes {} (TTFT {}, then a token every {}), and the server makes {:.0} output tok/s.",
        if low.asked == Some(1.0) { "Alone on the server" } else { "At the lightest load" },
        sweep.at(low.load()),
        duration(low.e2e * 1e3),
        duration(low.ttft * 1e3),
        duration(low.itl * 1e3),
        low.output,
    ));
    for id in ["peak", "linear_scaling"] {
        a.performance.extend(get(id).map(|f| f.evidence.clone()));
    }
    if high.index != peak.index {
        a.performance.push(format!(
            "At {}: {:.0} output tok/s, TTFT {}, E2E {}.",
            sweep.at(high.load()),
            high.output,
            duration(high.ttft * 1e3),
            duration(high.e2e * 1e3),
        ));
    }
    a.performance
        .extend(get("throughput_is_total_tokens").map(|f| format!("{} {}", f.evidence, f.advice)));

    for id in LIMITS {
        a.bottleneck.extend(get(id).map(|f| f.evidence.clone()));
    }
    for id in MACHINES {
        a.bottleneck.extend(get(id).map(|f| f.evidence.clone()));
    }
    a.bottleneck.extend(machines(sweep, peak));
    let decode = 1.0 - peak.ttft / peak.e2e;
    a.bottleneck.push(format!(
        "At the peak {:.0} % of a request's time is decoding and {:.0} % is the wait for the first token (queue and prompt).",
        decode * 100.0, (1.0 - decode) * 100.0,
    ));
    let limited: Vec<&Finding> = findings
        .iter()
        .filter(|f| f.id == "client_limited")
        .collect();
    if let Some(f) = limited.first() {
        a.bottleneck.insert(0, format!("The load generator itself was the limit at {} level(s), so what happens there is not the server's doing and is not judged. {}", limited.len(), f.evidence));
    }
    let known = LIMITS.iter().any(|id| get(id).is_some());
    if !known {
        let ends = match sweep.cut_short_by_the_client() {
            true => "above that the load generator was the limit, so the server's is not known",
            false => "the sweep ends before the limit",
        };
        a.bottleneck.push(format!(
            "Throughput neither falls nor flattens up to {} ({:.0} output tok/s): {ends}.",
            sweep.at(high.load()),
            high.output,
        ));
    }

    // Two ways to see one queue have one advice.
    let queue = match get("admission_queue") {
        Some(_) => "admission_queue",
        None => "server_queue",
    };
    let causes = [
        "memory_full",
        "cpu_quota",
        "cap_admission",
        "more_places",
        "step_time_jump",
        "kv_cache_full",
        "gpu_idle",
        "step_overhead",
        "plateau",
        queue,
        "gpu_heat",
        "gpu_power_cap",
        "host_cpu_full",
    ];
    for id in causes {
        // What the cap hides is not known to be the most that there is.
        if get("more_places").is_some() && ["plateau", queue].contains(&id) {
            continue;
        }
        let Some(f) = get(id) else { continue };
        let gains: Vec<String> = f.predicted.iter().map(gain).collect();
        let gains = if gains.is_empty() {
            String::new()
        } else {
            format!(" Expected: {}.", gains.join("; "))
        };
        a.next.push(format!("{}{gains}", f.advice));
    }
    if sweep.cut_short_by_the_client() {
        a.next.insert(
            0,
            format!(
                "Above {}: {}{}",
                sweep.at(high.load()),
                NEXT_CLIENT[..1].to_lowercase(),
                &NEXT_CLIENT[1..]
            ),
        );
    }
    if a.next.is_empty() {
        a.next.push(format!("Add levels above {} until throughput stops growing; only then is there a limit to work on.", sweep.at(high.load())));
    }

    for id in DISTURBED {
        a.next.extend(get(id).map(|f| f.advice.clone()));
    }

    a.unsure = unsure(sweep, findings);
    a.headline = headline(sweep, findings, &a);
    a
}

/// What the server and its machine were busy with at the peak, as far as they tell.
fn machines(sweep: &Sweep<'_>, peak: &Point) -> Option<String> {
    let level = sweep.level(peak);
    let says = |name: &str| level.server.get(name).copied().filter(|v| v.is_finite());
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let mut parts = Vec::new();
    if let (Some(running), Some(waiting)) = (says("running_mean"), says("waiting_mean")) {
        parts.push(format!(
            "{running:.1} requests running and {waiting:.1} waiting"
        ));
    }
    parts.extend(says("kv_cache_usage_max").map(|u| format!("KV cache up to {} full", percent(u))));
    if let Some(utilization) = level.gpu.utilization {
        let power = level
            .gpu
            .power_w
            .map_or_else(String::new, |w| format!(" at {w:.0} W"));
        parts.push(format!(
            "GPU busy {} of the time{power}",
            percent(utilization)
        ));
    }
    if let Some(cpu) = level.host.cpu {
        let server = level
            .host
            .server
            .map_or_else(String::new, |s| format!(", {} the server's", percent(s)));
        parts.push(format!(
            "CPU of the client's machine {} busy{server}",
            percent(cpu)
        ));
    }
    (!parts.is_empty()).then(|| format!("At the peak: {}.", parts.join("; ")))
}

fn gain(p: &crate::findings::Prediction) -> String {
    let number = |v: f64| {
        if v >= 100.0 {
            format!("{v:.0}")
        } else {
            format!("{v:.1}")
        }
    };
    format!(
        "{}, {} {} instead of {} {}",
        p.scenario,
        p.metric,
        number(p.after),
        number(p.before),
        p.unit
    )
}

fn unsure(sweep: &Sweep<'_>, findings: &[Finding]) -> Vec<String> {
    let mut out = Vec::new();
    out.extend(sweep.context.drift.clone());
    if let Some(f) = first(findings, "collapse") {
        out.push(f.advice.clone());
    }
    let levels = |id: &str| {
        let all: Vec<String> = findings
            .iter()
            .filter(|f| f.id == id)
            .filter_map(|f| f.level)
            .map(|l| format!("{l}"))
            .collect();
        (!all.is_empty()).then(|| all.join(", "))
    };
    if let Some(which) = levels("too_few_requests") {
        out.push(format!("Levels {which} have fewer than {} waves of requests: their numbers are start and drain more than steady load. Send more requests there.", powerband_bench::metrics::STEADY_WAVES));
    }
    if let Some(which) = levels("partial_last_wave") {
        out.push(format!("Levels {which} delivered less concurrency than asked because the last wave was not full; compare them by delivered concurrency."));
    }
    if let Some(which) = levels("load_not_delivered") {
        out.push(format!("Levels {which} delivered less concurrency than asked for a reason that the number of requests does not explain."));
    }
    for id in ["errors", "incomplete"] {
        out.extend(
            findings
                .iter()
                .filter(|f| f.id == id)
                .map(|f| f.evidence.clone()),
        );
    }
    for id in DISTURBED {
        out.extend(first(findings, id).map(|f| f.evidence.clone()));
    }
    if let Some(f) = first(findings, "prefix_cache_hits") {
        out.push(format!("{} {}", f.evidence, f.advice));
    }
    if sweep.inferred {
        out.push("Token counts are inferred from latencies and rates, since a summary does not carry them.".into());
    }
    let left_out =
        sweep.levels.len() - sweep.points.len() - sweep.repeats.len() - sweep.limited.len();
    if left_out > 0 {
        out.push(format!(
            "{left_out} level(s) lack a number and are in the table only."
        ));
    }
    let mut warnings: Vec<&String> = sweep.levels.iter().flat_map(|l| &l.warnings).collect();
    warnings.sort();
    warnings.dedup();
    out.extend(warnings.into_iter().take(8).cloned());
    if sweep.levels.iter().all(|l| l.client_limit.is_none()) {
        out.push("Whether the load generator was a limit is not known from a summary.".into());
    }
    out.push(match sweep.scatter() {
        None => "Each level was run once: repeat the levels around the peak (--repeats 3) to know how far they scatter.".into(),
        Some((scatter, times)) => format!(
            "Levels were run up to {times} times; the output of the same level differs by up to {:.1} %. The run with the median output stands for its level.",
            scatter * 100.0
        ),
    });
    out
}

fn headline(sweep: &Sweep<'_>, findings: &[Finding], answers: &Answers) -> Vec<String> {
    let Some(peak) = sweep.peak() else {
        return Vec::new();
    };
    let get = |id: &str| first(findings, id);
    let plateau = get("plateau").and_then(|p| {
        let start = sweep.points.iter().find(|q| Some(q.load()) == p.level)?;
        Some((p.value, start))
    });
    let mut out = vec![match plateau {
        Some((output, start)) => format!(
            "Best range: {} and more, {output:.0} output tok/s, TTFT {} at its beginning.",
            sweep.at(start.load()),
            duration(start.ttft * 1e3)
        ),
        None => format!(
            "Best level: {}, {:.0} output tok/s, TTFT {}.",
            sweep.at(peak.load()),
            peak.output,
            duration(peak.ttft * 1e3)
        ),
    }];
    let queue = get("admission_queue").or(get("server_queue"));
    out.push(match (get("collapse"), get("plateau"), queue) {
        (Some(c), _, _) => format!("Bottleneck: throughput collapses by {:.0} % at {}.", c.value * 100.0, sweep.at(c.level.unwrap_or(0.0))),
        _ if get("more_places").is_some() => {
            let places = queue.map_or(0.0, |q| q.value);
            format!("Bottleneck: {places:.0} requests run at once, and throughput would grow with more.")
        }
        (_, Some(p), Some(q)) => format!("Bottleneck: capacity of {:.0} output tok/s, reached at {}; requests queue for {:.0} places.", p.value, sweep.at(p.level.unwrap_or(0.0)), q.value),
        (_, Some(p), None) => format!("Bottleneck: capacity of {:.0} output tok/s, reached at {}.", p.value, sweep.at(p.level.unwrap_or(0.0))),
        (_, _, Some(q)) => format!("Bottleneck: requests queue for {:.0} places.", q.value),
        _ if get("kv_cache_full").is_some() => {
            let at = get("kv_cache_full").and_then(|f| f.level).unwrap_or(0.0);
            format!("Bottleneck: the KV cache is full at {}.", sweep.at(at))
        }
        _ if get("gpu_idle").is_some() => {
            let busy = get("gpu_idle").map_or(0.0, |f| f.value * 100.0);
            format!("Bottleneck: the server's host, not its GPU, which works {busy:.0} % of the time only.")
        }
        _ if sweep.points.last().is_some_and(|last| std::ptr::eq(last, peak)) => {
            if sweep.cut_short_by_the_client() {
                "Bottleneck: not reached; above this the load generator was the limit.".into()
            } else {
                "Bottleneck: not reached; throughput still grows at the highest level.".into()
            }
        }
        _ => "Bottleneck: none stands out; see what remains unsure.".into(),
    });
    out.extend(sweep.context.conclusions.iter().cloned());
    out.extend(
        sweep
            .context
            .drift
            .iter()
            .filter(|told| told.starts_with("Caution"))
            .cloned(),
    );
    let limited: Vec<String> = sweep
        .levels
        .iter()
        .filter(|l| l.client_limited())
        .map(|l| l.label())
        .collect();
    if !limited.is_empty() {
        out.push(format!(
            "Caution: the load generator was the limit at {}; nothing above is about these levels.",
            limited.join(", ")
        ));
    }
    let first_step = answers
        .next
        .first()
        .map(|n| n.split(". ").next().unwrap_or(n).trim_end_matches('.'));
    out.extend(first_step.map(|n| format!("Next: {n}.")));
    out
}
