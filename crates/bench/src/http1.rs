//! The reading half of HTTP/1.1: heads and bodies, incrementally and without copies. Written here
//! rather than taken from a client library because an instrument must know which read each byte came
//! with, and a library that reads ahead in a task of its own hides that.

use std::time::Duration;

use tokio::time::timeout;

use crate::connection::Connection;
use crate::head::{Framing, Head};

/// Largest response head, bytes.
pub(crate) const MAX_HEAD: usize = 64 * 1024;

/// Why a response could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The connection ended before the first byte: the server had closed it while it was idle.
    Stale(String),
    /// The connection or the framing broke.
    Broken(String),
}

impl ReadError {
    /// The reason.
    pub fn into_reason(self) -> String {
        match self {
            ReadError::Stale(reason) | ReadError::Broken(reason) => reason,
        }
    }
}

/// Read a response head, skipping informational (1xx) ones.
pub(crate) async fn read_head(connection: &mut Connection) -> Result<Head, ReadError> {
    let mut seen_bytes = !connection.unread().is_empty();
    loop {
        match parse_head(connection.unread()).map_err(ReadError::Broken)? {
            Some((head, length)) => {
                connection.consume(length);
                if !(100..200).contains(&head.status) {
                    return Ok(head);
                }
            }
            None if connection.unread().len() >= MAX_HEAD => {
                return Err(ReadError::Broken(format!(
                    "response head over {MAX_HEAD} bytes"
                )));
            }
            None => match connection.read_more().await {
                Ok(0) if seen_bytes => {
                    return Err(ReadError::Broken(
                        "connection closed within the response head".into(),
                    ));
                }
                Ok(0) => {
                    return Err(ReadError::Stale(
                        "connection closed before an answer".into(),
                    ));
                }
                Ok(_) => seen_bytes = true,
                Err(e) if seen_bytes => {
                    return Err(ReadError::Broken(format!("connection lost: {e}")));
                }
                Err(e) => {
                    return Err(ReadError::Stale(format!(
                        "connection lost before an answer: {e}"
                    )));
                }
            },
        }
    }
}

/// Parse a head if it is complete: (head, its length in bytes).
pub(crate) fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 96];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(e) => return Err(format!("not an HTTP response ({e})")),
    };
    let mut head = Head::new(response.code.unwrap_or(0), response.version == Some(1));
    for header in response.headers.iter() {
        head.note(header.name, header.value)?;
    }
    Ok(Some((head, length)))
}

/// Read a body to its end. `on_data` gets each piece with the time at which its last byte arrived; an
/// error of its own ends the reading.
pub(crate) async fn read_body(
    connection: &mut Connection,
    head: &Head,
    mut on_data: impl FnMut(&[u8], u64) -> Result<(), String>,
) -> Result<(), String> {
    let mut decoder = Decoder::new(head.framing());
    loop {
        let arrival_ns = connection.arrival_ns();
        let (consumed, done) =
            decoder.decode(connection.unread(), |data| on_data(data, arrival_ns))?;
        connection.consume(consumed);
        if done {
            return Ok(());
        }
        let read = match connection.idle {
            None => connection.read_more().await,
            Some(limit) => match timeout(limit, connection.read_more()).await {
                Ok(read) => read,
                Err(_) => return Err(paused(limit)),
            },
        };
        match read {
            Ok(0) if decoder.framing == Framing::UntilClose => return Ok(()),
            Ok(0) => return Err("connection closed within the response".into()),
            Ok(_) => {}
            Err(e) => return Err(format!("connection lost within the response: {e}")),
        }
    }
}

/// The reason where an answer stops in its middle.
pub(crate) fn paused(limit: Duration) -> String {
    let limit = limit.as_secs_f64();
    format!("nothing more of the answer within {limit} s")
}

/// Where the decoder stands within a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    /// In the digits of a size; how many there were.
    Size(u8),
    /// Behind the digits, up to the end of the line.
    Extension,
    /// In the data; `remaining` bytes to go.
    Data,
    /// At the line end after the data.
    DataEnd,
    /// At the start of a trailer line (or the empty line that ends the body).
    TrailerStart,
    /// Within a trailer line.
    Trailer,
}

/// Takes the framing off, piece by piece. Every byte given is consumed: nothing is kept.
pub(crate) struct Decoder {
    framing: Framing,
    remaining: u64,
    chunk: Chunk,
    /// Bytes of extensions and trailers since the last data.
    idle_bytes: usize,
}

impl Decoder {
    pub fn new(framing: Framing) -> Self {
        Decoder {
            framing,
            remaining: match framing {
                Framing::Length(length) => length,
                _ => 0,
            },
            chunk: Chunk::Size(0),
            idle_bytes: 0,
        }
    }

    /// Decode `input`: (bytes consumed, is the body complete?).
    pub fn decode(
        &mut self,
        input: &[u8],
        mut on_data: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(usize, bool), String> {
        match self.framing {
            Framing::UntilClose | Framing::Frames => {
                if !input.is_empty() {
                    on_data(input)?;
                }
                Ok((input.len(), false))
            }
            Framing::Length(_) => {
                let n = usize::try_from(self.remaining)
                    .unwrap_or(usize::MAX)
                    .min(input.len());
                if n > 0 {
                    on_data(&input[..n])?;
                }
                self.remaining -= n as u64;
                Ok((n, self.remaining == 0))
            }
            Framing::Chunked => self.decode_chunks(input, on_data),
        }
    }

    fn decode_chunks(
        &mut self,
        input: &[u8],
        mut on_data: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(usize, bool), String> {
        let mut at = 0;
        while at < input.len() {
            if self.chunk == Chunk::Data {
                let n = usize::try_from(self.remaining)
                    .unwrap_or(usize::MAX)
                    .min(input.len() - at);
                on_data(&input[at..at + n])?;
                at += n;
                self.remaining -= n as u64;
                self.idle_bytes = 0;
                if self.remaining == 0 {
                    self.chunk = Chunk::DataEnd;
                }
                continue;
            }
            let byte = input[at];
            at += 1;
            self.idle_bytes += 1;
            if self.idle_bytes > MAX_HEAD {
                return Err(format!("over {MAX_HEAD} bytes between two chunks"));
            }
            self.chunk = match (self.chunk, byte) {
                (Chunk::Size(digits), b) if b.is_ascii_hexdigit() => {
                    if digits == 15 {
                        return Err("a chunk size is too large".into());
                    }
                    let digit = (b as char).to_digit(16).unwrap_or(0);
                    self.remaining = self.remaining * 16 + u64::from(digit);
                    Chunk::Size(digits + 1)
                }
                (Chunk::Size(1..), b'\n') | (Chunk::Extension, b'\n') => {
                    if self.remaining == 0 {
                        Chunk::TrailerStart
                    } else {
                        Chunk::Data
                    }
                }
                (Chunk::Size(1..), b'\r' | b';' | b' ' | b'\t') | (Chunk::Extension, _) => {
                    Chunk::Extension
                }
                (Chunk::Size(_), b) => {
                    return Err(format!("byte {b:#04x} in place of a chunk size"));
                }
                (Chunk::DataEnd, b'\r') => Chunk::DataEnd,
                (Chunk::DataEnd, b'\n') => Chunk::Size(0),
                (Chunk::DataEnd, _) => return Err("a chunk is longer than its size says".into()),
                (Chunk::TrailerStart, b'\r') => Chunk::TrailerStart,
                (Chunk::TrailerStart, b'\n') => return Ok((at, true)),
                (Chunk::Trailer, b'\n') => Chunk::TrailerStart,
                (Chunk::TrailerStart | Chunk::Trailer, _) => Chunk::Trailer,
                (Chunk::Data, _) => Chunk::Data,
            };
        }
        Ok((at, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(text: &str) -> Head {
        let (head, length) = parse_head(text.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len());
        head
    }

    #[test]
    fn heads() {
        let h = head(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        assert!(h.event_stream && h.reusable());
        assert_eq!((h.status, h.framing()), (200, Framing::Chunked));
        let h = head(
            "HTTP/1.1 429 Too Many\r\nretry-after: 2\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        );
        assert_eq!(h.retry_after.as_deref(), Some("2"));
        assert!(!h.reusable());
        let h = head(
            "HTTP/1.1 307 X\r\nlocation: https://h/v1\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        );
        assert_eq!(h.location.as_deref(), Some("https://h/v1"));
        assert_eq!(h.encoding.as_deref(), Some("gzip"));
        assert!(
            parse_head(b"HTTP/1.1 200 X\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n")
                .is_err()
        );
        // The encoding tells the length, whichever stands first (RFC 9112, 6.3).
        for head_text in [
            "HTTP/1.1 200 X\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n",
        ] {
            assert_eq!(head(head_text).framing(), Framing::Chunked);
        }
        assert!(head("HTTP/1.0 200 OK\r\n\r\n").ends_with_connection());
        assert!(
            head("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\n")
                .reusable()
        );
        // With both, the chunks win (RFC 9112), in either order.
        for order in [
            "content-length: 5\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked\r\ncontent-length: 5",
        ] {
            assert_eq!(
                head(&format!("HTTP/1.1 200 OK\r\n{order}\r\n\r\n")).framing(),
                Framing::Chunked
            );
        }
        assert!(parse_head(b"HTTP/1.1 200 O").unwrap().is_none());
        assert!(parse_head(b"SSH-2.0-OpenSSH\r\n\r\n").is_err());
        assert!(parse_head(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n").is_err());
    }

    fn decode_all(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, bool), String> {
        let mut decoder = Decoder::new(framing);
        let (mut out, mut done) = (Vec::new(), false);
        for piece in pieces {
            let (consumed, end) = decoder.decode(piece, |data| {
                out.extend_from_slice(data);
                Ok(())
            })?;
            assert!(end || consumed == piece.len());
            done = end;
            if end {
                break;
            }
        }
        Ok((out, done))
    }

    #[test]
    fn chunked_bodies() {
        let body = b"5\r\nhello\r\n6;name=value\r\n world\r\n0\r\nTrailer: x\r\n\r\n";
        assert_eq!(
            decode_all(Framing::Chunked, &[body]).unwrap(),
            (b"hello world".to_vec(), true)
        );
        for bad in ["x\r\n", "\r\n", "5\r\nhelloo", "ffffffffffffffff\r\n"] {
            assert!(
                decode_all(Framing::Chunked, &[bad.as_bytes()]).is_err(),
                "{bad:?}"
            );
        }
        assert_eq!(
            decode_all(Framing::Chunked, &[b"5\r\nhel"]).unwrap(),
            (b"hel".to_vec(), false)
        );
        assert_eq!(
            decode_all(Framing::Length(3), &[b"ab", b"cd"]).unwrap(),
            (b"abc".to_vec(), true)
        );
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let mut at: Vec<usize> = cuts.iter().map(|c| c.index(wire.len())).collect();
            at.extend([0, wire.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|w| &wire[w[0]..w[1]]).collect();
            prop_assert_eq!(decode_all(Framing::Chunked, &pieces).unwrap(), (chunks.concat(), true));
        }

        #[test]
        fn any_bytes_end_in_data_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_all(Framing::Chunked, &[&bytes]);
            let _ = parse_head(&bytes);
        }
    }
}
