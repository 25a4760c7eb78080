//! What the client's machine did during a level: its CPU, by whom it was used, its memory, and what was kept
//! from it. Reading order: `proc` (the system's texts), `place` (is the server on this machine, and which
//! processes are it), `gathered` (many readings make one level's numbers).
//!
//! All of it is Linux's; elsewhere nothing is known.

mod gathered;
mod place;
mod proc;

pub(crate) use gathered::Host;
pub(crate) use place::Place;
use serde::{Deserialize, Serialize};

/// What this machine, the client's, did during a level. Shares are of the time of all its cores, 0 to 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostUse {
    /// Cores of the machine.
    pub cores: u64,
    /// Cores' time that was not idle, the kernel's included.
    pub cpu: f64,
    /// The same of the busiest half second.
    pub cpu_max: f64,
    /// The client's; of its threads alone where the server runs in the same process.
    pub client: f64,
    /// The server's: of the processes that listen where the target is, with those that they started or that were
    /// started together with them. `None` where it runs elsewhere or they were not found.
    pub server: Option<f64>,
    /// Other programs'. `None` where the server is on this machine and its processes were not found.
    pub others: Option<f64>,
    /// Taken by the hypervisor for other machines.
    pub stolen: f64,
    /// Is the target an address of this machine?
    pub server_here: bool,
    /// Memory of the machine.
    pub memory_total_bytes: Option<u64>,
    /// Most of it that was in use, what can be had back at once not counted.
    pub memory_used_max_bytes: Option<u64>,
    /// Read back from swap.
    pub swapped_in_bytes: Option<u64>,
    /// How often the client's control group had to wait because its CPU quota was used up, and seconds that it
    /// waited; `None` where it has no such account.
    pub throttled: Option<u64>,
    /// Seconds of these waits, of all its threads.
    pub throttled_s: Option<f64>,
    /// From moment to moment, about twice a second; thinned out in a long level.
    pub samples: Vec<HostSample>,
}

/// The machine at one moment of a level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostSample {
    /// Seconds since the level's first send.
    pub at_s: f64,
    /// Share of its cores' time that was not idle, since the sample before.
    pub cpu: f64,
    /// Memory in use.
    pub memory_used_bytes: Option<u64>,
}
