//! A server of known timing, to measure a load generator with: each answer's first token a set time after
//! its request came (by the kernel's time-stamp), then a token at a set interval; with both times zero
//! the whole answer at once. What it really did it tells too:
//!
//! - `GET /mock`: requests so far, when the first came, how late tokens left; then counts from zero.
//! - with `--tell-times`, the `usage` of an answer of several tokens holds no counts but true times in
//!   microseconds: `prompt_tokens` is that from the request's arrival to the sending of the first token,
//!   `cached_tokens` that from the first to the last. Any client's results then hold, for each request, the
//!   truth beside what the client measured.
//!
//! Usage: `mock [--port 0] [--ttft-ms 100] [--itl-ms 10] [--threads 1] [--tell-times]`; the first line on
//! stdout is the address.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

// As punctual as the client, by the same means; they have tests of their own.
#[path = "../src/kernel_time.rs"]
mod kernel_time;
#[path = "../src/system.rs"]
mod system;

struct Settings {
    ttft: Duration,
    itl: Duration,
    tell_times: bool,
}

fn flag(name: &str, default: f64) -> f64 {
    let mut args = std::env::args().skip_while(|a| a != name);
    args.nth(1).and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn main() -> std::io::Result<()> {
    if std::env::args().any(|a| a == "--help" || a == "-h") {
        println!("mock [--port 0] [--ttft-ms 100] [--itl-ms 10] [--threads 1] [--tell-times]");
        return Ok(());
    }
    system::make_room_for_connections();
    let settings = Settings {
        ttft: Duration::from_secs_f64(flag("--ttft-ms", 100.0) / 1e3),
        itl: Duration::from_secs_f64(flag("--itl-ms", 10.0) / 1e3),
        tell_times: std::env::args().any(|a| a == "--tell-times"),
    };
    let mock = Arc::new(Mock {
        settings,
        seen: Mutex::default(),
        wording: [Wording::new(false), Wording::new(true)],
    });
    let port = flag("--port", 0.0) as u16;
    let listener = runtime()?.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        // A whole answer of tokens that had to wait for a core: one full connection would hold up all.
        socket.set_send_buffer_size(1 << 20)?;
        socket.bind(([127, 0, 0, 1], port).into())?;
        // A thousand clients may come at once.
        socket.listen(4096)?.into_std()
    })?;
    println!("http://{}", listener.local_addr()?);
    let mut threads = Vec::new();
    for _ in 0..flag("--threads", 1.0).max(1.0) as usize {
        let (mock, listener) = (mock.clone(), listener.try_clone()?);
        threads.push(std::thread::spawn(move || accept(&mock, listener)));
    }
    for thread in threads {
        thread.join().unwrap_or(Ok(()))?;
    }
    Ok(())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

struct Mock {
    settings: Settings,
    seen: Mutex<Seen>,
    /// For completions and for chats.
    wording: [Wording; 2],
}

/// What happened since it was last asked.
#[derive(Default)]
struct Seen {
    requests: u64,
    first_unix_ns: Option<u64>,
    /// How late each token left, microseconds.
    late_us: Vec<u32>,
}

impl Seen {
    fn json(&mut self) -> String {
        self.late_us.sort_unstable();
        let late = |share: f64| {
            let last = self.late_us.len().saturating_sub(1);
            let us = self.late_us.get((last as f64 * share) as usize);
            f64::from(us.copied().unwrap_or(0)) / 1e3
        };
        format!(
            r#"{{"requests":{},"first_unix_ns":{},"late_p50_ms":{},"late_p99_ms":{},"late_max_ms":{}}}"#,
            self.requests,
            self.first_unix_ns.unwrap_or(0),
            late(0.5),
            late(0.99),
            late(1.0)
        )
    }
}

/// The parts of a stream that never change, framed as HTTP chunks.
struct Wording {
    first: String,
    middle: String,
    last: String,
}

const HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

impl Wording {
    fn new(chat: bool) -> Self {
        let token = |reason: &str| {
            let (object, content) = match chat {
                true => ("chat.completion.chunk", r#""delta":{"content":" hello"}"#),
                false => ("text_completion", r#""text":" hello""#),
            };
            chunk(&format!(
                r#"{{"id":"cmpl-1","object":"{object}","created":1,"model":"mock","choices":[{{"index":0,{content},"logprobs":null,"finish_reason":{reason}}}]}}"#
            ))
        };
        Wording {
            first: format!("{HEAD}{}", token("null")),
            middle: token("null"),
            last: token("\"length\""),
        }
    }

    /// Token `i` of `n`.
    fn token(&self, i: u64, n: u64) -> &str {
        match i {
            0 => &self.first,
            i if i + 1 == n => &self.last,
            _ => &self.middle,
        }
    }
}

fn chunk(event: &str) -> String {
    let event = format!("data: {event}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len())
}

/// What follows the last token.
fn end(prompt_tokens: u64, cached_tokens: u64, tokens: u64) -> String {
    let total = prompt_tokens + tokens;
    chunk(&format!(
        r#"{{"id":"cmpl-1","object":"text_completion","created":1,"model":"mock","choices":[],"usage":{{"prompt_tokens":{prompt_tokens},"completion_tokens":{tokens},"total_tokens":{total},"prompt_tokens_details":{{"cached_tokens":{cached_tokens}}}}}}}"#
    )) + &chunk("[DONE]")
        + "0\r\n\r\n"
}

/// One thread's connections, with a thread beside it that sends tokens when they are due.
fn accept(mock: &Arc<Mock>, listener: std::net::TcpListener) -> std::io::Result<()> {
    let (due, inbox) = channel();
    let pacer = mock.clone();
    std::thread::spawn(move || pace(&pacer, &inbox));
    let runtime = runtime()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            kernel_time::ask(socket.as_fd());
            let (mock, due) = (mock.clone(), due.clone());
            // An error is a client that went away.
            tokio::spawn(async move { mock.serve(Arc::new(socket), due).await });
        }
    })
}

/// An answer that is being sent.
struct Answer {
    socket: Arc<TcpStream>,
    chat: bool,
    tokens: u64,
    prompt_tokens: u64,
    sent: u64,
    arrived: Instant,
    first_sent: Instant,
    due: Instant,
}

/// Send tokens when they are due.
fn pace(mock: &Mock, inbox: &Receiver<Answer>) {
    system::be_prompt();
    let mut waiting: BTreeMap<(Instant, u64), Answer> = BTreeMap::new();
    let mut number = 0;
    let mut late_us = Vec::new();
    loop {
        let next = waiting.first_key_value().map(|((due, _), _)| *due);
        let wait = next.map(|due| due.saturating_duration_since(Instant::now()));
        let new = match wait {
            None => inbox.recv().ok(),
            Some(Duration::ZERO) => inbox.try_recv().ok(),
            Some(wait) => inbox.recv_timeout(wait).ok(),
        };
        if let Some(answer) = new {
            number += 1;
            waiting.insert((answer.due, number), answer);
            continue;
        }
        if wait.is_none() {
            return;
        }
        while let Some(entry) = waiting.first_entry() {
            let now = Instant::now();
            let (due, number) = *entry.key();
            if due > now {
                break;
            }
            let mut answer = entry.remove();
            late_us.push((now - due).as_micros() as u32);
            if answer.send_next(mock, now) {
                waiting.insert((answer.due, number), answer);
            }
        }
        mock.seen().late_us.append(&mut late_us);
    }
}

impl Answer {
    /// Send a token, and the end behind the last one. Is there another to come?
    fn send_next(&mut self, mock: &Mock, now: Instant) -> bool {
        let wording = &mock.wording[usize::from(self.chat)];
        if self.sent == 0 {
            self.first_sent = now;
        }
        let token = wording.token(self.sent, self.tokens);
        self.sent += 1;
        self.due += mock.settings.itl;
        if self.sent < self.tokens {
            return write(&self.socket, token.as_bytes());
        }
        let (prompt, cached) = match mock.settings.tell_times && self.tokens > 1 {
            true => (self.first_sent - self.arrived, now - self.first_sent),
            false => (Duration::from_micros(self.prompt_tokens), Duration::ZERO),
        };
        let end = end(
            prompt.as_micros() as u64,
            cached.as_micros() as u64,
            self.tokens,
        );
        let last = [token, &end].concat();
        write(&self.socket, last.as_bytes());
        false
    }
}

/// Write all, waiting for a client that does not read. False if it went away.
fn write(socket: &TcpStream, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match socket.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_micros(50));
            }
            Err(_) => return false,
        }
    }
    true
}

/// A request's bytes.
struct Request<'a> {
    line: &'a [u8],
    body: &'a [u8],
}

impl Mock {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(&self, socket: Arc<TcpStream>, due: Sender<Answer>) -> std::io::Result<()> {
        let (mut buffer, mut filled) = (vec![0; 8192], 0);
        // The last answer that was sent at once, and what it answered: most requests are alike.
        let (mut answered, mut whole) = ((0, 0, false), String::new());
        loop {
            let mut arrived = (Instant::now(), 0);
            let length = loop {
                if let Some(length) = request_length(&buffer[..filled]).filter(|n| *n <= filled) {
                    break length;
                }
                if filled == buffer.len() {
                    buffer.resize(2 * filled, 0);
                }
                let read = || kernel_time::receive(socket.as_fd(), &mut buffer[filled..]);
                let got = socket.async_io(Interest::READABLE, read).await?;
                if got.bytes == 0 {
                    return Ok(());
                }
                filled += got.bytes;
                arrived = arrival(got.kernel_ns);
            };
            let head = memchr::memmem::find(&buffer, b"\r\n\r\n").unwrap_or(0);
            let request = Request {
                line: &buffer[..head],
                body: &buffer[head..length],
            };
            if !request.line.starts_with(b"POST /v1/") {
                let answer = self.lookup(&request);
                write(&socket, answer.as_bytes());
            } else {
                let (chat, tokens, prompt_tokens) = request.wants();
                let answer = Answer {
                    socket: socket.clone(),
                    chat,
                    tokens,
                    prompt_tokens,
                    sent: 0,
                    arrived: arrived.0,
                    first_sent: arrived.0,
                    due: arrived.0 + self.settings.ttft,
                };
                if tokens > 1 {
                    let mut seen = self.seen();
                    seen.requests += 1;
                    seen.first_unix_ns.get_or_insert(arrived.1);
                }
                if !(self.settings.ttft.is_zero() && self.settings.itl.is_zero()) {
                    let _ = due.send(answer);
                } else {
                    let asked = (prompt_tokens, tokens, chat);
                    if answered != asked {
                        answered = asked;
                        whole.clear();
                        let wording = &self.wording[usize::from(chat)];
                        (0..tokens).for_each(|i| whole.push_str(wording.token(i, tokens)));
                        let _ = whole.write_str(&end(prompt_tokens, 0, tokens));
                    }
                    write(&socket, whole.as_bytes());
                }
            }
            buffer.copy_within(length..filled, 0);
            filled -= length;
        }
    }

    fn lookup(&self, request: &Request<'_>) -> String {
        let (status, body) = match request.line {
            [b'G', b'E', b'T', b' ', path @ ..] if path.starts_with(b"/v1/models ") => (
                "200 OK",
                r#"{"object":"list","data":[{"id":"mock","object":"model"}]}"#.to_owned(),
            ),
            [b'G', b'E', b'T', b' ', path @ ..] if path.starts_with(b"/mock ") => {
                ("200 OK", std::mem::take(&mut *self.seen()).json())
            }
            [b'G', b'E', b'T', b' ', path @ ..] if path.starts_with(b"/health ") => {
                ("200 OK", "{}".to_owned())
            }
            _ => ("404 Not Found", "{}".to_owned()),
        };
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

/// When bytes came: by our clock, and nanoseconds since 1970.
fn arrival(kernel_ns: Option<u64>) -> (Instant, u64) {
    let (wall, now) = (SystemTime::now(), Instant::now());
    let wall_ns = wall
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos() as u64;
    let lag_ns = kernel_ns.map_or(0, |at| wall_ns.saturating_sub(at));
    (now - Duration::from_nanos(lag_ns), wall_ns - lag_ns)
}

/// Bytes of the request at the start of `bytes`, if its head is whole.
fn request_length(bytes: &[u8]) -> Option<usize> {
    let head = memchr::memmem::find(bytes, b"\r\n\r\n")?;
    let name = b"content-length:";
    let at = bytes[..head]
        .windows(name.len())
        .position(|w| w.eq_ignore_ascii_case(name));
    let length = at.map_or(0, |at| number_at(&bytes[at + name.len()..]));
    Some(head + 4 + length as usize)
}

/// The number at the start of `bytes`, behind blanks.
fn number_at(bytes: &[u8]) -> u64 {
    let digits = bytes.trim_ascii_start().iter();
    digits
        .take_while(|b| b.is_ascii_digit())
        .fold(0, |n, b| n * 10 + u64::from(b - b'0'))
}

impl Request<'_> {
    /// What is asked for: (is it a chat, output tokens, prompt tokens). A word is a token, and there is
    /// one in front: what a client can calibrate by.
    fn wants(&self) -> (bool, u64, u64) {
        let chat = self.line.starts_with(b"POST /v1/chat");
        let after = |name: &str| {
            let at = memchr::memmem::find(self.body, name.as_bytes());
            at.map(|at| &self.body[at + name.len()..])
        };
        let tokens = after("\"max_tokens\":").or(after("\"max_completion_tokens\":"));
        let prompt = after(if chat { "\"content\":" } else { "\"prompt\":" });
        let words = prompt.map_or(0, |prompt| {
            let text = prompt.trim_ascii_start().strip_prefix(b"\"");
            let text = text.unwrap_or_default();
            let end = memchr::memchr(b'"', text).unwrap_or(0);
            1 + memchr::memchr_iter(b' ', &text[..end]).count() as u64
        });
        (chat, tokens.map_or(16, number_at).max(1), 1 + words)
    }
}
