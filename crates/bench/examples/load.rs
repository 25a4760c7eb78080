//! The load generator alone, for measuring it: `load URL CONCURRENCY[,..] REQUESTS [OUTPUT_DIR]`.

use powerband_bench::{BenchConfig, Cancel, Event, Profile, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, url, levels, requests, rest @ ..] = &args[..] else {
        return Err("usage: load URL CONCURRENCY[,..]|rate:R REQUESTS [OUTPUT_DIR]".into());
    };
    let profile = match levels.strip_prefix("rate:") {
        Some(rate) => Profile::Constant {
            rates: vec![rate.parse()?],
            max_concurrency: None,
        },
        None => Profile::Concurrent(
            levels
                .split(',')
                .map(str::parse)
                .collect::<Result<_, _>>()?,
        ),
    };
    let mut config = BenchConfig::new(url, profile);
    config.limits.max_requests = Some(requests.parse()?);
    config.output_dir = rest.first().map(Into::into);
    let events = |event: Event<'_>| match event {
        Event::Prepared { warnings, .. } => eprintln!("prepared, warnings: {warnings:?}"),
        Event::LevelFinished {
            result, metrics: m, ..
        } => {
            let mut late: Vec<f64> = result
                .requests
                .iter()
                .map(|r| r.dispatch_delay_s() * 1e3)
                .collect();
            late.sort_by(f64::total_cmp);
            println!(
                "{:?}: {} ok, {} failed | {:.1} req/s, {:.0} out tok/s | TTFT p50 {:.2} p99 {:.2} ms | ITL mean {:.3} ms | in flight {:.1} (steady {:.1}) | late p50 {:.3} p99 {:.3} ms | CPU {:.2}, lag p99 {:.2} ms | {}",
                result.strategy,
                m.successful,
                m.errored,
                m.requests_per_second,
                m.output_tokens_per_second,
                m.ttft_ms.percentiles.p50,
                m.ttft_ms.percentiles.p99,
                m.itl_ms.mean,
                m.delivered_concurrency,
                m.steady.as_ref().map_or(0.0, |s| s.delivered_concurrency),
                late[late.len() / 2],
                late[late.len() * 99 / 100],
                result.client.cpu_share,
                result.client.loop_lag_p99_ms,
                result.client.reason
            );
            result
                .warnings
                .iter()
                .for_each(|w| println!("  warning: {w}"));
        }
        _ => {}
    };
    run(&config, events, &Cancel::default()).await?;
    Ok(())
}
