//! The flags that describe a server under load: its endpoint, what each request carries, time limits.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use powerband_bench::{BenchConfig, Endpoint, GpuMetrics, HttpVersion};
use serde_json::{Map, Value};

/// How requests reach the server, and what each carries.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Target")]
pub struct TargetArgs {
    /// Key of the server under load, sent as a bearer token
    #[arg(long, env = "POWERBAND_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// completions, chat, responses or embeddings
    #[arg(long, default_value = "completions", value_parser = endpoint)]
    pub endpoint: Endpoint,
    /// HTTP version: 1.1 (a connection a stream), 2 (up to a hundred streams share a connection; also in
    /// the clear) or auto (2 where a TLS server offers it)
    #[arg(long, value_name = "VERSION", default_value = "1.1", value_parser = http)]
    pub http: HttpVersion,
    /// Connect to this address in place of the target's, whose name the certificate and the Host header keep
    #[arg(long, value_name = "HOST:PORT")]
    pub connect_to: Option<String>,
    /// Ask for whole answers rather than streams: TTFT is then that of the whole answer, and there is no ITL
    #[arg(long)]
    pub no_stream: bool,
    /// A header of each request, as in --header 'X-Team: red'; may be given again
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    pub header: Vec<(String, String)>,
    /// Fields of each request's body as a JSON object; they win over ours
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub extra_body: Option<Map<String, Value>>,
    /// PEM file of certificate authorities to trust besides the public ones
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Trust any certificate
    #[arg(long)]
    pub insecure: bool,
    /// Longest wait for a connection, s
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub connect_timeout: Duration,
    /// Longest wait for the first byte of an answer, s
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = seconds)]
    pub first_byte_timeout: Duration,
    /// Longest silence within an answer, s [default: none]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub idle_timeout: Option<Duration>,
    /// Longest wait for the last byte of an answer, s
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = seconds)]
    pub request_timeout: Duration,
    /// Longest that a client waits when told Retry-After, s; with 0 it goes on at once
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds_or_none)]
    pub max_retry_after: Duration,
    /// The server's Prometheus metrics, sampled during each level; `none` to leave them [default: the
    /// target's /metrics, where it has one]
    #[arg(long, value_name = "URL")]
    pub metrics_url: Option<String>,
    /// Read this machine's NVIDIA GPUs during each level: auto (where the target is on this machine), on or off
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = gpu_metrics)]
    pub gpu_metrics: GpuMetrics,
    /// Threads of the client [default: by the number of streams]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
}

impl TargetArgs {
    /// Puts the flags into a run's settings.
    pub fn apply(&self, config: &mut BenchConfig) {
        config.metrics_url.clone_from(&self.metrics_url);
        config.gpu_metrics = self.gpu_metrics;
        config.workers = self.workers;
        let target = &mut config.target;
        target.api_key.clone_from(&self.api_key);
        target.endpoint = self.endpoint;
        target.http = self.http;
        target.connect_to.clone_from(&self.connect_to);
        target.no_stream = self.no_stream;
        target.headers.clone_from(&self.header);
        target.extra_body = self.extra_body.clone().unwrap_or_default();
        target.ca_file.clone_from(&self.ca_file);
        target.insecure = self.insecure;
        target.timeouts.connect = self.connect_timeout;
        target.timeouts.first_byte = self.first_byte_timeout;
        target.timeouts.idle = self.idle_timeout;
        target.timeouts.total = self.request_timeout;
        target.timeouts.retry_after = self.max_retry_after;
    }
}

fn endpoint(name: &str) -> Result<Endpoint, String> {
    Endpoint::parse(name).ok_or_else(|| "use completions, chat, responses or embeddings".to_owned())
}

fn gpu_metrics(when: &str) -> Result<GpuMetrics, String> {
    match when {
        "auto" => Ok(GpuMetrics::Auto),
        "on" => Ok(GpuMetrics::On),
        "off" => Ok(GpuMetrics::Off),
        _ => Err("use auto, on or off".to_owned()),
    }
}

fn http(version: &str) -> Result<HttpVersion, String> {
    HttpVersion::parse(version).ok_or_else(|| "use auto, 1.1 or 2".to_owned())
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("write it as 'NAME: VALUE'".to_owned()),
    }
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text)
        .map_err(|error| format!("{error}; give an object, as in '{{\"top_p\": 0.9}}'"))
}

/// Seconds above 0, as a length of time.
fn seconds(text: &str) -> Result<Duration, String> {
    match seconds_or_none(text)? {
        Duration::ZERO => Err("give seconds above 0".to_owned()),
        seconds => Ok(seconds),
    }
}

/// Seconds, 0 too.
fn seconds_or_none(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "give seconds, as in 2.5")?;
    if !(0.0..1e8).contains(&seconds) {
        return Err("give seconds, 0 or more".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_need_a_form() {
        assert_eq!(
            header("X-A:  b: c ").unwrap(),
            ("X-A".to_owned(), "b: c".to_owned())
        );
        assert!(header("no colon").is_err() && header(": x").is_err());
        assert_eq!(object(r#"{"a": 1}"#).unwrap()["a"], 1);
        assert!(object("[1]").unwrap_err().contains("object"));
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
        assert_eq!(seconds_or_none("0").unwrap(), Duration::ZERO);
        for bad in ["0", "-1", "NaN", "1e99", "x"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
