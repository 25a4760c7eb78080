//! The load generator alone, for measuring it; its flags are some of those of `powerband bench`:
//! `load --target URL [--concurrency N,.. | --rate R,..] [--max-requests N] [--max-seconds S]
//! [--prompt-tokens N] [--output-tokens N] [--output-dir DIR]`.

use std::str::FromStr;

use powerband_bench::{BenchConfig, Cancel, Event, Profile, run};

/// The value behind a flag, if the flag is there.
fn value<T: FromStr>(name: &str) -> Result<Option<T>, String> {
    let mut args = std::env::args().skip_while(|a| a != name);
    let Some(_) = args.next() else {
        return Ok(None);
    };
    let text = args.next().unwrap_or_default();
    let parsed = text.parse().map_err(|_| format!("{name}: `{text}`?"));
    parsed.map(Some)
}

/// Values with commas between.
fn values<T: FromStr>(name: &str) -> Result<Option<Vec<T>>, String> {
    let Some(list) = value::<String>(name)? else {
        return Ok(None);
    };
    let parse = |text: &str| text.parse().map_err(|_| format!("{name}: `{text}`?"));
    list.split(',')
        .map(parse)
        .collect::<Result<_, _>>()
        .map(Some)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let target: String = value("--target")?.ok_or("--target URL is missing")?;
    let profile = match values("--rate")? {
        Some(rates) => Profile::Constant {
            rates,
            max_concurrency: None,
        },
        None => Profile::Concurrent(values("--concurrency")?.unwrap_or(vec![1])),
    };
    let mut config = BenchConfig::new(target, profile);
    config.limits.max_seconds = value("--max-seconds")?;
    config.limits.max_requests = value("--max-requests")?.or(config.limits.max_requests);
    config.data.prompt_tokens = value("--prompt-tokens")?.unwrap_or(config.data.prompt_tokens);
    config.data.output_tokens = value("--output-tokens")?.unwrap_or(config.data.output_tokens);
    config.output_dir = value("--output-dir")?;
    let events = |event: Event<'_>| {
        if let Event::LevelFinished {
            result, metrics: m, ..
        } = event
        {
            let health = &result.client;
            let lag = health.client_lag.unwrap_or_default();
            println!(
                "{:?}: {} ok, {} failed | {:.1} req/s, {:.0} out tok/s | TTFT p50 {:.2} p99 {:.2} ms | ITL mean {:.3} ms | in flight {:.1} | late {:.3} ms | CPU {:.2}, loop lag p99 {:.2} ms, read lag p50 {:.3} p99 {:.3} max {:.3} ms (known {:.4}) | {}",
                result.strategy,
                m.successful,
                m.errored,
                m.requests_per_second,
                m.output_tokens_per_second,
                m.ttft_ms.percentiles.p50,
                m.ttft_ms.percentiles.p99,
                m.itl_ms.mean,
                m.delivered_concurrency,
                health.dispatch_delay_mean_ms,
                health.cpu_share,
                health.loop_lag_p99_ms,
                lag.p50_ms,
                lag.p99_ms,
                lag.max_ms,
                lag.known_share,
                health.reason
            );
            for warning in &result.warnings {
                println!("  warning: {warning}");
            }
        }
    };
    run(&config, events, &Cancel::default()).await?;
    Ok(())
}
