//! Where a server's metrics are, and whether they say anything.

use std::time::Duration;

use super::names::Reading;
use super::prometheus::samples;
use crate::ask::{ask, slow};
use crate::body::plain_request;
use crate::connect::Connector;
use crate::error::BenchError;
use crate::target::{BaseUrl, TargetConfig};

/// How long an answer may take: it is small, and a server that is this busy has said enough.
const LIMIT: Duration = Duration::from_secs(2);
/// Largest answer, bytes; vLLM's has some hundred thousand.
const MAX_BYTES: usize = 4 << 20;
/// What switches sampling off in place of a URL.
const OFF: &str = "none";
const FLAG: &str = "--metrics-url";
const WHAT: &str = "/metrics";

/// A place that answers with metrics that are known.
#[derive(Clone)]
pub(crate) struct MetricsSource {
    connector: Connector,
    request: Vec<u8>,
}

/// The place that a setting names; `None` where nothing is to be sampled.
pub(crate) fn check(url: Option<&str>, target: &BaseUrl) -> Result<Option<BaseUrl>, BenchError> {
    match url.map(str::trim) {
        Some(OFF) => Ok(None),
        Some(url) => match BaseUrl::parse(url) {
            Ok(base) => Ok(Some(base)),
            Err(BenchError::Config { problem, .. }) => Err(BenchError::config(FLAG, problem)),
            Err(other) => Err(other),
        },
        None => Ok(Some(BaseUrl {
            root: format!("{}/metrics", target.root),
            ..target.clone()
        })),
    }
}

impl MetricsSource {
    /// Find the metrics of a server, once a run. A server without any is none to speak of unless its user named
    /// their place; one that answers with something else is warned of.
    pub async fn find(
        url: Option<&str>,
        target: &BaseUrl,
        config: &TargetConfig,
        warnings: &mut Vec<String>,
    ) -> Result<Option<MetricsSource>, BenchError> {
        let Some(place) = check(url, target)? else {
            return Ok(None);
        };
        // The key and the headers are the target's: no other host may see them.
        let own = (place.tls, &place.authority) == (target.tls, &target.authority);
        let config = if own {
            config.clone()
        } else {
            TargetConfig {
                ca_file: config.ca_file.clone(),
                insecure: config.insecure,
                timeouts: config.timeouts,
                ..TargetConfig::default()
            }
        };
        let named = url.is_some();
        let display = place.display();
        let mut warn = |problem: &str| {
            warnings.push(format!(
                "{display} {problem}: the server's own metrics are not sampled"
            ));
        };
        let connector = match Connector::new(&place, &config).await {
            Ok(connector) => connector,
            Err(error) => {
                if named {
                    warn(&format!("cannot be reached ({error})"));
                }
                return Ok(None);
            }
        };
        let source = MetricsSource {
            connector,
            request: plain_request(&place, &config, "", None),
        };
        match source.text().await {
            Ok((200, text)) if Reading::of(&text).known() => return Ok(Some(source)),
            Ok((200, text)) if samples(&text).next().is_none() => {
                warn("answers 200 with something else than metrics");
            }
            Ok((200, _)) if named => warn("has no metric of a server that is known here"),
            Ok((status, _)) if named => warn(&format!("answers with HTTP {status}")),
            Err(reason) if named || reason == slow(WHAT, LIMIT) => {
                warn(&format!("gives nothing ({reason})"))
            }
            Ok(_) | Err(_) => {}
        }
        Ok(None)
    }

    /// What the server says now; `None` if it says nothing in time or nothing that is known.
    pub async fn read(&self) -> Option<Reading> {
        match self.text().await {
            Ok((200, text)) => Some(Reading::of(&text)).filter(Reading::known),
            _ => None,
        }
    }

    async fn text(&self) -> Result<(u16, String), String> {
        let answer = ask(&self.connector, &self.request, WHAT, MAX_BYTES, LIMIT).await;
        answer.map(|(status, body)| (status, String::from_utf8_lossy(&body).into_owned()))
    }
}
