//! Linux's accounts of the machine, of its processes and of our control group, as texts and as numbers.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Processes that are looked at; a machine with more has told enough.
const MOST_PROCESSES: usize = 1 << 16;
/// Open files of one process that are looked at.
const MOST_FILES: usize = 1 << 16;

/// CPU time of the whole machine since its start, in ticks of all its cores.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct CpuTimes {
    /// Programs, their system calls included.
    pub programs: u64,
    /// Interrupts, the network's among them: nobody's own.
    pub interrupts: u64,
    pub idle: u64,
    pub stolen: u64,
    pub cores: u64,
}

impl CpuTimes {
    /// From the text of `/proc/stat`.
    pub fn of(stat: &str) -> Option<CpuTimes> {
        let mut lines = stat.lines().take_while(|l| l.starts_with("cpu"));
        let all: Vec<u64> = numbers(lines.next()?.strip_prefix("cpu ")?);
        let at = |i: usize| all.get(i).copied().unwrap_or(0);
        let times = CpuTimes {
            programs: at(0).saturating_add(at(1)).saturating_add(at(2)),
            idle: at(3).saturating_add(at(4)),
            interrupts: at(5).saturating_add(at(6)),
            stolen: at(7),
            cores: lines.count() as u64,
        };
        (all.len() >= 4 && times.cores > 0).then_some(times)
    }

    /// The time between two readings.
    pub fn since(&self, before: &CpuTimes) -> CpuTimes {
        CpuTimes {
            programs: self.programs.saturating_sub(before.programs),
            interrupts: self.interrupts.saturating_sub(before.interrupts),
            idle: self.idle.saturating_sub(before.idle),
            stolen: self.stolen.saturating_sub(before.stolen),
            cores: self.cores,
        }
    }

    pub fn total(&self) -> f64 {
        self.busy() + self.idle as f64 + self.stolen as f64
    }

    pub fn busy(&self) -> f64 {
        self.programs as f64 + self.interrupts as f64
    }
}

/// Memory of the machine, from the text of `/proc/meminfo`: all of it and what is in use, bytes.
pub(super) fn memory(meminfo: &str) -> Option<(u64, u64)> {
    let kb = |name: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name))?;
        numbers(line.strip_prefix(':')?).first().copied()
    };
    let (total, free) = (kb("MemTotal")?, kb("MemAvailable")?);
    let bytes = |kb: u64| kb.saturating_mul(1024);
    Some((bytes(total), bytes(total.saturating_sub(free))))
}

/// Pages read back from swap since the machine's start, from the text of `/proc/vmstat`.
pub(super) fn swapped_in_pages(vmstat: &str) -> Option<u64> {
    let line = vmstat.lines().find_map(|l| l.strip_prefix("pswpin "))?;
    line.trim().parse().ok()
}

/// How often a control group had to wait for its CPU quota, and how long in all, s: from its `cpu.stat`.
pub(super) fn throttled(cpu_stat: &str) -> Option<(u64, f64)> {
    let of = |name: &str| {
        let line = cpu_stat.lines().find_map(|l| l.strip_prefix(name))?;
        line.strip_prefix(' ')?.trim().parse::<u64>().ok()
    };
    // The second version of control groups counts microseconds, the first nanoseconds.
    let waited = of("throttled_usec").map(|us| us as f64 / 1e6);
    let waited = waited.or_else(|| of("throttled_time").map(|ns| ns as f64 / 1e9));
    Some((of("nr_throttled")?, waited?))
}

/// The `cpu.stat` files of our control group and of those around it, from the text of `/proc/self/cgroup`: each of
/// them may have a quota.
pub(super) fn cpu_stat_files(cgroup: &str) -> Vec<PathBuf> {
    let place = cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let first = controllers.split(',').any(|c| c == "cpu");
        first.then(|| (PathBuf::from(format!("/sys/fs/cgroup/{controllers}")), path))
    });
    let unified = || {
        let path = cgroup.lines().find_map(|l| l.strip_prefix("0::"))?;
        Some((PathBuf::from("/sys/fs/cgroup"), path))
    };
    let Some((root, path)) = place.or_else(unified) else {
        return Vec::new();
    };
    let inside = Path::new(path.trim_start_matches('/'));
    let groups = inside.ancestors().map(|group| root.join(group));
    groups.map(|g| g.join("cpu.stat")).collect()
}

/// One process.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Process {
    pub parent: u32,
    pub group: u32,
    pub name: String,
    /// CPU time, ticks.
    pub ticks: u64,
    /// When it began, which tells it from another that got its number later.
    pub began: u64,
}

impl Process {
    /// From the text of `/proc/<pid>/stat`.
    pub fn of(stat: &str) -> Option<Process> {
        // The name stands in brackets and may hold anything, brackets too.
        let (before, after) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = after.split_ascii_whitespace().collect();
        let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
        Some(Process {
            name: before.split_once('(')?.1.to_owned(),
            parent: number(1)?.try_into().ok()?,
            group: number(2)?.try_into().ok()?,
            ticks: number(11)?.saturating_add(number(12)?),
            began: number(19)?,
        })
    }
}

/// Every process that can be seen, by its number.
pub(super) fn processes() -> HashMap<u32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return HashMap::new();
    };
    let numbers = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let of = |pid| {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, Process::of(&String::from_utf8_lossy(&stat))?))
    };
    numbers.take(MOST_PROCESSES).filter_map(of).collect()
}

/// The inodes of the sockets that listen at `port`, with their addresses, from the text of `/proc/net/tcp` or `tcp6`.
pub(super) fn listeners(tcp: &str, port: u16) -> Vec<(IpAddr, u64)> {
    const LISTENS: &str = "0A";
    let listener = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, its_port) = fields.get(1)?.split_once(':')?;
        let here = u16::from_str_radix(its_port, 16).ok()? == port && *fields.get(3)? == LISTENS;
        here.then_some((address_of(address)?, fields.get(9)?.parse().ok()?))
    };
    tcp.lines().filter_map(listener).collect()
}

/// An address as the kernel prints it: words of 32 bits, each as a number of this machine.
fn address_of(hex: &str) -> Option<IpAddr> {
    let word = |i: usize| {
        Some(
            u32::from_str_radix(hex.get(8 * i..8 * i + 8)?, 16)
                .ok()?
                .to_ne_bytes(),
        )
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (i, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(i)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// The processes that have one of these sockets open, as far as their files can be seen.
pub(super) fn owners(inodes: &[u64], among: impl Iterator<Item = u32>) -> Vec<u32> {
    let names: Vec<String> = inodes.iter().map(|i| format!("socket:[{i}]")).collect();
    let owns = |pid: &u32| {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            return false;
        };
        let links = files
            .take(MOST_FILES)
            .filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        links
            .into_iter()
            .any(|link| names.iter().any(|name| link.as_os_str() == name.as_str()))
    };
    among.filter(owns).collect()
}

/// The numbers of a line.
fn numbers(line: &str) -> Vec<u64> {
    let words = line.split_ascii_whitespace();
    words.map_while(|w| w.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_accounts() {
        let before =
            CpuTimes::of("cpu  100 10 40 800 50 5 15 20 0 0\ncpu0 1 2 3 4\ncpu1 1 2 3 4\nintr 7\n")
                .unwrap();
        assert_eq!(
            before,
            CpuTimes {
                programs: 150,
                interrupts: 20,
                idle: 850,
                stolen: 20,
                cores: 2
            }
        );
        let after = CpuTimes {
            programs: 210,
            idle: 890,
            ..before
        };
        let between = after.since(&before);
        assert_eq!((between.busy(), between.total()), (60.0, 100.0));
        // Old kernels have four columns; what is no account is none.
        assert!(CpuTimes::of("cpu  1 2 3 4\ncpu0 1 2 3 4\n").is_some());
        for none in [
            "",
            "cpu",
            "cpu  x y\ncpu0 1\n",
            "intr 1 2\n",
            "cpu  1 2 3 4\n",
        ] {
            assert_eq!(CpuTimes::of(none), None, "{none}");
        }
        assert_eq!(
            memory("MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n"),
            Some((1_024_000, 614_400))
        );
        assert_eq!(memory("MemTotal: 1000 kB\n"), None);
        assert_eq!(
            swapped_in_pages("pgpgin 5\npswpin 17\npswpout 3\n"),
            Some(17)
        );
    }

    #[test]
    fn a_quota_of_either_version() {
        let second = "usage_usec 9\nnr_periods 10\nnr_throttled 3\nthrottled_usec 1500000\n";
        let first = "nr_periods 10\nnr_throttled 3\nthrottled_time 1500000000\n";
        assert_eq!(throttled(second), Some((3, 1.5)));
        assert_eq!(throttled(first), Some((3, 1.5)));
        assert_eq!(throttled("usage_usec 9\n"), None);
        let files = |text: &str| -> Vec<String> {
            let all = cpu_stat_files(text);
            all.iter()
                .map(|p| p.to_string_lossy().into_owned())
                .collect()
        };
        assert_eq!(
            files("0::/a/b\n"),
            [
                "/sys/fs/cgroup/a/b/cpu.stat",
                "/sys/fs/cgroup/a/cpu.stat",
                "/sys/fs/cgroup/cpu.stat"
            ]
        );
        assert_eq!(
            files("9:memory:/x\n4:cpu,cpuacct:/y\n0::/z\n"),
            [
                "/sys/fs/cgroup/cpu,cpuacct/y/cpu.stat",
                "/sys/fs/cgroup/cpu,cpuacct/cpu.stat"
            ]
        );
        assert!(files("").is_empty());
    }

    #[test]
    fn a_process_with_a_name_that_is_meant_to_confuse() {
        let stat = "77 (a) S 1 (b) S 42 70 70 0 -1 4194304 1 0 0 0 30 12 5 5 20 0 8 0 9999 1 2";
        let process = Process::of(stat).unwrap();
        assert_eq!(
            (process.parent, process.group, process.ticks, process.began),
            (42, 70, 42, 9999)
        );
        assert_eq!(process.name, "a) S 1 (b");
        assert_eq!(Process::of("77 (a) S 1"), None);
    }

    #[test]
    fn sockets_that_listen() {
        let v4 = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0\n   \
            1: 0100007F:1F90 0100007F:8000 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0\n   \
            2: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0\n";
        assert_eq!(listeners(v4, 8080), [("127.0.0.1".parse().unwrap(), 4711)]);
        assert_eq!(listeners(v4, 8081), [("0.0.0.0".parse().unwrap(), 4713)]);
        let v6 = "   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 9 1\n   \
            1: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 8 1\n";
        assert_eq!(
            listeners(v6, 8080),
            [
                ("::1".parse().unwrap(), 9),
                ("127.0.0.1".parse().unwrap(), 8)
            ]
        );
        assert!(listeners("x\n0: zz:1F90 0:0 0A\n", 8080).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_listener_of_ours_is_found_to_be_ours() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let tcp = fs::read_to_string("/proc/net/tcp").unwrap();
        let inodes: Vec<u64> = listeners(&tcp, port).into_iter().map(|l| l.1).collect();
        assert_eq!(inodes.len(), 1);
        let all = processes();
        let me = std::process::id();
        assert!(all[&me].ticks < u64::MAX && all.contains_key(&all[&me].parent));
        assert!(owners(&inodes, all.keys().copied()).contains(&me));
    }
}
