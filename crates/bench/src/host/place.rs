//! Is the server on this machine, and which of its processes are the server?

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use super::proc::{Process, listeners, owners, processes};

/// Programs that listen for a server on another machine.
const TUNNELS: [&str; 2] = ["ssh", "kubectl"];
/// Programs that listen for a server in a container on this machine.
const FORWARDERS: [&str; 2] = ["docker-proxy", "rootlessport"];

/// Where a target is.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    addresses: Arc<[SocketAddr]>,
    here: bool,
}

impl Place {
    /// The place of a target with these addresses.
    pub fn of(addresses: &[SocketAddr]) -> Place {
        Place {
            addresses: addresses.into(),
            here: addresses.first().is_some_and(|a| is_own(a.ip())),
        }
    }

    /// Is it an address of this machine? A tunnel to another one looks like it.
    pub fn here(&self) -> bool {
        self.here
    }

    /// The server's processes among these; `None` if it is elsewhere or they cannot be known.
    pub(super) fn server(&self, processes: &HashMap<u32, Process>) -> Option<HashSet<u32>> {
        let owners = self.listeners(processes);
        let other =
            |pid: &u32| named(processes, *pid, &TUNNELS) || named(processes, *pid, &FORWARDERS);
        if owners.is_empty() || owners.iter().any(other) {
            return None;
        }
        Some(family(&owners, processes, std::process::id()))
    }

    /// Does a tunnel listen at the target's address, so that the server is on another machine?
    pub fn tunnelled(&self) -> bool {
        let processes = processes();
        let owners = self.listeners(&processes);
        owners.iter().any(|pid| named(&processes, *pid, &TUNNELS))
    }

    /// The processes that listen where the target is.
    fn listeners(&self, processes: &HashMap<u32, Process>) -> Vec<u32> {
        let Some(address) = self.addresses.first().filter(|_| self.here) else {
            return Vec::new();
        };
        let sockets = ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .filter_map(|file| fs::read_to_string(file).ok())
            .flat_map(|text| listeners(&text, address.port()))
            .filter(|(ip, _)| ip.is_unspecified() || *ip == address.ip().to_canonical());
        let inodes: Vec<u64> = sockets.map(|(_, inode)| inode).collect();
        if inodes.is_empty() {
            return Vec::new();
        }
        owners(&inodes, processes.keys().copied())
    }
}

fn named(processes: &HashMap<u32, Process>, pid: u32, names: &[&str]) -> bool {
    processes
        .get(&pid)
        .is_some_and(|p| names.contains(&p.name.as_str()))
}

/// Only an address of this machine can be bound.
fn is_own(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// A server is often several processes. Those of `owners`, with what they started and what was started with them:
/// their parents as far as these are of the same process group, as a shell's job is, and not ours too.
fn family(owners: &[u32], processes: &HashMap<u32, Process>, me: u32) -> HashSet<u32> {
    let parent = |pid: u32| processes.get(&pid).map(|p| p.parent).filter(|p| *p != pid);
    let mut ours = HashSet::new();
    let mut at = Some(me);
    while let Some(pid) = at.filter(|pid| ours.insert(*pid)) {
        at = parent(pid);
    }
    let group = |pid: u32| processes.get(&pid).map(|p| p.group);
    let mut members: HashSet<u32> = HashSet::new();
    for owner in owners {
        let mut eldest = *owner;
        while let Some(up) = parent(eldest).filter(|up| {
            *up > 1 && !ours.contains(up) && !members.contains(up) && group(*up) == group(*owner)
        }) {
            members.insert(eldest);
            eldest = up;
        }
        members.insert(eldest);
    }
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (pid, process) in processes {
        children.entry(process.parent).or_default().push(*pid);
    }
    let mut open: Vec<u32> = members.iter().copied().collect();
    while let Some(pid) = open.pop() {
        // What the server's process started may be we.
        let born = children.get(&pid).into_iter().flatten();
        let born = born.filter(|child| **child != me || owners.contains(&me));
        open.extend(born.filter(|child| members.insert(**child)));
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(parent: u32, group: u32) -> Process {
        Process {
            parent,
            group,
            name: "p".into(),
            ticks: 0,
            began: 0,
        }
    }

    fn sorted(of: HashSet<u32>) -> Vec<u32> {
        let mut all: Vec<u32> = of.into_iter().collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn a_server_is_its_launcher_and_its_workers() {
        // 1 -> 10 (a shell) -> 20 (launcher) -> 21 (listens) -> 30, and 22; the shell also runs us, 50.
        let all = HashMap::from([
            (1, process(0, 1)),
            (10, process(1, 10)),
            (20, process(10, 20)),
            (21, process(20, 20)),
            (22, process(20, 20)),
            (30, process(21, 31)),
            (50, process(10, 50)),
            (60, process(1, 60)),
        ]);
        assert_eq!(sorted(family(&[21], &all, 50)), [20, 21, 22, 30]);
        // A script that runs both in one group is not the server, nor are we.
        let script = HashMap::from([
            (10, process(1, 10)),
            (20, process(10, 10)),
            (21, process(20, 10)),
            (50, process(10, 10)),
        ]);
        assert_eq!(sorted(family(&[20], &script, 50)), [20, 21]);
        // A server that started us is not us.
        let harness = HashMap::from([
            (20, process(1, 20)),
            (50, process(20, 20)),
            (51, process(20, 20)),
        ]);
        assert_eq!(sorted(family(&[20], &harness, 50)), [20, 51]);
        // The server in our own process.
        assert_eq!(sorted(family(&[50], &harness, 50)), [50]);
        // Numbers that lead in a circle.
        let circle = HashMap::from([(20, process(21, 20)), (21, process(20, 20))]);
        assert_eq!(sorted(family(&[20], &circle, 50)), [20, 21]);
    }

    #[test]
    fn own_addresses_are_own() {
        for (address, here) in [
            ("127.0.0.1:80", true),
            ("127.8.9.1:80", true),
            ("192.0.2.1:80", false),
        ] {
            assert_eq!(
                Place::of(&[address.parse().unwrap()]).here(),
                here,
                "{address}"
            );
        }
        assert!(!Place::of(&[]).here());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_server_in_our_process_is_found_and_one_that_is_not_there_is_none() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let all = processes();
        let of = |address: &str| Place::of(&[address.parse().unwrap()]).server(&all);
        let here = socket.local_addr().unwrap().to_string();
        assert!(of(&here).unwrap().contains(&std::process::id()));
        drop(socket);
        assert_eq!(of(&here), None);
        assert_eq!(of("192.0.2.1:80"), None);
    }
}
