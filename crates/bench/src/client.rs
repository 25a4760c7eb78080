//! One client: sends a request, reads its stream, fills the record. Its connection stays open from one
//! request to the next.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::timeout;

use crate::body::RequestTemplate;
use crate::chunk::{self, ChunkInfo, Content, Usage};
use crate::clock::Clock;
use crate::config::TokenCounter;
use crate::connect::{Connection, Connector};
use crate::counters::Counters;
use crate::data::Workload;
use crate::data::session::{Session, Sizes};
use crate::http1::{Head, ReadError, read_body, read_head};
use crate::record::{RequestRecord, TokenSource};
use crate::repeat::ChunkParser;
use crate::sse::SseParser;
use crate::target::Timeouts;

/// Largest body that is not a stream (an error, an answer of a server that does not stream), bytes.
const MAX_BODY: usize = 16 * 1024 * 1024;

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
            } => after.parse().ok().map(Duration::from_secs),
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
    connection: Option<Connection>,
    sse: SseParser,
    chunks: ChunkParser,
    wire: Vec<u8>,
    body: Vec<u8>,
    /// What the server said, where that is needed.
    said: String,
}

impl Client {
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
        let (mut connection, head) = self.answer(shared, record).await?;
        if let (200, Some(encoding)) = (head.status, &head.encoding) {
            return Err(Failure::Broken(format!(
                "the answer is compressed ({encoding}), which was not asked for"
            )));
        }
        let usage = if head.status == 200 {
            self.read_answer(shared, wanted, &mut connection, &head, record)
                .await
                .map_err(Failure::Broken)?
        } else {
            let mut body = Vec::new();
            // A cut in an error's body does not matter: the status is known.
            let _ = read_body(&mut connection, &head, |data, _| keep(&mut body, data)).await;
            return Err(refusal(&head, &body));
        };
        record.end_ns = connection.arrival_ns();
        connection.served += 1;
        if head.reusable() && connection.unread().is_empty() {
            self.connection = Some(connection);
        }
        Ok(usage)
    }

    /// Send, and read the head of the answer. A kept connection that the server has meanwhile closed is
    /// replaced once, as any HTTP client does; that is no error of the request.
    async fn answer(
        &mut self,
        shared: &Shared,
        record: &mut RequestRecord,
    ) -> Result<(Connection, Head), Failure> {
        loop {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => {
                    let begun_ns = shared.clock.now_ns();
                    let opened = shared.connector.open(shared.clock).await;
                    let connection = opened.map_err(Failure::Connect)?;
                    shared.counters.connected(shared.clock.now_ns() - begun_ns);
                    connection
                }
            };
            let kept = connection.served > 0;
            record.sent_ns = shared.clock.now_ns();
            if let Err(e) = connection.send(&self.wire).await {
                if kept {
                    continue;
                }
                return Err(Failure::Broken(format!(
                    "connection lost while sending: {e}"
                )));
            }
            match timeout(shared.timeouts.first_byte, read_head(&mut connection)).await {
                Ok(Ok(head)) => return Ok((connection, head)),
                Ok(Err(ReadError::Stale(_))) if kept => continue,
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
        connection: &mut Connection,
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
            read_body(connection, head, |data, at| {
                sse.feed(data, |event| answer.event(event, at))
            })
            .await?;
            let at = connection.arrival_ns();
            sse.finish(|event| answer.event(event, at))?;
            answer.finish(head.ends_with_connection())
        } else {
            // The server does not stream: all tokens come at once, at the end.
            let mut body = Vec::new();
            read_body(connection, head, |data, _| keep(&mut body, data)).await?;
            if body.trim_ascii_start().starts_with(b"<") {
                let page = chunk::excerpt(&body);
                return Err(format!(
                    "a web page (of a proxy?) in place of an answer: {page}"
                ));
            }
            answer.event(&body, connection.arrival_ns())?;
            answer.finish(false)
        }
    }
}

/// Collect a body that is not a stream.
fn keep(body: &mut Vec<u8>, data: &[u8]) -> Result<(), String> {
    if body.len() + data.len() > MAX_BODY {
        return Err(format!("a body over {MAX_BODY} bytes"));
    }
    body.extend_from_slice(data);
    Ok(())
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

/// An answer as it comes in.
struct Answer<'a> {
    shared: &'a Shared,
    record: &'a mut RequestRecord,
    chunks: &'a mut ChunkParser,
    usage: Option<Usage>,
    /// `[DONE]` or a finish reason was seen.
    ended: bool,
    /// Only chunks without visible text so far: they count if nothing else ever comes.
    blank: bool,
    /// A last chunk without text, with the finish reason: a token only if `usage` says so.
    blank_end_ns: Option<u64>,
    /// Tokens came in an answer that is not streamed.
    whole: bool,
    /// The text, where a tokenizer will have to count it.
    text: Option<String>,
    /// The text without reasoning, where the next turn begins with it.
    said: Option<&'a mut String>,
}

impl<'a> Answer<'a> {
    fn new(
        shared: &'a Shared,
        output_tokens: u64,
        record: &'a mut RequestRecord,
        chunks: &'a mut ChunkParser,
        said: Option<&'a mut String>,
    ) -> Self {
        // A sane guess, whatever was asked for: the vector grows if need be.
        record.gaps_us.reserve(output_tokens.min(4096) as usize);
        Answer {
            shared,
            record,
            chunks,
            usage: None,
            ended: false,
            blank: true,
            blank_end_ns: None,
            whole: false,
            text: shared.tokenizer.is_some().then(String::new),
            said,
        }
    }

    /// One event of the stream, arrived at `at`.
    fn event(&mut self, data: &[u8], at: u64) -> Result<(), String> {
        self.record.iterations += 1;
        if data == b"[DONE]" {
            self.ended = true;
            return Ok(());
        }
        let ChunkInfo {
            content,
            finished,
            usage,
            error,
        } = self.chunks.parse(data)?;
        if let Some(error) = error {
            return Err(format!("the server reported in the stream: {error}"));
        }
        self.ended |= finished;
        self.usage = usage.or(self.usage);
        if self.text.is_some() || self.said.is_some() {
            self.keep_text(data);
        }
        if !self.shared.template.streams {
            // Tokens that come all at once, as was asked for, have no times of their own.
            self.whole |= content != Content::None;
            return Ok(());
        }
        match content {
            Content::None => {}
            Content::Blank if finished => self.blank_end_ns = Some(at),
            Content::Blank if self.blank => self.token(at),
            Content::Blank => {}
            Content::Reasoning | Content::Text => {
                if std::mem::take(&mut self.blank) {
                    self.record.first_token_ns = None;
                    self.record.chunks = 0;
                    self.record.gaps_us.clear();
                }
                self.token(at);
                if content == Content::Text && self.record.first_output_token_ns.is_none() {
                    self.record.first_output_token_ns = Some(at);
                }
            }
        }
        Ok(())
    }

    fn keep_text(&mut self, data: &[u8]) {
        chunk::take_text(data, |part, reasoning| {
            if let Some(text) = &mut self.text {
                text.push_str(part);
            }
            if let Some(said) = &mut self.said
                && !reasoning
                && said.len() + part.len() <= MAX_BODY
            {
                said.push_str(part);
            }
        });
    }

    fn token(&mut self, at: u64) {
        let record = &mut *self.record;
        match (record.first_token_ns, record.last_token_ns) {
            // Differences of rounded times, not rounded differences: these do not add up to a drift.
            (Some(first), Some(last)) => {
                let gap = (at - first) / 1000 - (last - first) / 1000;
                record.gaps_us.push(u32::try_from(gap).unwrap_or(u32::MAX));
            }
            _ => {
                record.first_token_ns = Some(at);
                let counters = &self.shared.counters;
                counters.first_tokens.fetch_add(1, Relaxed);
                counters
                    .first_token_us
                    .fetch_add(at.saturating_sub(record.sent_ns) / 1000, Relaxed);
            }
        }
        record.last_token_ns = Some(at);
        record.chunks += 1;
        self.shared.counters.chunks.fetch_add(1, Relaxed);
    }

    /// The body is complete. `must_end`: the framing cannot tell a cut from an end, the stream has to.
    fn finish(mut self, must_end: bool) -> Result<Option<Usage>, String> {
        let counted = self.usage.and_then(|u| u.completion_tokens);
        if let Some(at) = self
            .blank_end_ns
            .filter(|_| self.blank && counted.is_some_and(|n| n > self.record.chunks))
        {
            self.token(at);
        }
        let template = &self.shared.template;
        if !self.ended && (must_end || self.usage.is_none() || !template.generates) {
            return Err(match template.generates {
                true => "the stream ended before its last chunk".into(),
                false => "the answer holds no embedding".into(),
            });
        }
        let record = self.record;
        if self.whole {
            record.chunks = 1;
        }
        if record.first_output_token_ns.is_none() && self.blank {
            record.first_output_token_ns = record.first_token_ns;
        }
        if let Some(prompt) = self.usage.and_then(|u| u.prompt_tokens) {
            record.prompt_tokens = prompt;
        }
        record.cached_tokens = self.usage.and_then(|u| u.cached_tokens);
        record.reasoning_tokens = self.usage.and_then(|u| u.reasoning_tokens);
        if !template.generates {
            record.token_source = match self.usage {
                Some(_) => TokenSource::Usage,
                None => TokenSource::Chunks,
            };
            return Ok(self.usage);
        }
        (record.output_tokens, record.token_source) = match (counted, &self.shared.tokenizer) {
            (Some(tokens), _) => (tokens, TokenSource::Usage),
            (None, Some(tokenizer)) => {
                let text = self.text.as_deref().unwrap_or_default();
                (tokenizer.count_output(text) as u64, TokenSource::Tokenizer)
            }
            (None, None) => (record.chunks, TokenSource::Chunks),
        };
        if record.chunks == 0 && record.output_tokens == 0 {
            return Err("the answer holds no token".into());
        }
        Ok(self.usage)
    }
}
