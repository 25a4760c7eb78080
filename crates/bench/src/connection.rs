//! A connection for one request at a time (HTTP/1.1), with its read buffer.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::transport::Transport;

/// Bytes of a connection's read buffer: more than a burst of chunks, little enough for 1,000 streams.
const BUFFER: usize = 8 * 1024;

/// An open connection with its read buffer.
pub(crate) struct Connection {
    transport: Transport,
    /// Bytes read and not yet consumed are `buffer[start..end]`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Requests that this connection has carried to their end.
    pub served: u64,
    /// The longest wait for more of an answer.
    pub idle: Option<Duration>,
}

impl Connection {
    /// Begin to talk over `transport`.
    pub fn new(transport: Transport, idle: Option<Duration>) -> Self {
        Connection {
            transport,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            served: 0,
            idle,
        }
    }

    /// Write all of `bytes`, a request.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.transport.socket_mut().asking();
        self.transport.write_all(bytes).await?;
        self.transport.flush().await
    }

    /// Bytes that were read and not consumed.
    pub fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Mark the first `n` unread bytes as consumed.
    pub fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    /// When the newest of the bytes reached this machine, ns.
    pub fn arrival_ns(&self) -> u64 {
        self.transport.socket().arrival_ns()
    }

    /// Read more behind the unread bytes; 0 at the end of the stream. The buffer grows if they fill it
    /// (only a response head can do that, and its caller bounds it).
    pub async fn read_more(&mut self) -> io::Result<usize> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.end == self.buffer.len() {
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
        }
        let n = self.transport.read(&mut self.buffer[self.end..]).await?;
        self.end += n;
        Ok(n)
    }
}
