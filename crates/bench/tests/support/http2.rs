//! A server of HTTP/2 in the clear, with the faults that only HTTP/2 has.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault2 {
    None,
    /// RST_STREAM in place of an answer.
    Refuse(Reason),
    /// RST_STREAM after two tokens.
    Reset(Reason),
    /// After two tokens the connection goes, with GOAWAY.
    GoAway(Reason),
    /// After two tokens the socket is closed.
    Cut,
    /// The server lets the connection end when its streams have (a restart, a limit of requests).
    Retire,
    /// Nothing more after two tokens.
    Stall,
    /// A header of this many bytes.
    LongHeader(usize),
    /// 429 with Retry-After.
    Status429,
}

#[derive(Debug, Clone)]
pub struct Settings2 {
    pub ttft: Duration,
    pub itl: Duration,
    pub fault: Fault2,
    /// Only requests whose number (from 0) is a multiple of this have the fault.
    pub every: usize,
    /// MAX_CONCURRENT_STREAMS.
    pub most_streams: u32,
    /// Bytes of a token's text.
    pub token_bytes: usize,
}

impl Default for Settings2 {
    fn default() -> Self {
        Settings2 {
            ttft: Duration::ZERO,
            itl: Duration::ZERO,
            fault: Fault2::None,
            every: 1,
            most_streams: 250,
            token_bytes: 4,
        }
    }
}

#[derive(Default)]
pub struct Seen2 {
    /// Requests of each connection that has had any, by its number.
    pub of_connection: Mutex<BTreeMap<usize, usize>>,
    /// Generation requests of more than one token.
    pub requests: AtomicUsize,
    /// The most that one connection has carried at once.
    pub most_at_once: AtomicUsize,
    /// (authority, header `x-team`) of the newest request.
    pub newest: Mutex<(String, String)>,
}

pub struct Mock2 {
    pub address: SocketAddr,
    pub seen: Arc<Seen2>,
}

impl Mock2 {
    /// Connections with generation requests of more than one token.
    pub fn connections(&self) -> usize {
        self.seen.of_connection.lock().unwrap().len()
    }
}

pub async fn mock2(settings: Settings2) -> Mock2 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen2::default());
    let server = Arc::new(Server2 {
        settings,
        seen: seen.clone(),
    });
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(server.clone().connection(socket, number));
            number += 1;
        }
    });
    Mock2 { address, seen }
}

/// What a request asks of its connection.
enum Order {
    Leave(Reason),
    Retire,
    Cut,
}

struct Server2 {
    settings: Settings2,
    seen: Arc<Seen2>,
}

impl Server2 {
    async fn connection(self: Arc<Self>, socket: TcpStream, number: usize) {
        socket.set_nodelay(true).unwrap();
        let handshake = h2::server::Builder::new()
            .max_concurrent_streams(self.settings.most_streams)
            .handshake::<_, Bytes>(socket);
        let Ok(mut connection) = handshake.await else {
            return;
        };
        let at_once = Arc::new(AtomicUsize::new(0));
        let (orders, mut orders_in) = tokio::sync::mpsc::unbounded_channel();
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        let (server, orders) = (self.clone(), orders.clone());
                        let at_once = at_once.clone();
                        tokio::spawn(async move {
                            let now = at_once.fetch_add(1, SeqCst) + 1;
                            server.seen.most_at_once.fetch_max(now, SeqCst);
                            server.answer(request, respond, number, &orders, &at_once).await;
                        });
                    }
                    _ => return,
                },
                Some(order) = orders_in.recv() => match order {
                    Order::Leave(reason) => connection.abrupt_shutdown(reason),
                    Order::Retire => connection.graceful_shutdown(),
                    Order::Cut => return,
                },
            }
        }
    }

    async fn answer(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        connection: usize,
        orders: &tokio::sync::mpsc::UnboundedSender<Order>,
        at_once: &AtomicUsize,
    ) {
        let (head, mut body) = request.into_parts();
        let mut bytes = Vec::new();
        while let Some(Ok(piece)) = body.data().await {
            bytes.extend_from_slice(&piece);
            let _ = body.flow_control().release_capacity(piece.len());
        }
        let team = head.headers.get("x-team");
        *self.seen.newest.lock().unwrap() = (
            head.uri.authority().unwrap().to_string(),
            team.map_or("", |v| v.to_str().unwrap()).to_owned(),
        );
        // The client may send again as soon as it sees the end.
        let leave = || at_once.fetch_sub(1, SeqCst);
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let mut whole = |status: u16, value: Value| {
            leave();
            let head = Response::builder()
                .status(status)
                .header("retry-after", "2");
            if let Ok(mut out) = respond.send_response(head.body(()).unwrap(), false) {
                let _ = out.send_data(value.to_string().into(), true);
            }
        };
        match head.uri.path() {
            "/v1/models" => return whole(200, json!({"data": [{"id": "mock"}]})),
            "/v1/completions" => {}
            _ => return whole(404, json!({"error": {"message": "no such route"}})),
        }
        let tokens = body["max_tokens"].as_u64().unwrap();
        let fault = match tokens {
            1 => Fault2::None,
            _ => {
                let mut of = self.seen.of_connection.lock().unwrap();
                *of.entry(connection).or_default() += 1;
                let number = self.seen.requests.fetch_add(1, SeqCst);
                match number.is_multiple_of(self.settings.every) {
                    true => self.settings.fault,
                    false => Fault2::None,
                }
            }
        };
        let mut response = Response::builder().header("content-type", "text/event-stream");
        match fault {
            Fault2::Status429 => return whole(429, json!({"error": {"message": "slow down"}})),
            Fault2::Refuse(reason) => {
                leave();
                return respond.send_reset(reason);
            }
            Fault2::LongHeader(length) => response = response.header("x-long", "x".repeat(length)),
            Fault2::Retire => orders.send(Order::Retire).unwrap(),
            _ => {}
        }
        let Ok(mut out) = respond.send_response(response.body(()).unwrap(), false) else {
            leave();
            return;
        };
        tokio::time::sleep(self.settings.ttft).await;
        for i in 0..tokens {
            if i == 2 {
                let order = match fault {
                    Fault2::Reset(reason) => {
                        leave();
                        return out.send_reset(reason);
                    }
                    Fault2::GoAway(reason) => Some(Order::Leave(reason)),
                    Fault2::Cut => Some(Order::Cut),
                    Fault2::Stall => None,
                    _ => {
                        self.token(&mut out, i + 1 == tokens).await;
                        continue;
                    }
                };
                if let Some(order) = order {
                    let _ = orders.send(order);
                }
                return std::future::pending().await;
            }
            self.token(&mut out, i + 1 == tokens).await;
        }
        let prompt = body["prompt"].as_str().unwrap_or_default();
        let prompt = 1 + prompt.split(' ').count();
        let usage =
            json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens}});
        leave();
        let end = format!("data: {usage}\n\ndata: [DONE]\n\n");
        let _ = out.send_data(end.into(), true);
    }

    async fn token(&self, out: &mut SendStream<Bytes>, last: bool) {
        let reason = if last { json!("length") } else { Value::Null };
        let text = "x".repeat(self.settings.token_bytes);
        let chunk = json!({"choices": [{"index": 0, "text": text, "finish_reason": reason}]});
        let _ = out.send_data(format!("data: {chunk}\n\n").into(), false);
        tokio::time::sleep(self.settings.itl).await;
    }
}

/// Between client and `server`: the second request of each of the first connections that have one is not passed
/// on but answered with GOAWAY, which says that nobody has looked at it. How often that was.
pub async fn leaves_between_requests(
    server: SocketAddr,
    times: usize,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let left = Arc::new(AtomicUsize::new(0));
    let counted = left.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let left = left.clone();
            tokio::spawn(async move {
                let upstream = TcpStream::connect(server).await.unwrap();
                client.set_nodelay(true).unwrap();
                upstream.set_nodelay(true).unwrap();
                let (mut client_in, mut client_out) = client.into_split();
                let (mut server_in, mut server_out) = upstream.into_split();
                let back = tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut server_in, &mut client_out).await;
                    client_out
                });
                let mut preface = [0; 24];
                client_in.read_exact(&mut preface).await.unwrap();
                server_out.write_all(&preface).await.unwrap();
                let mut streams = Vec::new();
                loop {
                    // A frame: length (3 bytes), type, flags, stream (4), payload.
                    let mut frame = vec![0; 9];
                    if client_in.read_exact(&mut frame).await.is_err() {
                        return;
                    }
                    let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
                    let is_headers = frame[3] == 1;
                    let stream = frame[5..9].to_vec();
                    frame.resize(9 + length, 0);
                    client_in.read_exact(&mut frame[9..]).await.unwrap();
                    if is_headers {
                        streams.push(stream);
                    }
                    if is_headers && streams.len() == 2 && left.load(SeqCst) < times {
                        left.fetch_add(1, SeqCst);
                        // Everything of the answer before has gone through: the client has asked again.
                        drop(server_out);
                        let mut client_out = back.await.unwrap();
                        let away = [&[0, 0, 8, 7, 0, 0, 0, 0, 0][..], &streams[0], &[0; 4]];
                        let _ = client_out.write_all(&away.concat()).await;
                        return;
                    }
                    if server_out.write_all(&frame).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, counted)
}
