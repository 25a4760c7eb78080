//! Many readings of the machine make one level's numbers.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use super::proc::{
    CpuTimes, Process, cpu_stat_files, memory, processes, swapped_in_pages, throttled,
};
use super::{HostSample, HostUse, Place};
use crate::beside::Reader;
use crate::over_time::{Gauge, Samples, within};
use crate::record::LevelResult;

/// Readings closer than this, s, are too few ticks apart for a share.
const LEAST_STEP_S: f64 = 0.25;
/// Shorter levels, s, are not judged: the clocks of these accounts tick too seldom, and any machine has its moments.
const LEAST_S: f64 = 3.0;
/// Share of the machine from which other programs are worth a word.
const OTHERS: f64 = 0.1;
/// The same of what the hypervisor takes.
const STOLEN: f64 = 0.05;
/// Share of a level that its control group waits for its quota.
const THROTTLED: f64 = 0.01;
/// Bytes read back from swap.
const SWAPPED: u64 = 16 << 20;

/// The machine's accounts at one moment.
#[derive(Debug, Default)]
struct Counters {
    at_s: f64,
    cpu: CpuTimes,
    /// CPU time of our own process, s.
    own_s: f64,
    swapped_in_pages: Option<u64>,
    throttled: Option<(u64, f64)>,
    processes: HashMap<u32, Process>,
}

/// The readings of a level.
#[derive(Debug)]
pub(crate) struct Host {
    place: Place,
    cgroup: Vec<PathBuf>,
    first: Option<Counters>,
    last: Option<Counters>,
    /// The reading that the next share counts from.
    before: Option<(f64, CpuTimes)>,
    busiest: Gauge,
    memory_used: Gauge,
    memory_total: Option<u64>,
    samples: Samples<HostSample>,
}

impl Host {
    pub fn new(place: Place) -> Host {
        Host {
            cgroup: cpu_stat_files(&text("/proc/self/cgroup").unwrap_or_default()),
            place,
            first: None,
            last: None,
            before: None,
            busiest: Gauge::default(),
            memory_used: Gauge::default(),
            memory_total: None,
            samples: Samples::default(),
        }
    }

    fn counters(&self, at_s: f64, cpu: CpuTimes) -> Counters {
        let waits = self
            .cgroup
            .iter()
            .filter_map(|file| throttled(&fs::read_to_string(file).ok()?));
        Counters {
            at_s,
            cpu,
            own_s: own_cpu_s(),
            swapped_in_pages: text("/proc/vmstat").as_deref().and_then(swapped_in_pages),
            throttled: waits.reduce(|a, b| (a.0.saturating_add(b.0), a.1 + b.1)),
            processes: if self.place.here() {
                processes()
            } else {
                HashMap::new()
            },
        }
    }

    /// The level's numbers, put beside the client's; the level's first send was `start_s` after the first reading.
    pub fn store(&self, level: &mut LevelResult, start_s: f64) {
        let Some(mut host) = self.host(level) else {
            return;
        };
        host.samples = within(self.samples.kept(), start_s, level.duration_s, |s| {
            &mut s.at_s
        });
        if level.duration_s >= LEAST_S {
            level.warnings.extend(warnings(&host, level.duration_s));
        }
        level.host = Some(host);
    }

    fn host(&self, level: &LevelResult) -> Option<HostUse> {
        let (first, last) = (self.first.as_ref()?, self.last.as_ref()?);
        let cpu = last.cpu.since(&first.cpu);
        let total = Some(cpu.total()).filter(|t| *t > 0.0)?;
        let core_s = (last.at_s - first.at_s) * cpu.cores as f64;
        let of_seconds = |s: f64| (s / core_s.max(1e-9)).clamp(0.0, 1.0);
        let own = of_seconds(last.own_s - first.own_s);
        let ticks = self.place.server(&last.processes).map(|server| {
            let me = std::process::id();
            let others = server.iter().filter(|pid| **pid != me);
            let ticks: u64 = others.map(|pid| grown(first, last, *pid)).sum();
            (ticks, server.contains(&me))
        });
        // In one process with the server the client is its threads.
        let (client, server) = match ticks {
            Some((ticks, in_us)) => {
                let others = (ticks as f64 / total).min(1.0);
                let client = of_seconds(level.client.cpu_share * level.duration_s).min(own);
                match in_us {
                    true => (client, Some(own - client + others)),
                    false => (own, Some(others)),
                }
            }
            None => (own, None),
        };
        let known = server.is_some() || !self.place.here();
        let programs = cpu.programs as f64 / total;
        Some(HostUse {
            cores: cpu.cores,
            cpu: cpu.busy() / total,
            cpu_max: self.busiest.max().unwrap_or(cpu.busy() / total),
            client,
            server,
            others: known.then(|| (programs - client - server.unwrap_or(0.0)).max(0.0)),
            stolen: cpu.stolen as f64 / total,
            server_here: self.place.here(),
            memory_total_bytes: self.memory_total,
            memory_used_max_bytes: self.memory_used.max().map(|bytes| bytes as u64),
            swapped_in_bytes: (last.swapped_in_pages.zip(first.swapped_in_pages))
                .map(|(last, first)| last.saturating_sub(first).saturating_mul(page_bytes())),
            throttled: (last.throttled.zip(first.throttled)).map(|(l, f)| l.0.saturating_sub(f.0)),
            throttled_s: (last.throttled.zip(first.throttled)).map(|(l, f)| (l.1 - f.1).max(0.0)),
            samples: Vec::new(),
        })
    }
}

impl Reader for Host {
    fn read(&mut self, at_s: f64, last: bool) {
        let Some(cpu) = text("/proc/stat").as_deref().and_then(CpuTimes::of) else {
            return;
        };
        let memory = text("/proc/meminfo").as_deref().and_then(memory);
        self.memory_total = memory.map(|(total, _)| total).or(self.memory_total);
        self.memory_used.add(memory.map(|(_, used)| used as f64));
        match self.before {
            None => self.before = Some((at_s, cpu)),
            Some((before_s, before)) if at_s - before_s >= LEAST_STEP_S => {
                let step = cpu.since(&before);
                let share = Some(step.busy() / step.total()).filter(|s| s.is_finite());
                self.busiest.add(share);
                if let Some(cpu) = share {
                    let memory_used_bytes = memory.map(|(_, used)| used);
                    self.samples.push(HostSample {
                        at_s,
                        cpu,
                        memory_used_bytes,
                    });
                }
                self.before = Some((at_s, cpu));
            }
            Some(_) => {}
        }
        if self.first.is_none() {
            self.first = Some(self.counters(at_s, cpu));
        } else if last {
            self.last = Some(self.counters(at_s, cpu));
        }
    }
}

/// CPU time of a process between the two moments, ticks; of one that was born since then all of it.
fn grown(first: &Counters, last: &Counters, pid: u32) -> u64 {
    let Some(now) = last.processes.get(&pid) else {
        return 0;
    };
    let before = first.processes.get(&pid).filter(|p| p.began == now.began);
    now.ticks.saturating_sub(before.map_or(0, |p| p.ticks))
}

/// What a reader of the level must know.
fn warnings(host: &HostUse, duration_s: f64) -> Vec<String> {
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let mut found = Vec::new();
    if let Some(others) = host.others.filter(|others| *others >= OTHERS) {
        let known = if host.server.is_some() {
            "the client and the server"
        } else {
            "the client"
        };
        found.push(format!(
            "other programs than {known} took {} of this machine's CPU time ({} in use): the numbers may be worse than on a quiet machine",
            percent(others),
            percent(host.cpu)
        ));
    }
    if host.stolen >= STOLEN {
        found.push(format!(
            "the hypervisor gave {} of this machine's CPU time to others: the numbers may be worse than on a machine of its own",
            percent(host.stolen)
        ));
    }
    if let (Some(times), Some(waited)) = (host.throttled, host.throttled_s)
        && waited >= THROTTLED * duration_s
    {
        found.push(format!(
            "the client's control group used up its CPU quota {times} times and waited {waited:.1} s in all: give it more CPU"
        ));
    }
    if let Some(bytes) = host.swapped_in_bytes.filter(|bytes| *bytes >= SWAPPED) {
        found.push(format!(
            "this machine read {} MiB back from swap: its memory is too small for what runs on it",
            bytes >> 20
        ));
    }
    found
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// CPU time of our own process so far, s.
fn own_cpu_s() -> f64 {
    // SAFETY: all-zero bytes are a valid rusage, which holds numbers only. The call writes one and keeps no
    // pointer to it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::getrusage(libc::RUSAGE_SELF, &mut usage) != 0 {
            return 0.0;
        }
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn page_bytes() -> u64 {
    // SAFETY: the call takes a number and gives one.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Strategy;

    fn elsewhere() -> Place {
        Place::of(&["192.0.2.1:80".parse().unwrap()])
    }

    fn counters(at_s: f64, programs: u64, idle: u64) -> Counters {
        let cpu = CpuTimes {
            programs,
            interrupts: 0,
            idle,
            stolen: 0,
            cores: 2,
        };
        Counters {
            at_s,
            cpu,
            own_s: 100.0 + at_s * 0.2,
            swapped_in_pages: Some(5),
            throttled: Some((1, 1.0)),
            processes: HashMap::new(),
        }
    }

    fn level() -> LevelResult {
        LevelResult {
            duration_s: 10.0,
            ..LevelResult::empty(Strategy::Synchronous)
        }
    }

    #[test]
    fn shares_by_hand() {
        let mut host = Host::new(elsewhere());
        // Ten seconds of two cores are 2,000 ticks: 1,000 of programs, 200 stolen; ours are 2 s of the 20.
        host.first = Some(counters(0.0, 5_000, 9_000));
        let mut last = counters(10.0, 6_000, 9_800);
        last.cpu.stolen = 200;
        last.swapped_in_pages = Some(5 + (64 << 20) / page_bytes());
        last.throttled = Some((4, 3.0));
        host.last = Some(last);
        let mut level = level();
        host.store(&mut level, 0.0);
        let seen = level.host.clone().unwrap();
        assert_eq!((seen.cores, seen.cpu, seen.stolen), (2, 0.5, 0.1));
        assert!((seen.client - 0.1).abs() < 1e-9 && (seen.others.unwrap() - 0.4).abs() < 1e-9);
        assert_eq!((seen.server, seen.server_here), (None, false));
        assert_eq!((seen.throttled, seen.throttled_s), (Some(3), Some(2.0)));
        assert_eq!(seen.swapped_in_bytes, Some(64 << 20));
        assert_eq!(level.warnings.len(), 4, "{:?}", level.warnings);
        assert!(
            level.warnings[0].contains("the client took 40 %"),
            "{:?}",
            level.warnings
        );
        assert!(level.warnings[1].contains("10 %") && level.warnings[2].contains("3 times"));
        assert!(level.warnings[3].contains("64 MiB"));
    }

    #[test]
    fn a_quiet_machine_and_a_short_level_are_not_warned_of() {
        let stored = |programs: u64, duration_s: f64| {
            let mut host = Host::new(elsewhere());
            host.first = Some(counters(0.0, 0, 0));
            host.last = Some(counters(10.0, programs, 2_000 - programs));
            let mut level = LevelResult {
                duration_s,
                ..level()
            };
            host.store(&mut level, 0.0);
            level.warnings
        };
        assert!(stored(300, 10.0).is_empty());
        assert_eq!(stored(500, 10.0).len(), 1);
        assert!(stored(2_000, 1.0).is_empty());
    }

    #[test]
    fn where_nothing_was_read_nothing_is_known() {
        let mut level = level();
        Host::new(elsewhere()).store(&mut level, 0.0);
        assert_eq!(level.host, None);
        // A sandbox whose accounts stand still.
        let mut still = Host::new(elsewhere());
        still.first = Some(counters(0.0, 7, 7));
        still.last = Some(counters(10.0, 7, 7));
        still.store(&mut level, 0.0);
        assert_eq!(level.host, None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_and_a_server_in_this_process() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut host = Host::new(Place::of(&[socket.local_addr().unwrap()]));
        let begun = std::time::Instant::now();
        let now_s = || begun.elapsed().as_secs_f64();
        let first_s = now_s();
        host.read(first_s, false);
        // CPU time, not the clock's: on a busy machine this thread waits for most of it.
        let (burnt_s, spent_s) = (0.2, own_cpu_s());
        let mut x = 1u64;
        while own_cpu_s() < spent_s + burnt_s || now_s() < first_s + 0.4 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        let last_s = now_s();
        host.read(last_s, true);
        let mut level = level();
        host.store(&mut level, 0.0);
        let seen = level.host.unwrap();
        // Our loop is not of the client's threads, so it is the server's.
        assert!(seen.server_here && seen.client == 0.0);
        let server_s = seen.server.unwrap() * seen.cores as f64 * (last_s - first_s);
        assert!(server_s > 0.99 * burnt_s, "{server_s} s: {seen:?}");
        assert!(seen.cpu > 0.0 && seen.cpu <= 1.0 && seen.others.is_some());
        assert!(seen.memory_used_max_bytes.unwrap() < seen.memory_total_bytes.unwrap());
        assert_eq!(seen.samples.len(), 1);
    }
}
