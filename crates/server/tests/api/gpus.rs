//! `/metrics` on a machine whose GPUs are read.

use std::sync::Arc;

use powerband_server::{GpuReader, GpuReading};

use crate::support::client::get;
use crate::support::{Options, TestServer};

#[tokio::test]
async fn metrics_tell_what_is_known_of_each_gpu() {
    let read = || {
        let known = GpuReading {
            index: 1,
            name: "NVIDIA \"X\"".to_owned(),
            memory_total_bytes: Some(80 << 30),
            memory_used_bytes: Some(20 << 30),
            utilization: Some(0.25),
            power_w: Some(310.5),
            energy_j: Some(2.0),
            sm_clock_mhz: Some(1755.0),
            temperature_c: Some(61.0),
            throttle_reasons: Some(4),
        };
        let silent = GpuReading {
            index: 2,
            name: "Y".to_owned(),
            ..GpuReading::default()
        };
        vec![known, silent]
    };
    let server = TestServer::start(Options {
        gpus: Some(GpuReader(Arc::new(read))),
        ..Options::default()
    })
    .await;
    let page = get(server.address, "/metrics").await.body;
    let told: Vec<_> = page.lines().filter(|l| l.starts_with("DCGM")).collect();
    let labels = r#"{gpu="1",modelName="NVIDIA \"X\""}"#;
    let expected = [
        ("GPU_UTIL", "25"),
        ("FB_USED", "20480"),
        ("FB_FREE", "61440"),
        ("POWER_USAGE", "310.5"),
        ("TOTAL_ENERGY_CONSUMPTION", "2000"),
        ("SM_CLOCK", "1755"),
        ("GPU_TEMP", "61"),
        ("CLOCK_THROTTLE_REASONS", "4"),
    ]
    .map(|(name, value)| format!("DCGM_FI_DEV_{name}{labels} {value}"));
    assert_eq!(told, expected);
    assert_eq!(page.matches("# TYPE DCGM_FI_DEV_GPU_UTIL gauge").count(), 1);
}

#[tokio::test]
async fn without_gpus_nothing_is_said_of_them() {
    let server = TestServer::plain().await;
    let page = get(server.address, "/metrics").await.body;
    assert!(!page.contains("DCGM"));
}
