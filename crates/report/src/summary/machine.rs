//! The client and the machines of a level in numbers, as the summary CSV has them too. `None` is "not known".

use powerband_bench::{ClientHealth, GpuUse, HostUse};
use serde::{Deserialize, Serialize};

/// How the client fared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientSummary {
    /// How long after its arrival a read found its bytes, median, ms.
    pub lag_p50_ms: Option<f64>,
    /// The same, 99th percentile.
    pub lag_p99_ms: Option<f64>,
    /// The same, largest.
    pub lag_max_ms: Option<f64>,
    /// How late its event loop woke, 99th percentile, ms.
    pub loop_lag_p99_ms: Option<f64>,
    /// From when a request was due to when it left, mean, ms.
    pub dispatch_delay_ms: Option<f64>,
    /// Opening a connection, mean, ms.
    pub connect_mean_ms: Option<f64>,
    /// Opening a connection, longest, ms.
    pub connect_max_ms: Option<f64>,
}

impl ClientSummary {
    /// The numbers of a client that tells of itself.
    pub fn of(client: &ClientHealth) -> ClientSummary {
        let connected = |ms: f64| fine(Some(ms).filter(|_| client.connections > 0));
        ClientSummary {
            lag_p50_ms: fine(client.client_lag.map(|lag| lag.p50_ms)),
            lag_p99_ms: fine(client.client_lag.map(|lag| lag.p99_ms)),
            lag_max_ms: fine(client.client_lag.map(|lag| lag.max_ms)),
            loop_lag_p99_ms: fine(Some(client.loop_lag_p99_ms)),
            dispatch_delay_ms: fine(Some(client.dispatch_delay_mean_ms)),
            connect_mean_ms: connected(client.connect_mean_ms),
            connect_max_ms: connected(client.connect_max_ms),
        }
    }
}

/// What the client's machine did. Shares are of the time of all its cores, 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostSummary {
    /// Cores of the machine.
    pub cores: Option<f64>,
    /// Share that was not idle.
    pub cpu: Option<f64>,
    /// The client's share.
    pub client: Option<f64>,
    /// The server's, where it is on this machine.
    pub server: Option<f64>,
    /// Other programs'.
    pub others: Option<f64>,
    /// Taken by the hypervisor.
    pub stolen: Option<f64>,
    /// Share of the memory in use, most.
    pub memory: Option<f64>,
    /// Bytes read back from swap.
    pub swapped_in_bytes: Option<f64>,
    /// Seconds that the client's control group waited for its CPU quota.
    pub throttled_s: Option<f64>,
}

impl HostSummary {
    /// The numbers of a level's machine.
    pub fn of(host: &HostUse) -> HostSummary {
        let of = |value: f64| fine(Some(value));
        let total = host.memory_total_bytes.filter(|bytes| *bytes > 0);
        HostSummary {
            cores: of(host.cores as f64),
            cpu: of(host.cpu),
            client: of(host.client),
            server: fine(host.server),
            others: fine(host.others),
            stolen: of(host.stolen),
            memory: (host.memory_used_max_bytes.zip(total))
                .map(|(used, all)| used as f64 / all as f64),
            swapped_in_bytes: host.swapped_in_bytes.map(|bytes| bytes as f64),
            throttled_s: fine(host.throttled_s),
        }
    }
}

/// What the GPUs did on which something ran in the level; all of them where nothing did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuSummary {
    /// How many.
    pub devices: Option<f64>,
    /// Share of the time in which some kernel ran, 0 to 1, mean over the GPUs.
    pub utilization: Option<f64>,
    /// The same of the busiest GPU.
    pub busiest: Option<f64>,
    /// Share of the memory in use, most, of the fullest GPU.
    pub memory: Option<f64>,
    /// Power of all of them, mean, W.
    pub power_w: Option<f64>,
    /// Power that the driver allows all of them, W.
    pub power_limit_w: Option<f64>,
    /// Energy of all of them, J.
    pub energy_j: Option<f64>,
    /// Their clock as a share of the highest, mean.
    pub clock: Option<f64>,
    /// Share of the readings in which the clock was held down for the sake of power, of the GPU where it was most.
    pub power_capped: Option<f64>,
    /// The same for the sake of heat.
    pub heat_throttled: Option<f64>,
    /// Temperature, most, degrees Celsius.
    pub temperature_c: Option<f64>,
}

/// `nvidia-smi`'s reasons that mean power, and those that mean heat.
const POWER: [&str; 2] = ["sw_power_cap", "hw_power_brake_slowdown"];
const HEAT: [&str; 2] = ["sw_thermal_slowdown", "hw_thermal_slowdown"];

impl GpuSummary {
    /// The numbers of a level's GPUs.
    pub fn of(gpus: &[GpuUse]) -> GpuSummary {
        let works = |g: &&GpuUse| g.utilization_max.is_some_and(|u| u > 0.0);
        let mut at_work: Vec<&GpuUse> = gpus.iter().filter(works).collect();
        if at_work.is_empty() {
            at_work = gpus.iter().collect();
        }
        if at_work.is_empty() {
            return GpuSummary::default();
        }
        let each = |of: &dyn Fn(&GpuUse) -> Option<f64>| -> Vec<f64> {
            at_work.iter().filter_map(|g| fine(of(g))).collect()
        };
        let sum = |of: &dyn Fn(&GpuUse) -> Option<f64>| {
            let all = each(of);
            // The sum of some is not that of all.
            fine((all.len() == at_work.len()).then(|| all.iter().sum()))
        };
        let most = |of: &dyn Fn(&GpuUse) -> Option<f64>| each(of).into_iter().reduce(f64::max);
        let mean = |of: &dyn Fn(&GpuUse) -> Option<f64>| {
            let all = each(of);
            fine(Some(all.iter().sum::<f64>() / all.len() as f64))
        };
        // Both reasons may hold at once: together they hold at least as often as the larger.
        let held = |g: &GpuUse, reasons: [&str; 2]| {
            let shares = reasons.iter().filter_map(|r| g.throttled.get(*r).copied());
            Some(shares.fold(0.0, f64::max))
        };
        let share = |part: Option<u64>, whole: Option<u64>| {
            Some(part? as f64 / whole.filter(|w| *w > 0)? as f64)
        };
        GpuSummary {
            devices: Some(at_work.len() as f64),
            utilization: mean(&|g| g.utilization_mean),
            busiest: most(&|g| g.utilization_mean),
            memory: most(&|g| share(g.memory_used_max_bytes, g.memory_total_bytes)),
            power_w: sum(&|g| g.power_mean_w),
            power_limit_w: sum(&|g| g.power_limit_w),
            energy_j: sum(&|g| g.energy_j),
            clock: mean(&|g| {
                Some(g.sm_clock_mean_mhz? / g.sm_clock_limit_mhz.filter(|l| *l > 0.0)?)
            }),
            power_capped: most(&|g| held(g, POWER)),
            heat_throttled: most(&|g| held(g, HEAT)),
            temperature_c: most(&|g| g.temperature_max_c),
        }
    }
}

/// A number that can be; files may hold any.
fn fine(value: Option<f64>) -> Option<f64> {
    value.filter(|v| (0.0..1e15).contains(v))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(index: u32, utilization: f64, power_w: Option<f64>) -> GpuUse {
        GpuUse {
            index,
            utilization_mean: Some(utilization),
            utilization_max: Some(utilization),
            memory_total_bytes: Some(100),
            memory_used_max_bytes: Some(10 * (1 + u64::from(index))),
            power_mean_w: power_w,
            sm_clock_mean_mhz: Some(1500.0),
            sm_clock_limit_mhz: Some(2000.0),
            ..GpuUse::default()
        }
    }

    #[test]
    fn gpus_that_idle_beside_the_servers_are_left_out() {
        let mut gpus = vec![
            gpu(0, 0.5, Some(300.0)),
            gpu(1, 0.9, Some(500.0)),
            gpu(2, 0.0, Some(70.0)),
        ];
        gpus[1].throttled = [("sw_power_cap".into(), 0.25), ("gpu_idle".into(), 1.0)].into();
        let seen = GpuSummary::of(&gpus);
        assert_eq!(seen.devices, Some(2.0));
        assert!((seen.utilization.unwrap() - 0.7).abs() < 1e-9);
        assert_eq!(
            (seen.busiest, seen.power_w, seen.memory),
            (Some(0.9), Some(800.0), Some(0.2))
        );
        assert_eq!(
            (seen.clock, seen.power_capped, seen.heat_throttled),
            (Some(0.75), Some(0.25), Some(0.0))
        );
        // None works: they are what there is.
        assert_eq!(GpuSummary::of(&gpus[2..]).power_w, Some(70.0));
        // The power of one of two is not that of both.
        gpus[0].power_mean_w = None;
        assert_eq!(GpuSummary::of(&gpus).power_w, None);
        assert_eq!(GpuSummary::of(&[]), GpuSummary::default());
    }

    #[test]
    fn a_files_impossible_numbers_are_none() {
        let host = HostUse {
            cpu: f64::NAN,
            client: -1.0,
            others: Some(1e300),
            memory_total_bytes: Some(0),
            memory_used_max_bytes: Some(5),
            ..HostUse::default()
        };
        let seen = HostSummary::of(&host);
        assert_eq!(
            (seen.cpu, seen.client, seen.others, seen.memory),
            (None, None, None, None)
        );
        assert_eq!(seen.stolen, Some(0.0));
        let broken = gpu(0, f64::INFINITY, Some(-3.0));
        let seen = GpuSummary::of(&[broken]);
        assert_eq!((seen.utilization, seen.power_w), (None, None));
        let client = ClientHealth {
            connect_max_ms: f64::NAN,
            connections: 1,
            ..ClientHealth::default()
        };
        assert_eq!(ClientSummary::of(&client).connect_max_ms, None);
    }
}
