//! Listening, one task a connection, and going down in order.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use powerband_engine::Engine;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::{Limits, ModelContext, ServerConfig};
use crate::error::ServerError;
use crate::service;
use crate::stall::Stall;
use crate::state::State;

/// Headers of one request; the bytes are bounded by [`Limits::header_bytes`].
const MOST_HEADERS: usize = 128;
/// How long finished answers may take to reach their clients at shutdown.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// A server that has its port and does not serve yet.
#[derive(Debug)]
pub struct BoundServer {
    listener: TcpListener,
    address: SocketAddr,
    config: ServerConfig,
}

/// Takes the port. Done before a model is loaded, so that a port in use is told at once.
///
/// # Errors
/// The port is in use, or the host is none of this machine's addresses.
pub async fn bind(config: &ServerConfig) -> Result<BoundServer, ServerError> {
    let address = if config.host.contains(':') {
        format!("[{}]:{}", config.host.trim_matches(['[', ']']), config.port)
    } else {
        format!("{}:{}", config.host, config.port)
    };
    let listener = TcpListener::bind(&address)
        .await
        .map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => ServerError::PortInUse {
                address: address.clone(),
            },
            kind => ServerError::Bind {
                address: address.clone(),
                source,
                hint: match kind {
                    ErrorKind::PermissionDenied => {
                        "ports below 1024 need privileges: choose a higher one with --port"
                    }
                    _ => "--host must be an address of this machine, such as 127.0.0.1 or 0.0.0.0",
                },
            },
        })?;
    let local = listener.local_addr().map_err(|source| ServerError::Bind {
        address,
        source,
        hint: "try again",
    })?;
    Ok(BoundServer {
        listener,
        address: local,
        config: config.clone(),
    })
}

impl BoundServer {
    /// The address with the port that was really taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` resolves. From then on `/health` says 503 and new work is refused;
    /// requests that run may finish within `drain`, then they are aborted. Shuts the engine down.
    ///
    /// # Errors
    /// A setting is unusable; nothing was served.
    pub async fn serve(
        self,
        engine: Engine,
        model: ModelContext,
        shutdown: impl Future<Output = ()>,
        drain: Duration,
    ) -> Result<(), ServerError> {
        let state = Arc::new(State::new(engine, model, self.config)?);
        let (close, closing) = watch::channel(false);
        let mut acceptor = Acceptor {
            listener: self.listener,
            connections: JoinSet::new(),
            state: state.clone(),
            closing,
        };

        acceptor.run_until(shutdown).await;
        state.start_draining();
        let deadline = Instant::now() + drain;
        let drained = tokio::time::timeout_at(deadline, state.places.empty());
        acceptor.run_until(async { drop(drained.await) }).await;

        // What still runs now ends as aborted, and its client is told.
        let engine = state.engine.clone();
        let stopping = tokio::task::spawn_blocking(move || engine.shutdown(Duration::ZERO));
        if let Err(error) = stopping.await {
            tracing::error!("the engine did not stop cleanly: {error}");
        }
        close.send_replace(true);
        let mut connections = acceptor.connections;
        let finished = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_WRITES, finished).await.is_err() {
            connections.shutdown().await;
        }
        Ok(())
    }
}

struct Acceptor {
    listener: TcpListener,
    connections: JoinSet<()>,
    state: Arc<State>,
    closing: watch::Receiver<bool>,
}

impl Acceptor {
    async fn run_until(&mut self, end: impl Future<Output = ()>) {
        let mut end = pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => self.connect(stream),
                    Err(error) => {
                        // Out of file descriptors, mostly: it passes, and spinning would not help.
                        tracing::warn!("accepting a connection failed: {error}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(_) = self.connections.join_next() => {}
            }
        }
    }

    fn connect(&mut self, stream: TcpStream) {
        if self.connections.len() >= self.state.config.limits.connections {
            // The socket is new and its buffer empty: this does not wait.
            let _ = stream.try_write(
                b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
            return;
        }
        // Tokens are small writes that must not wait for each other.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("TCP_NODELAY: {error}");
        }
        self.connections
            .spawn(connection(stream, self.state.clone(), self.closing.clone()));
    }
}

async fn connection(stream: TcpStream, state: Arc<State>, mut closing: watch::Receiver<bool>) {
    let limits = state.config.limits.clone();
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(service::answer(state, request).await) }
    });
    let mut connection = pin!(builder(&limits).serve_connection(
        TokioIo::new(Stall::new(stream, limits.write_timeout)),
        service
    ));
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        _ = closing.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!("a connection ended early: {error}");
    }
}

fn builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(MOST_HEADERS)
        // Room for a head at both limits and some more, so that our own answer is given first.
        .max_buf_size((2 * (limits.uri_bytes + limits.header_bytes)).max(16 << 10));
    builder
}
