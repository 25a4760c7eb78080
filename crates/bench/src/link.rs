//! What carries a request and its answer: a connection of its own, or a seat on a shared one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::connect::{Connector, Opened};
use crate::connection::Connection;
use crate::counters::Counters;
use crate::head::Head;
use crate::http1::{ReadError, read_body, read_head};
use crate::http2::{Http2, Seat};

/// See the module. One request at a time.
pub(crate) enum Link {
    Own(Connection),
    Seat(Seat),
}

impl Link {
    /// Send `request`, written in HTTP/1.1. The error is a phrase.
    pub async fn send(&mut self, request: &[u8]) -> Result<(), String> {
        match self {
            Link::Own(connection) => {
                let sent = connection.send(request).await;
                sent.map_err(|e| format!("connection lost while sending: {e}"))
            }
            Link::Seat(seat) => seat.send(request),
        }
    }

    /// Has a request gone over it before? If it fails without an answer then, that may be the server's way to
    /// end a connection.
    pub fn used(&self) -> bool {
        match self {
            Link::Own(connection) => connection.served > 0,
            Link::Seat(seat) => seat.served(),
        }
    }

    /// When the request left, where that was not with [`Link::send`], ns.
    pub fn sent_ns(&self) -> Option<u64> {
        match self {
            Link::Own(_) => None,
            Link::Seat(seat) => Some(seat.sent_ns()),
        }
    }

    /// When the newest of the bytes reached this machine, ns.
    pub fn arrival_ns(&self) -> u64 {
        match self {
            Link::Own(connection) => connection.arrival_ns(),
            Link::Seat(seat) => seat.arrival_ns(),
        }
    }

    /// Read the head of the answer.
    pub async fn head(&mut self) -> Result<Head, ReadError> {
        match self {
            Link::Own(connection) => read_head(connection).await,
            Link::Seat(seat) => seat.head().await,
        }
    }

    /// Read the body to its end. `on_data` gets each piece with the time at which its last byte arrived; an
    /// error of its own ends the reading.
    pub async fn body(
        &mut self,
        head: &Head,
        on_data: impl FnMut(&[u8], u64) -> Result<(), String>,
    ) -> Result<(), String> {
        match self {
            Link::Own(connection) => {
                read_body(connection, head, on_data).await?;
                connection.served += 1;
                Ok(())
            }
            Link::Seat(seat) => seat.body(on_data).await,
        }
    }

    /// Can it carry another request, its answer being read?
    pub fn reusable(&self, head: &Head) -> bool {
        match self {
            Link::Own(connection) => head.reusable() && connection.unread().is_empty(),
            Link::Seat(_) => true,
        }
    }
}

impl TryFrom<Opened> for Link {
    type Error = String;

    /// The first link of a new connection.
    fn try_from(opened: Opened) -> Result<Self, String> {
        match opened {
            Opened::Own(connection) => Ok(Link::Own(connection)),
            Opened::Shared(connection) => {
                let seat = connection.seat();
                seat.map(Link::Seat)
                    .ok_or_else(|| "the server takes no stream".into())
            }
        }
    }
}

/// The connections that the clients of a thread share.
#[derive(Default)]
pub(crate) struct Links {
    /// Held while a connection is being opened: who comes meanwhile may find a seat on it.
    shared: Mutex<Shared>,
    /// Connections that could not be opened.
    failures: AtomicU64,
}

#[derive(Default)]
struct Shared {
    connections: Vec<Arc<Http2>>,
    /// Why the last one could not be opened.
    problem: String,
}

impl Links {
    /// A link that is free. The error is a sentence for an outcome.
    pub async fn link(
        &self,
        connector: &Connector,
        clock: Clock,
        counters: &Counters,
    ) -> Result<Link, String> {
        let begun_ns = clock.now_ns();
        if !connector.shares() {
            let link = connector.open(clock).await?.try_into()?;
            counters.connected(clock.now_ns() - begun_ns);
            return Ok(link);
        }
        let failures = self.failures.load(Relaxed);
        let mut shared = self.shared.lock().await;
        if self.failures.load(Relaxed) != failures {
            // Meanwhile somebody tried. A hundred clients need not try one after the other.
            return Err(shared.problem.clone());
        }
        shared.connections.retain(|c| c.is_open());
        if let Some(seat) = shared.connections.iter().find_map(Http2::seat) {
            counters.waited(clock.now_ns() - begun_ns);
            return Ok(Link::Seat(seat));
        }
        let waited_ns = clock.now_ns() - begun_ns;
        let opened = connector.open(clock).await;
        let link = opened.and_then(|opened| {
            if let Opened::Shared(connection) = &opened {
                shared.connections.push(connection.clone());
            }
            Link::try_from(opened)
        });
        match &link {
            Ok(_) => {
                counters.waited(waited_ns);
                counters.connected(clock.now_ns() - begun_ns - waited_ns);
            }
            Err(problem) => {
                self.failures.fetch_add(1, Relaxed);
                shared.problem.clone_from(problem);
            }
        }
        link
    }
}
