//! HTTP/2: many requests over one connection. The framing is the library's (`h2`), whose task reads; what an
//! instrument has to know besides is kept here:
//!
//! - Which read a piece of an answer came with. The connection's task hands out what one read brought, and the
//!   streams' tasks, woken by that, run before it reads again (a worker's runtime is one thread and first come,
//!   first served). So the time of the newest read is a piece's own.
//! - When a request left: with the first write after it was handed over, and not when it was handed over.
//! - That nothing queues in here. A connection gives out no more seats than the server takes streams; who finds
//!   none opens another connection.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use crate::clock::Clock;
use crate::head::Head;
use crate::http1::{MAX_HEAD, ReadError, paused};
use crate::transport::Transport;

/// Streams of a connection where the server allows more, as common clients have it: so that not one lost
/// packet stops them all.
const MOST_STREAMS: usize = 100;
/// What the server may send of an answer before it was read, bytes: seconds of tokens.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same for all streams of a connection: no stream waits for another to be read.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MOST_STREAMS as u32;

/// What the connection's task tells its streams of its reads and writes.
struct Times {
    clock: Clock,
    /// When the newest bytes reached this machine, ns.
    arrival_ns: AtomicU64,
    /// Where the time of the next write is wanted.
    leaving: Mutex<Vec<Arc<AtomicU64>>>,
    /// Is there any such place? A write that looks takes no lock for nothing.
    any_leaving: AtomicBool,
}

impl Times {
    /// A request is handed over: where its leaving is noted (0 until then), ns.
    fn leaves(&self) -> Arc<AtomicU64> {
        let place = Arc::new(AtomicU64::new(0));
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.push(place.clone());
        self.any_leaving.store(true, Relaxed);
        place
    }

    fn written(&self, at_ns: u64) {
        if self.any_leaving.swap(false, Relaxed) {
            let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
            leaving.drain(..).for_each(|p| p.store(at_ns, Relaxed));
        }
    }
}

/// A transport whose reads and writes are noted.
struct Timed {
    transport: Transport,
    times: Arc<Times>,
}

impl AsyncRead for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.transport).poll_read(cx, buf);
        let arrival_ns = self.transport.socket().arrival_ns();
        self.times.arrival_ns.store(arrival_ns, Relaxed);
        result
    }
}

impl AsyncWrite for Timed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Its beginning, as with a request that has its connection for itself.
        let begun_ns = self.times.clock.now_ns();
        let result = Pin::new(&mut self.transport).poll_write(cx, buf);
        if result.is_ready() {
            self.times.written(begun_ns);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

/// An open connection. It closes when its last seat is given up and nobody else keeps it.
pub(crate) struct Http2 {
    sender: SendRequest<Bytes>,
    times: Arc<Times>,
    scheme: &'static str,
    idle: Option<Duration>,
    seats: AtomicUsize,
    in_flight: AtomicUsize,
    /// Requests carried to their end.
    served: AtomicU64,
}

impl Http2 {
    /// Begin to talk over `transport`, up to the server's settings. The error is a sentence for an outcome.
    pub async fn begin(
        mut transport: Transport,
        clock: Clock,
        idle: Option<Duration>,
    ) -> Result<Arc<Self>, String> {
        let scheme = match transport {
            Transport::Plain(_) => "http",
            Transport::Tls(_) => "https",
        };
        transport.socket_mut().take_turns();
        let times = Arc::new(Times {
            clock,
            arrival_ns: AtomicU64::new(clock.now_ns()),
            leaving: Mutex::default(),
            any_leaving: AtomicBool::new(false),
        });
        let timed = Timed {
            transport,
            times: times.clone(),
        };
        let (sender, mut connection) = Builder::new()
            // None before the server's settings have said how many.
            .initial_max_send_streams(0)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD as u32)
            .max_concurrent_reset_streams(MOST_STREAMS)
            .enable_push(false)
            .handshake(timed)
            .await
            .map_err(|e| no_http2(Some(&e)))?;
        poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(end) => Poll::Ready(Err(no_http2(end.err().as_ref()))),
            Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await?;
        tokio::spawn(async move {
            // Each of its streams tells the reason.
            let _ = connection.await;
        });
        Ok(Arc::new(Http2 {
            sender,
            times,
            scheme,
            idle,
            seats: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            served: AtomicU64::new(0),
        }))
    }

    /// Does it take requests?
    pub fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.sender.clone().poll_ready(&mut cx), Poll::Ready(Ok(())))
    }

    /// Take a seat if there is one.
    pub fn seat(self: &Arc<Self>) -> Option<Seat> {
        let most = self.sender.current_max_send_streams().min(MOST_STREAMS);
        if self.seats.load(Relaxed) >= most {
            return None;
        }
        self.seats.fetch_add(1, Relaxed);
        Some(Seat {
            sender: self.sender.clone(),
            connection: self.clone(),
            exchange: None,
        })
    }
}

/// The right to one stream at a time.
pub(crate) struct Seat {
    connection: Arc<Http2>,
    sender: SendRequest<Bytes>,
    exchange: Option<Exchange>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connection.seats.fetch_sub(1, Relaxed);
    }
}

/// A request and its answer. When it is dropped before its end, the server is told to stop.
struct Exchange {
    answer: Answer,
    handed_over_ns: u64,
    left_ns: Arc<AtomicU64>,
    _in_flight: InFlight,
}

enum Answer {
    Due(ResponseFuture),
    Body(RecvStream),
}

struct InFlight(Arc<Http2>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl Seat {
    /// Has the connection carried a request to its end?
    pub fn served(&self) -> bool {
        self.connection.served.load(Relaxed) > 0
    }

    /// Hand over a request that is written in HTTP/1.1.
    pub fn send(&mut self, request: &[u8]) -> Result<(), String> {
        self.exchange = None;
        let connection = &self.connection;
        let (head, body) = translate(request, connection.scheme)?;
        // The server may allow less than when the seat was taken.
        let most = self.sender.current_max_send_streams();
        if connection.in_flight.load(Relaxed) >= most {
            return Err(format!("the server takes only {most} streams now"));
        }
        let lost = |e: h2::Error| reason(&e, "while sending");
        let left_ns = connection.times.leaves();
        let handed_over_ns = connection.times.clock.now_ns();
        let (answer, mut sending) =
            (self.sender.send_request(head, body.is_empty())).map_err(lost)?;
        if !body.is_empty() {
            sending.send_data(body, true).map_err(lost)?;
        }
        connection.in_flight.fetch_add(1, Relaxed);
        self.exchange = Some(Exchange {
            answer: Answer::Due(answer),
            handed_over_ns,
            left_ns,
            _in_flight: InFlight(connection.clone()),
        });
        Ok(())
    }

    /// When the request left, ns; before its first write, when it was handed over.
    pub fn sent_ns(&self) -> u64 {
        self.exchange
            .as_ref()
            .map_or(0, |e| e.handed_over_ns.max(e.left_ns.load(Relaxed)))
    }

    /// When the newest of the bytes that were given out reached this machine, ns.
    pub fn arrival_ns(&self) -> u64 {
        let newest = self.connection.times.arrival_ns.load(Relaxed);
        newest.max(self.sent_ns())
    }

    /// The head of the answer.
    pub async fn head(&mut self) -> Result<Head, ReadError> {
        let Some(Exchange { answer, .. }) = &mut self.exchange else {
            return Err(ReadError::Broken("no request was sent".into()));
        };
        let Answer::Due(due) = answer else {
            return Err(ReadError::Broken("the head was read already".into()));
        };
        let (head, body) = match due.await {
            Ok(response) => response.into_parts(),
            Err(e) => {
                let reason = reason_of(&e, "before an answer", &self.sender);
                return Err(match untouched(&e) {
                    true => ReadError::Stale(reason),
                    false => ReadError::Broken(reason),
                });
            }
        };
        *answer = Answer::Body(body);
        let mut found = Head::of_frames(head.status.as_u16());
        for (name, value) in &head.headers {
            found
                .note(name.as_str(), value.as_bytes())
                .map_err(ReadError::Broken)?;
        }
        Ok(found)
    }

    /// The body to its end, as [`read_body`](crate::http1::read_body).
    pub async fn body(
        &mut self,
        mut on_data: impl FnMut(&[u8], u64) -> Result<(), String>,
    ) -> Result<(), String> {
        loop {
            let Some(Answer::Body(body)) = self.exchange.as_mut().map(|e| &mut e.answer) else {
                return Err("no head was read".into());
            };
            let piece = match self.connection.idle {
                None => body.data().await,
                Some(limit) => (timeout(limit, body.data()).await).map_err(|_| paused(limit))?,
            };
            let Some(piece) = piece else {
                self.connection.served.fetch_add(1, Relaxed);
                return Ok(());
            };
            let piece = piece.map_err(|e| reason_of(&e, "within the response", &self.sender))?;
            // It was read: the server may send as much again. An error of this call is that of the next read.
            let _ = body.flow_control().release_capacity(piece.len());
            on_data(&piece, self.arrival_ns())?;
        }
    }
}

/// A request of HTTP/1.1 as one of HTTP/2: (head, body).
fn translate(request: &[u8], scheme: &str) -> Result<(http::Request<()>, Bytes), String> {
    let mut headers = [httparse::EMPTY_HEADER; 256];
    let mut parsed = httparse::Request::new(&mut headers);
    let unfit = |problem: &dyn std::fmt::Display| format!("not fit for HTTP/2: {problem}");
    let length = match parsed.parse(request) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Err(unfit(&"the request's head has no end")),
        Err(e) => return Err(unfit(&e)),
    };
    let mut builder = http::Request::builder()
        .method(parsed.method.unwrap_or_default())
        .version(http::Version::HTTP_2);
    let mut authority: &[u8] = b"";
    for header in parsed.headers.iter() {
        if header.name.eq_ignore_ascii_case("host") {
            authority = header.value;
        } else {
            builder = builder.header(header.name, header.value);
        }
    }
    let uri = http::Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(parsed.path.unwrap_or("/"))
        .build()
        .map_err(|e| unfit(&e))?;
    let head = builder.uri(uri).body(()).map_err(|e| unfit(&e))?;
    Ok((head, Bytes::copy_from_slice(&request[length..])))
}

/// Has the server said that it ends the connection and has not looked at the request? It may be sent again then.
fn untouched(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
}

/// As [`reason`], of a stream; but where its connection is at its end, the server's last word on that says more.
fn reason_of(error: &h2::Error, place: &str, sender: &SendRequest<Bytes>) -> String {
    let mut cx = Context::from_waker(Waker::noop());
    match sender.clone().poll_ready(&mut cx) {
        Poll::Ready(Err(end)) if error.is_io() && end.is_go_away() => reason(&end, place),
        _ => reason(error, place),
    }
}

/// What an error of the library means, in the words of an outcome. `place`: where in the exchange it came.
fn reason(error: &h2::Error, place: &str) -> String {
    let code = error.reason().unwrap_or(Reason::INTERNAL_ERROR);
    if error.is_reset() && error.is_remote() {
        match code {
            Reason::REFUSED_STREAM => "the server refused the stream (REFUSED_STREAM)".into(),
            Reason::HTTP_1_1_REQUIRED => {
                "the server wants HTTP/1.1 for this (HTTP_1_1_REQUIRED): pass --http 1.1".into()
            }
            _ => format!("the server reset the stream {place} ({code:?})"),
        }
    } else if error.is_go_away() && error.is_remote() {
        format!("the server ended the connection {place} (GOAWAY: {code:?})")
    } else if error.is_library() {
        format!("the server broke the rules of HTTP/2 {place} ({code:?})")
    } else {
        match error.get_io() {
            // The library's word for the end of the connection's bytes.
            Some(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                format!("connection closed {place}")
            }
            Some(e) => format!("connection lost {place}: {e}"),
            None => format!("{error} {place}"),
        }
    }
}

/// Why no settings came.
fn no_http2(error: Option<&h2::Error>) -> String {
    let detail = match error {
        Some(error) => reason(error, "at its beginning"),
        None => "connection closed at its beginning".into(),
    };
    format!("no HTTP/2 with this server (--http 1.1 does without): {detail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_in_both_versions() {
        let request =
            b"POST /v1/completions HTTP/1.1\r\nHost: h:1\r\nX-A: b\r\nContent-Length: 2\r\n\r\n{}";
        let (head, body) = translate(request, "https").unwrap();
        assert_eq!(head.uri(), "https://h:1/v1/completions");
        assert_eq!((head.method().as_str(), &body[..]), ("POST", &b"{}"[..]));
        assert_eq!(head.headers()["x-a"], "b");
        assert_eq!(head.headers().len(), 2);
        for bad in [
            "",
            "POST / HTTP/1.1\r\n",
            "POST / HTTP/1.1\r\nHost: a b\r\n\r\n",
        ] {
            assert!(translate(bad.as_bytes(), "http").is_err(), "{bad:?}");
        }
    }
}
