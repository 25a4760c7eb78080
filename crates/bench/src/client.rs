//! One client: sends a request, reads its stream, fills the record. Its connection stays open from one
//! request to the next.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use crate::answer::Answer;
use crate::body::RequestTemplate;
use crate::chunk::{self, Usage};
use crate::clock::Clock;
use crate::config::TokenCounter;
use crate::connect::Connector;
use crate::counters::Counters;
use crate::data::Workload;
use crate::data::session::{Session, Sizes};
use crate::head::Head;
use crate::http1::ReadError;
use crate::link::{Link, Links};
use crate::record::RequestRecord;
use crate::repeat::ChunkParser;
use crate::retry_after;
use crate::sse::SseParser;
use crate::target::Timeouts;

/// Largest answer of a server that does not stream, bytes.
pub(crate) const MAX_BODY: usize = 16 * 1024 * 1024;
/// What is read of an answer that says no, bytes, and how long at most.
const MAX_REFUSAL: usize = 64 * 1024;
const REFUSAL_LIMIT: Duration = Duration::from_secs(5);
/// Connections of a request that may turn out to be ended before one must not.
const MOST_REPLACED: u32 = 3;

/// All that clients share.
pub(crate) struct Shared {
    pub clock: Clock,
    pub connector: Connector,
    pub template: RequestTemplate,
    pub workload: Arc<Workload>,
    pub timeouts: Timeouts,
    /// Counts output tokens where the server does not.
    pub tokenizer: Option<Arc<dyn TokenCounter>>,
    pub counters: Counters,
}

impl Shared {
    /// Tokens of a prompt that neither the data nor the server tells, by the tokenizer if there is one. A prompt
    /// with a template around it is more than its text, and cannot be counted.
    fn count_prompt(&self, prompt: &[u8]) -> u64 {
        let counted = self.tokenizer.as_ref().and_then(|tokenizer| {
            let text: String = serde_json::from_slice(prompt).ok()?;
            Some(tokenizer.count_prompt(&text) as u64)
        });
        if counted.is_none() {
            self.counters.unknown_prompts.fetch_add(1, Relaxed);
        }
        counted.unwrap_or(0)
    }
}

/// What the client must do for a request besides measuring it.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    output_tokens: u64,
    /// Keep what the server says: the next turn begins with it.
    said: bool,
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server said no.
    Status {
        status: u16,
        message: String,
        retry_after: Option<String>,
    },
    /// There is no connection to be had.
    Connect(String),
    /// Anything else, as a sentence.
    Broken(String),
}

impl Failure {
    /// How long the server asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Status {
                status: 429 | 503,
                retry_after: Some(after),
                ..
            } => retry_after::wait(after, SystemTime::now()),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Failure::Status {
                status,
                message,
                retry_after,
            } => {
                write!(f, "HTTP {status}")?;
                if !message.is_empty() {
                    write!(f, ": {message}")?;
                }
                match retry_after {
                    Some(after) => write!(f, " (Retry-After: {after})"),
                    None => Ok(()),
                }
            }
            Failure::Connect(reason) | Failure::Broken(reason) => f.write_str(reason),
        }
    }
}

/// A client and what it keeps between requests.
#[derive(Default)]
pub(crate) struct Client {
    /// How long it has to wait before its next request, by the server's last answer.
    pub pause: Option<Duration>,
    /// Where connections come from.
    links: Arc<Links>,
    /// What the last request has left open.
    link: Option<Link>,
    sse: SseParser,
    chunks: ChunkParser,
    wire: Vec<u8>,
    body: Vec<u8>,
    /// What the server said, where that is needed.
    said: String,
}

impl Client {
    /// One that takes its connections from `links`.
    pub fn on(links: &Arc<Links>) -> Self {
        Client {
            links: links.clone(),
            ..Client::default()
        }
    }

    /// Leave the request in its middle: its connection, or its stream, is of no use any more.
    pub fn give_up(&mut self) {
        *self = Client::on(&self.links);
    }

    /// Send the session's next prompt and read the answer into `record`. If it came well, the session is at
    /// its next turn then. Dropping the future in the middle closes the connection, which tells the server to
    /// stop, and leaves what was measured in the record.
    pub async fn request(
        &mut self,
        shared: &Shared,
        session: &mut Session,
        record: &mut RequestRecord,
    ) -> Result<Option<Usage>, Failure> {
        let template = &shared.template;
        let mut sizes = Ok(Sizes::default());
        let prompt = template.write(&mut self.wire, &mut self.body, |out| {
            sizes = shared.workload.write(template.form, session, out);
            sizes.as_ref().map_or(0, |s| s.output_tokens)
        });
        let sizes = match sizes {
            Ok(sizes) => sizes,
            Err(reason) => {
                (record.sent_ns, record.end_ns) = (shared.clock.now_ns(), shared.clock.now_ns());
                return Err(Failure::Broken(reason));
            }
        };
        record.prompt_tokens = sizes.prompt_tokens.unwrap_or(0);
        record.sent_ns = shared.clock.now_ns();
        self.said.clear();
        let wanted = Wanted {
            output_tokens: sizes.output_tokens,
            said: session.goes_on(),
        };
        let result =
            match timeout(shared.timeouts.total, self.exchange(shared, wanted, record)).await {
                Ok(result) => result,
                Err(_) => Err(Failure::Broken(format!(
                    "no end of the answer within {} s",
                    shared.timeouts.total.as_secs_f64()
                ))),
            };
        match &result {
            Err(failure) => {
                record.end_ns = shared.clock.now_ns();
                self.pause = failure.retry_after();
            }
            Ok(usage) => {
                let prompt = self.body.get(prompt).unwrap_or_default();
                if sizes.prompt_tokens.is_none() && usage.is_none_or(|u| u.prompt_tokens.is_none())
                {
                    record.prompt_tokens = shared.count_prompt(prompt);
                }
                if template.generates {
                    shared.counters.compare(&sizes, *usage, record);
                }
                let answer = match session.goes_on() {
                    true => shared.workload.answer(session),
                    false => None,
                };
                session.advance(
                    template.form,
                    prompt,
                    answer.as_deref().unwrap_or(&self.said),
                    record.prompt_tokens + record.output_tokens,
                    record.end_ns,
                );
            }
        }
        result
    }

    async fn exchange(
        &mut self,
        shared: &Shared,
        wanted: Wanted,
        record: &mut RequestRecord,
    ) -> Result<Option<Usage>, Failure> {
        let (mut link, head) = self.answer(shared, record).await?;
        if let (200, Some(encoding)) = (head.status, &head.encoding) {
            return Err(Failure::Broken(format!(
                "the answer is compressed ({encoding}), which was not asked for"
            )));
        }
        let usage = if head.status == 200 {
            self.read_answer(shared, wanted, &mut link, &head, record)
                .await
                .map_err(Failure::Broken)?
        } else {
            let mut body = Vec::new();
            let reading = link.body(&head, |data, _| keep(&mut body, data, MAX_REFUSAL));
            // If it does not end well, that does not matter: the status is known.
            if let Ok(Ok(())) = timeout(REFUSAL_LIMIT, reading).await
                && link.reusable(&head)
            {
                self.link = Some(link);
            }
            return Err(refusal(&head, &body));
        };
        record.end_ns = link.arrival_ns();
        if link.reusable(&head) {
            self.link = Some(link);
        }
        Ok(usage)
    }

    /// Send, and read the head of the answer. A connection that the server has meanwhile ended is replaced, as
    /// any HTTP client does; that is no error of the request.
    async fn answer(
        &mut self,
        shared: &Shared,
        record: &mut RequestRecord,
    ) -> Result<(Link, Head), Failure> {
        let mut replaced = 0;
        loop {
            let mut link = match self.link.take() {
                Some(link) => link,
                None => {
                    let links = &self.links;
                    let link = links.link(&shared.connector, shared.clock, &shared.counters);
                    link.await.map_err(Failure::Connect)?
                }
            };
            let replaceable = link.used() && replaced < MOST_REPLACED;
            replaced += 1;
            record.sent_ns = shared.clock.now_ns();
            match link.send(&self.wire).await {
                Err(_) if replaceable => continue,
                sent => sent.map_err(Failure::Broken)?,
            }
            match timeout(shared.timeouts.first_byte, link.head()).await {
                Ok(Ok(head)) => {
                    record.sent_ns = link.sent_ns().unwrap_or(record.sent_ns);
                    return Ok((link, head));
                }
                Ok(Err(ReadError::Stale(_))) if replaceable => continue,
                Ok(Err(e)) => return Err(Failure::Broken(e.into_reason())),
                Err(_) => {
                    let limit = shared.timeouts.first_byte.as_secs_f64();
                    return Err(Failure::Broken(format!("no answer within {limit} s")));
                }
            }
        }
    }

    async fn read_answer(
        &mut self,
        shared: &Shared,
        wanted: Wanted,
        link: &mut Link,
        head: &Head,
        record: &mut RequestRecord,
    ) -> Result<Option<Usage>, String> {
        let Client {
            sse, chunks, said, ..
        } = self;
        let said = wanted.said.then_some(said);
        let mut answer = Answer::new(shared, wanted.output_tokens, record, chunks, said);
        if head.event_stream {
            sse.reset();
            link.body(head, |data, at| {
                sse.feed(data, |event| answer.event(event, at))
            })
            .await?;
            let at = link.arrival_ns();
            sse.finish(|event| answer.event(event, at))?;
            answer.finish(head.ends_with_connection())
        } else {
            // The server does not stream: all tokens come at once, at the end.
            let mut body = Vec::new();
            link.body(head, |data, _| keep(&mut body, data, MAX_BODY))
                .await?;
            if body.trim_ascii_start().starts_with(b"<") {
                let page = chunk::excerpt(&body);
                return Err(format!(
                    "a web page (of a proxy?) in place of an answer: {page}"
                ));
            }
            answer.event(&body, link.arrival_ns())?;
            answer.finish(false)
        }
    }
}

/// Collect a body that is not a stream.
fn keep(body: &mut Vec<u8>, data: &[u8], most: usize) -> Result<(), String> {
    let fits = &data[..data.len().min(most.saturating_sub(body.len()))];
    body.extend_from_slice(fits);
    match fits.len() == data.len() {
        true => Ok(()),
        false => Err(format!("a body over {most} bytes")),
    }
}

/// A status that is not 200, with the server's words.
fn refusal(head: &Head, body: &[u8]) -> Failure {
    if let (300..400, Some(location)) = (head.status, &head.location) {
        let to = chunk::excerpt(location.as_bytes());
        return Failure::Status {
            status: head.status,
            message: format!(
                "points to {to}, which is not followed: pass that address with --target"
            ),
            retry_after: None,
        };
    }
    let message = match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(value) => {
            chunk::error_text(value.get("error").or(value.get("detail")).unwrap_or(&value))
        }
        Err(_) => chunk::excerpt(body),
    };
    Failure::Status {
        status: head.status,
        message,
        retry_after: head.retry_after.clone(),
    }
}
