//! What the machines say: the client's, which is the server's too where both run on one, and its GPUs.

use super::Finding;
use super::server::{most, says};
use crate::summary::LevelSummary;
use crate::sweep::{Point, Sweep};

/// Shorter levels, s, say nothing: these accounts tick seldom.
const LEAST_S: f64 = 2.0;
/// A GPU is held down for power from this share of the readings on; some of it is usual at full load.
const CAPPED: f64 = 0.2;
/// The same for heat, which should never be.
const HOT: f64 = 0.05;
/// A GPU that runs no kernel for more than a third of the time while there is work waits for its host ...
const IDLE: f64 = 0.67;
/// ... if it is the server's GPU at all.
const USED: f64 = 0.05;
/// Requests in flight from which there is always work.
const WORK: f64 = 2.0;
/// The machine's CPU is full from this share on.
const FULL: f64 = 0.9;
/// Other programs', and what the hypervisor takes.
const OTHERS: f64 = 0.1;
const STOLEN: f64 = 0.05;
/// Share of a level that its control group waits for its quota.
const QUOTA: f64 = 0.05;
/// Memory is full from this share on, or if so many bytes came back from swap.
const MEMORY: f64 = 0.95;
const SWAPPED: f64 = 16.0 * 1024.0 * 1024.0;

/// `gpu_power_cap`, `gpu_heat`, `gpu_idle`, `host_cpu_full`, `other_programs`, `cpu_stolen`, `cpu_quota`,
/// `memory_full`: each once, at the level that shows it most.
pub fn find(sweep: &Sweep<'_>) -> Vec<Finding> {
    let found = [
        gpu_power_cap(sweep),
        gpu_heat(sweep),
        gpu_idle(sweep),
        host_cpu_full(sweep),
        other_programs(sweep),
        cpu_stolen(sweep),
        cpu_quota(sweep),
        memory_full(sweep),
    ];
    found.into_iter().flatten().collect()
}

/// The level whose machine shows the most of something, whoever was its limit: a full machine is why a client is.
fn worst<'s>(
    sweep: &'s Sweep<'_>,
    of: impl Fn(&LevelSummary) -> Option<f64>,
) -> Option<(&'s LevelSummary, f64)> {
    let long = sweep
        .levels
        .iter()
        .filter(|l| l.duration_s.is_some_and(|s| s >= LEAST_S));
    let all = long.filter_map(|l| Some((l, of(l)?)));
    all.max_by(|a, b| a.1.total_cmp(&b.1))
}

fn finding(id: &str, level: &LevelSummary, value: f64, unit: &str, evidence: String) -> Finding {
    Finding {
        level: level.concurrency.filter(|_| !level.open_loop),
        ..Finding::new(id, None, value, unit, evidence)
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// "At 5 clients", "At constant-2".
fn at(level: &LevelSummary) -> String {
    match level.concurrency.filter(|_| !level.open_loop) {
        Some(clients) => format!("At {}", crate::sweep::clients(clients)),
        None => format!("At {}", level.label()),
    }
}

/// Whose the machine's CPU time was, as far as it is known.
fn whose(level: &LevelSummary) -> String {
    let host = &level.host;
    let parts = [
        ("the client", host.client),
        ("the server", host.server),
        ("other programs", host.others),
    ];
    let parts = parts
        .iter()
        .filter_map(|(who, share)| Some(format!("{who} {}", percent((*share)?))));
    let parts: Vec<String> = parts.collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!(" ({})", parts.join(", ")),
    }
}

/// The level at which the GPUs show the most of something.
fn worst_gpu<'s>(
    sweep: &'s Sweep<'_>,
    of: impl Fn(&Point, &LevelSummary) -> Option<f64>,
) -> Option<(&'s Point, f64)> {
    most(sweep, |p| {
        let level = sweep.level(p);
        level.duration_s.filter(|s| *s >= LEAST_S)?;
        of(p, level)
    })
}

/// Value = share of the readings.
fn gpu_power_cap(sweep: &Sweep<'_>) -> Option<Finding> {
    let capped = |_: &Point, l: &LevelSummary| l.gpu.power_capped.filter(|share| *share >= CAPPED);
    let (point, share) = worst_gpu(sweep, capped)?;
    let gpu = &sweep.level(point).gpu;
    let mut evidence = format!(
        "{} the driver held the GPU's clock down for the sake of power in {} of the readings",
        at(sweep.level(point)),
        percent(share)
    );
    if let (Some(power), Some(limit)) = (gpu.power_w, gpu.power_limit_w) {
        evidence += &format!(": {power:.0} W of the {limit:.0} W that are allowed");
    }
    if let Some(clock) = gpu.clock {
        evidence += &format!(", the clock at {} of its highest", percent(clock));
    }
    evidence += ".";
    Some(Finding::new("gpu_power_cap", Some(point), share, "share of the readings", evidence).advise(
        "The GPU's power is a limit: raise it if the card allows more (nvidia-smi -pl), or spend less a token with smaller weights or a smaller KV type.",
    ))
}

/// Value = share of the readings.
fn gpu_heat(sweep: &Sweep<'_>) -> Option<Finding> {
    let hot = |_: &Point, l: &LevelSummary| l.gpu.heat_throttled.filter(|share| *share >= HOT);
    let (point, share) = worst_gpu(sweep, hot)?;
    let gpu = &sweep.level(point).gpu;
    let mut evidence = format!(
        "{} the GPU's clock was held down by its heat in {} of the readings",
        at(sweep.level(point)),
        percent(share)
    );
    if let Some(degrees) = gpu.temperature_c {
        evidence += &format!(", at up to {degrees:.0} degrees Celsius");
    }
    evidence += ".";
    Some(Finding::new("gpu_heat", Some(point), share, "share of the readings", evidence).advise(
        "Cool the GPU (airflow, fans, a lower power limit): until then throughput depends on how long a level lasts.",
    ))
}

/// Value = share of the time in which the busiest GPU ran a kernel.
fn gpu_idle(sweep: &Sweep<'_>) -> Option<Finding> {
    let idle = |p: &Point, l: &LevelSummary| {
        let waits = says(sweep, p, "waiting_mean").is_some_and(|w| w >= super::server::QUEUE);
        let work = waits || p.delivered >= WORK;
        let busy = l.gpu.busiest.filter(|u| work && (USED..IDLE).contains(u))?;
        Some(1.0 - busy)
    };
    let (point, idle) = worst_gpu(sweep, idle)?;
    let level = sweep.level(point);
    let mut evidence = format!(
        "{} the busiest GPU ran a kernel in {} of the time only, while {:.1} requests were in flight",
        at(level),
        percent(1.0 - idle),
        point.delivered
    );
    if let Some(waiting) = says(sweep, point, "waiting_mean") {
        evidence += &format!(" and {waiting:.1} waited, by the server's own metrics");
    }
    evidence += ".";
    if let (Some(server), Some(cores)) = (level.host.server, level.host.cores) {
        evidence += &format!(
            " The server's processes used {:.1} of {cores:.0} cores.",
            server * cores
        );
    }
    Some(Finding::new("gpu_idle", Some(point), 1.0 - idle, "share of the time", evidence).advise(
        "The GPU waits for its host: the time between steps (scheduling, sampling, tokens to text, launching kernels) is the limit. Look at the server's CPU side first (CUDA graphs, asynchronous scheduling, a faster core); a larger batch hides it.",
    ))
}

/// Value = share of the machine's CPU time.
fn host_cpu_full(sweep: &Sweep<'_>) -> Option<Finding> {
    let (level, share) = worst(sweep, |l| l.host.cpu.filter(|cpu| *cpu >= FULL))?;
    let cores = level
        .host
        .cores
        .map_or_else(String::new, |n| format!(" of its {n:.0} cores"));
    let evidence = format!(
        "{} the client's machine was busy for {} of the time{cores}{}.",
        at(level),
        percent(share),
        whose(level)
    );
    let advice = match level.host.server {
        Some(_) => {
            "Server and client share a machine that is full: run the client on another one to see what the server can do alone; more or faster cores help a server that computes on them."
        }
        None => {
            "The client's machine is full: its numbers are not the server's alone. Run the client on a quiet machine or on one with more cores."
        }
    };
    Some(
        finding(
            "host_cpu_full",
            level,
            share,
            "share of the CPU time",
            evidence,
        )
        .advise(advice),
    )
}

/// Value = share of the machine's CPU time.
fn other_programs(sweep: &Sweep<'_>) -> Option<Finding> {
    let others = |l: &LevelSummary| l.host.others.filter(|share| *share >= OTHERS);
    let (level, share) = worst(sweep, others)?;
    let of = sweep.levels.len();
    let concerned = sweep.levels.iter().filter(|l| others(l).is_some()).count();
    let evidence = format!(
        "{} other programs took {} of the machine's CPU time{}; so it was at {concerned} of {of} levels.",
        at(level),
        percent(share),
        whose(level)
    );
    Some(finding("other_programs", level, share, "share of the CPU time", evidence).advise(
        "Repeat these levels on a machine that does nothing else before comparing them with others.",
    ))
}

/// Value = share of the machine's CPU time.
fn cpu_stolen(sweep: &Sweep<'_>) -> Option<Finding> {
    let (level, share) = worst(sweep, |l| l.host.stolen.filter(|share| *share >= STOLEN))?;
    let evidence = format!(
        "{} the hypervisor gave {} of this machine's CPU time to others.",
        at(level),
        percent(share)
    );
    Some(
        finding(
            "cpu_stolen",
            level,
            share,
            "share of the CPU time",
            evidence,
        )
        .advise(
            "Repeat these levels on a machine of its own: on this one they are not repeatable.",
        ),
    )
}

/// Value = seconds waited.
fn cpu_quota(sweep: &Sweep<'_>) -> Option<Finding> {
    let waits = |l: &LevelSummary| {
        l.host
            .throttled_s
            .filter(|s| *s >= QUOTA * l.duration_s.unwrap_or(f64::MAX))
    };
    let (level, waited) = worst(sweep, waits)?;
    let evidence = format!(
        "{} the client's control group waited {waited:.1} s for its CPU quota in a level of {:.1} s.",
        at(level),
        level.duration_s.unwrap_or(0.0)
    );
    Some(finding("cpu_quota", level, waited, "s", evidence).advise(
        "Give the container more CPU (or no CPU limit): its quota holds back the client, and the server where both share it.",
    ))
}

/// Value = share of the machine's memory in use.
fn memory_full(sweep: &Sweep<'_>) -> Option<Finding> {
    let full = |l: &LevelSummary| {
        let memory = l.host.memory?;
        let swapped = l
            .host
            .swapped_in_bytes
            .is_some_and(|bytes| bytes >= SWAPPED);
        (memory >= MEMORY || swapped).then_some(memory)
    };
    let (level, share) = worst(sweep, full)?;
    let mut evidence = format!(
        "{} {} of the machine's memory was in use",
        at(level),
        percent(share)
    );
    if let Some(bytes) = level
        .host
        .swapped_in_bytes
        .filter(|bytes| *bytes >= SWAPPED)
    {
        evidence += &format!(
            " and {:.0} MiB were read back from swap",
            bytes / 1024.0 / 1024.0
        );
    }
    evidence += ".";
    Some(finding("memory_full", level, share, "share of the memory", evidence).advise(
        "Give the machine more memory or run less on it (a smaller KV cache, a quantised model): what is swapped out answers a thousand times slower.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;

    fn level(clients: f64) -> LevelSummary {
        let mut level = LevelSummary {
            concurrency: Some(clients),
            requests_per_second: Some(10.0),
            output_tokens_per_second: Some(640.0),
            delivered_concurrency: Some(clients),
            duration_s: Some(20.0),
            ttft_ms: Some(1500.0),
            itl_ms: Some(10.0),
            e2e_ms: Some(2130.0),
            ..LevelSummary::default()
        };
        // A machine at ease.
        level.host.cores = Some(16.0);
        level.host.cpu = Some(0.3);
        level.host.client = Some(0.02);
        level.host.server = Some(0.2);
        level.host.others = Some(0.03);
        level.host.stolen = Some(0.0);
        level.host.memory = Some(0.5);
        level.host.swapped_in_bytes = Some(0.0);
        level.host.throttled_s = Some(0.0);
        level.gpu.devices = Some(1.0);
        level.gpu.busiest = Some(0.98);
        level.gpu.power_w = Some(500.0);
        level.gpu.power_limit_w = Some(700.0);
        level.gpu.power_capped = Some(0.05);
        level.gpu.heat_throttled = Some(0.0);
        level
    }

    fn found(levels: &[LevelSummary]) -> Vec<Finding> {
        let context = Context::default();
        find(&Sweep::of(levels, &context))
    }

    #[test]
    fn a_machine_at_ease_and_one_that_is_not_known_show_nothing() {
        assert!(found(&[level(1.0), level(8.0)]).is_empty());
        let mut silent = level(8.0);
        silent.host = Default::default();
        silent.gpu = Default::default();
        assert!(found(&[silent]).is_empty());
    }

    #[test]
    fn each_is_found_where_it_is_worst_and_only_it() {
        type Change = fn(&mut LevelSummary, f64);
        // The id, how a level is changed, two values of which the second is worse, one that is nothing, and words.
        let cases: [(&str, Change, [f64; 3], &str); 8] = [
            (
                "gpu_power_cap",
                |l, v| l.gpu.power_capped = Some(v),
                [0.3, 0.9, 0.1],
                "500 W of the 700 W",
            ),
            (
                "gpu_heat",
                |l, v| l.gpu.heat_throttled = Some(v),
                [0.1, 0.4, 0.01],
                "heat in 40 %",
            ),
            (
                "gpu_idle",
                |l, v| l.gpu.busiest = Some(v),
                [0.6, 0.25, 0.9],
                "25 % of the time only",
            ),
            (
                "host_cpu_full",
                |l, v| l.host.cpu = Some(v),
                [0.92, 0.99, 0.8],
                "the server 20 %",
            ),
            (
                "other_programs",
                |l, v| l.host.others = Some(v),
                [0.2, 0.5, 0.09],
                "at 2 of 3 levels",
            ),
            (
                "cpu_stolen",
                |l, v| l.host.stolen = Some(v),
                [0.06, 0.3, 0.04],
                "30 %",
            ),
            (
                "cpu_quota",
                |l, v| l.host.throttled_s = Some(v),
                [2.0, 7.0, 0.5],
                "7.0 s for its CPU quota",
            ),
            (
                "memory_full",
                |l, v| l.host.memory = Some(v),
                [0.96, 0.99, 0.9],
                "99 %",
            ),
        ];
        for (id, change, [bad, worse, fine], words) in cases {
            let with = |clients, value| {
                let mut level = level(clients);
                change(&mut level, value);
                level
            };
            let all = found(&[level(1.0), with(4.0, bad), with(8.0, worse)]);
            let ids: Vec<(&str, Option<f64>)> =
                all.iter().map(|f| (f.id.as_str(), f.level)).collect();
            assert_eq!(ids, [(id, Some(8.0))]);
            assert_eq!(all[0].value, worse, "{id}");
            assert!(all[0].evidence.contains(words), "{}", all[0].evidence);
            assert!(found(&[with(4.0, fine)]).is_empty(), "{id}");
            // Too short to tell.
            let mut short = with(8.0, worse);
            short.duration_s = Some(1.0);
            assert!(found(&[short]).is_empty(), "{id}");
        }
    }

    #[test]
    fn a_gpu_without_work_or_without_the_server_is_no_finding() {
        let mut lonely = level(1.0);
        lonely.gpu.busiest = Some(0.4);
        assert!(found(std::slice::from_ref(&lonely)).is_empty());
        // One client, but the server says that requests wait.
        lonely.server.insert("waiting_mean".into(), 3.0);
        let all = found(&[lonely]);
        assert!(
            all[0].id == "gpu_idle" && all[0].evidence.contains("3.0 waited"),
            "{all:?}"
        );
        let mut elsewhere = level(8.0);
        elsewhere.gpu.busiest = Some(0.0);
        assert!(found(&[elsewhere]).is_empty());
    }

    #[test]
    fn swapping_and_a_client_at_its_limit() {
        let mut swaps = level(8.0);
        swaps.host.swapped_in_bytes = Some(64.0 * 1024.0 * 1024.0);
        let all = found(&[swaps]);
        assert!(
            all[0].id == "memory_full" && all[0].evidence.contains("64 MiB"),
            "{all:?}"
        );
        // A full machine is why the client was the limit; what its GPUs did is not judged.
        let mut limited = level(8.0);
        limited.client_limit = Some("it was late".into());
        limited.host.cpu = Some(1.0);
        limited.host.server = None;
        limited.gpu.busiest = Some(0.2);
        let all = found(&[limited]);
        assert_eq!(all.len(), 1);
        assert!(
            all[0].id == "host_cpu_full" && all[0].advice.starts_with("The client's machine"),
            "{all:?}"
        );
    }
}
