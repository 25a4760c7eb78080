//! Before the first level: is the server there, which model, which request fields does it take, how long
//! is a prompt. What cannot work ends here, with a hint, and not as a hundred failed requests.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::ask::ask;
use crate::body::{BodyShape, RequestTemplate, plain_request};
use crate::chunk::{Usage, excerpt};
use crate::client::{Client, Failure, Shared};
use crate::clock::Clock;
use crate::config::BenchConfig;
use crate::connect::Connector;
use crate::counters::Counters;
use crate::data::lengths::Drawn;
use crate::data::prompts::Prompts;
use crate::data::session::Session;
use crate::data::words::OPENING;
use crate::data::{
    Calls, DataSource, PromptFormat, Rows, Spread, Synthetic, Trace, Workload, calibrate,
};
use crate::error::BenchError;
use crate::gpu::Driver;
use crate::host::Place;
use crate::record::RequestRecord;
use crate::server_side::MetricsSource;
use crate::target::{BaseUrl, Endpoint};

/// How long the server may take for a test request: one token, but perhaps behind a full queue.
const PROBE_LIMIT: Duration = Duration::from_secs(300);
/// How long it may take to list its models or to count tokens.
const LOOKUP_LIMIT: Duration = Duration::from_secs(15);
/// Largest answer to a lookup, bytes.
const LOOKUP_BYTES: usize = 16 * 1024 * 1024;

/// A server that was found well, and all that a level needs to load it.
pub struct Prepared {
    pub(crate) config: BenchConfig,
    pub(crate) base: BaseUrl,
    pub(crate) connector: Connector,
    pub(crate) shape: BodyShape,
    pub(crate) workload: Arc<Workload>,
    pub(crate) metrics: Option<MetricsSource>,
    pub(crate) place: Place,
    pub(crate) gpus: Option<Driver>,
    /// The model asked for, or the first that the server lists.
    pub model: String,
    /// The server's base URL, without `/v1`.
    pub target: String,
    /// What a reader of the results must know.
    pub warnings: Vec<String>,
}

/// Check the server and settle what every request has in common.
///
/// # Errors
/// A setting that cannot work, a server that is not there, does not know the endpoint or the model, wants
/// a key, or refuses a test request.
pub async fn prepare(config: &BenchConfig) -> Result<Prepared, BenchError> {
    let base = config.check()?;
    let mut warnings = Vec::new();
    // A row that cannot be sent is told before anything is.
    let loaded = load(config, &mut warnings).await?;
    let connector = Connector::new(&base, &config.target).await?;
    let mut probe = Probe {
        config,
        base: &base,
        connector: &connector,
        model: String::new(),
        shape: BodyShape::most(&config.target, config.data.ignore_eos),
        client: Client::default(),
        number: u64::MAX,
    };
    if config.target.insecure && base.tls {
        warnings.push(
            "any certificate was trusted (--insecure): nobody knows which server this was".into(),
        );
    }
    let models = probe.models(&mut warnings).await?;
    probe.model = match (&config.target.model, models.first()) {
        (Some(asked), _) => asked.clone(),
        (None, Some(first)) => first.clone(),
        (None, None) => {
            return Err(BenchError::config(
                "--model",
                format!("{} lists no model: name one", base.display()),
            ));
        }
    };
    let usage = probe.settle_shape(&models, &mut warnings).await?;
    let workload = match loaded {
        Loaded::Rows(rows) => Workload::Rows(rows),
        Loaded::Trace(calls) => {
            let usual = Some(calls.mean_input());
            let (prompts, _) = calibrate::prompts(&mut probe, usage, usual, &mut warnings).await?;
            Workload::Trace(Trace::new(calls, prompts))
        }
        Loaded::Nothing => {
            let (prompts, seed) =
                calibrate::prompts(&mut probe, usage, None, &mut warnings).await?;
            Workload::Synthetic(Synthetic::new(&config.data, prompts, seed))
        }
    };
    let Probe { model, shape, .. } = probe;
    let url = config.metrics_url.as_deref();
    let metrics = MetricsSource::find(url, &base, &config.target, &mut warnings).await?;
    let place = Place::of(connector.addresses());
    let gpus = Driver::find(config.gpu_metrics, &place, &mut warnings);
    Ok(Prepared {
        config: config.clone(),
        target: base.display(),
        shape,
        workload: Arc::new(workload),
        metrics,
        place,
        gpus,
        model,
        warnings,
        connector,
        base,
    })
}

/// What was read of a file.
enum Loaded {
    Nothing,
    Rows(Rows),
    Trace(Calls),
}

/// Read the file that the requests come from, where they come from one.
async fn load(config: &BenchConfig, warnings: &mut Vec<String>) -> Result<Loaded, BenchError> {
    let Some(path) = config.data.source.path().map(Path::to_owned) else {
        return Ok(Loaded::Nothing);
    };
    let config = config.clone();
    // On a thread of its own: it may take long, and meanwhile the run can be cancelled.
    let loaded = tokio::task::spawn_blocking(move || {
        let mut warnings = Vec::new();
        load_now(&config, &mut warnings).map(|loaded| (loaded, warnings))
    });
    let (loaded, found) = loaded.await.map_err(|_| BenchError::Read {
        path,
        problem: "reading it ended early".into(),
    })??;
    warnings.extend(found);
    Ok(loaded)
}

fn load_now(config: &BenchConfig, warnings: &mut Vec<String>) -> Result<Loaded, BenchError> {
    let folder = config.output_dir.clone().unwrap_or_else(std::env::temp_dir);
    match &config.data.source {
        DataSource::Synthetic => Ok(Loaded::Nothing),
        DataSource::File(file) => {
            let (data, target) = (&config.data, &config.target);
            let tokenizer = config.tokenizer.clone();
            Rows::load(data, file, target, tokenizer, &folder, warnings).map(Loaded::Rows)
        }
        DataSource::Trace(trace) => {
            let calls = Calls::load(trace, &folder, warnings)?;
            config.profile.check_trace(&calls.times_s)?;
            Ok(Loaded::Trace(calls))
        }
    }
}

/// Sends test requests.
pub(crate) struct Probe<'a> {
    pub config: &'a BenchConfig,
    base: &'a BaseUrl,
    connector: &'a Connector,
    model: String,
    shape: BodyShape,
    client: Client,
    /// Numbers of test prompts count down, so that they never meet those of a level.
    number: u64,
}

#[derive(Deserialize)]
struct Models {
    #[serde(default)]
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

impl Probe<'_> {
    /// The models that the server lists; empty (with a warning if that may matter) if it does not say.
    async fn models(&self, warnings: &mut Vec<String>) -> Result<Vec<String>, BenchError> {
        let (status, body) =
            self.lookup("/v1/models", None)
                .await
                .map_err(|reason| BenchError::Unreachable {
                    url: self.base.display(),
                    reason,
                })?;
        let url = format!("{}/v1/models", self.base.display());
        match status {
            200 => match serde_json::from_slice::<Models>(&body) {
                Ok(models) => Ok(models.data.into_iter().map(|m| m.id).collect()),
                Err(_) => {
                    warnings.push(format!(
                        "{url} answers with something else than a list of models"
                    ));
                    Ok(Vec::new())
                }
            },
            401 | 403 => Err(BenchError::Unauthorized {
                url,
                status,
                message: excerpt(&body),
            }),
            // A gateway may offer the endpoint and no list.
            _ => Ok(Vec::new()),
        }
    }

    /// Send test requests until the server takes one, dropping optional fields that it refuses.
    async fn settle_shape(
        &mut self,
        models: &[String],
        warnings: &mut Vec<String>,
    ) -> Result<Option<Usage>, BenchError> {
        let smallest = match self.config.data.format {
            PromptFormat::Text => Prompts::Fixed(vec![(OPENING.to_owned(), 1)]),
            PromptFormat::TokenIds { low, high } => Prompts::TokenIds {
                range: (low, high),
                seed: 0,
            },
        };
        let smallest = Synthetic::plain(smallest, 4);
        let mut dropped: Vec<&str> = Vec::new();
        let usage = loop {
            match self.send(smallest.clone()).await {
                Ok(usage) => break usage,
                Err(Failure::Status {
                    status: 400 | 422,
                    message,
                    ..
                }) if self.drop_field(&message, &mut dropped) => {}
                Err(failure) => return Err(self.explain(failure, models)),
            }
        };
        if !dropped.is_empty() {
            let exact = if self.config.data.ignore_eos
                && !self.shape.ignore_eos
                && !self.shape.min_tokens
            {
                ": answers may be shorter than asked for"
            } else {
                ""
            };
            warnings.push(format!(
                "the server refuses {}, so requests go without{exact}",
                dropped.join(", ")
            ));
        }
        if let (Some(asked), false) = (&self.config.target.model, models.is_empty())
            && !models.contains(asked)
        {
            warnings.push(format!(
                "the server does not list model `{asked}` but answers for it"
            ));
        }
        Ok(usage)
    }

    /// Drop the optional field that the server's words name, else the next one. False if none is left.
    fn drop_field(&mut self, message: &str, dropped: &mut Vec<&'static str>) -> bool {
        let fields = [
            ("min_tokens", &mut self.shape.min_tokens),
            ("ignore_eos", &mut self.shape.ignore_eos),
            ("stream_options", &mut self.shape.include_usage),
        ];
        let mut left: Vec<(&'static str, &mut bool)> =
            fields.into_iter().filter(|(_, on)| **on).collect();
        let at = left
            .iter()
            .position(|(name, _)| message.contains(name))
            .unwrap_or(0);
        match left.get_mut(at) {
            Some((name, on)) => {
                **on = false;
                dropped.push(name);
                true
            }
            None => false,
        }
    }

    /// What a refused test request means.
    fn explain(&self, failure: Failure, models: &[String]) -> BenchError {
        let endpoint = self.config.target.endpoint;
        let url = format!("{}{}", self.base.display(), endpoint.path());
        let unlisted = !models.is_empty() && !models.contains(&self.model);
        match failure {
            Failure::Connect(reason) => BenchError::Unreachable {
                url: self.base.display(),
                reason,
            },
            Failure::Status {
                status: status @ (401 | 403),
                message,
                ..
            } => BenchError::Unauthorized {
                url,
                status,
                message,
            },
            Failure::Status {
                status: 400 | 404 | 422,
                message,
                ..
            } if unlisted => BenchError::WrongModel {
                asked: self.model.clone(),
                message,
                available: models.to_vec(),
            },
            Failure::Status {
                status: 404 | 405,
                message,
                ..
            } => BenchError::NoEndpoint {
                url,
                message,
                hint: match endpoint {
                    Endpoint::Completions | Endpoint::Responses => {
                        "try --endpoint chat, or check the path of --target".into()
                    }
                    Endpoint::ChatCompletions => {
                        "try --endpoint completions, or check the path of --target".into()
                    }
                    Endpoint::Embeddings => {
                        "the server may not serve a model for embeddings; check the path of --target"
                            .into()
                    }
                },
            },
            other => BenchError::Refused {
                url,
                message: other.to_string(),
            },
        }
    }

    /// One request of one output token, or as few as there can be: its `usage`.
    pub async fn send(&mut self, mut made: Synthetic) -> Result<Option<Usage>, Failure> {
        let fewest = self.config.target.endpoint.fewest_tokens();
        made.output_tokens = Drawn::tokens(fewest, Spread::default());
        self.number -= 1;
        let mut session = Session::new(self.number, 1);
        let shared = Shared {
            clock: Clock::start(),
            connector: self.connector.clone(),
            template: RequestTemplate::new(self.base, &self.config.target, &self.model, self.shape),
            workload: Arc::new(Workload::Synthetic(made)),
            timeouts: crate::target::Timeouts {
                total: self.config.target.timeouts.total.min(PROBE_LIMIT),
                ..self.config.target.timeouts
            },
            tokenizer: None,
            counters: Counters::default(),
        };
        // A new connection each: its clock is this request's.
        self.client = Client::default();
        self.client
            .request(&shared, &mut session, &mut RequestRecord::default())
            .await
    }

    /// Tokens of `text` by the server's `/tokenize`.
    pub async fn tokenize(&self, text: &str) -> Result<Option<u64>, String> {
        let body =
            serde_json::json!({"model": self.model, "prompt": text, "add_special_tokens": true});
        let (status, answer) = self.lookup("/tokenize", Some(&body)).await?;
        if status != 200 {
            return Ok(None);
        }
        let unusable = || {
            format!(
                "/tokenize answers 200 with something else than tokens ({})",
                excerpt(&answer)
            )
        };
        let value: Value = serde_json::from_slice(&answer).map_err(|_| unusable())?;
        let count = value.get("count").and_then(Value::as_u64);
        let listed = value
            .get("tokens")
            .and_then(Value::as_array)
            .map(|tokens| tokens.len() as u64);
        // No text has no tokens: an empty list means that the server read another field.
        count
            .or(listed)
            .filter(|n| *n > 0)
            .map(Some)
            .ok_or_else(unusable)
    }

    /// A small request of its own: (status, body).
    async fn lookup(&self, path: &str, body: Option<&Value>) -> Result<(u16, Vec<u8>), String> {
        let request = plain_request(self.base, &self.config.target, path, body);
        ask(self.connector, &request, path, LOOKUP_BYTES, LOOKUP_LIMIT).await
    }
}
