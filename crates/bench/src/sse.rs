//! Server-sent events, incrementally: any cut between reads is fine, also within a UTF-8 character or a
//! CRLF. An event whose bytes came in one read is handed on without a copy.

use memchr::memchr2;

/// Largest event, bytes: a server that never ends one must not fill the memory.
const MAX_EVENT: usize = 8 * 1024 * 1024;

/// The parser's memory between reads.
#[derive(Debug, Default)]
pub(crate) struct SseParser {
    /// Start of a line whose end has not come yet.
    partial: Vec<u8>,
    /// Data lines of the current event that had to be kept, joined by LF.
    data: Vec<u8>,
    /// Has the current event a data line in `data`?
    has_data: bool,
    /// The last byte was a CR: an LF now belongs to it.
    after_cr: bool,
    /// The start of the stream is past, where a byte order mark may stand.
    started: bool,
}

impl SseParser {
    /// Forget everything, keep the memory.
    pub fn reset(&mut self) {
        self.partial.clear();
        self.data.clear();
        self.has_data = false;
        self.after_cr = false;
        self.started = false;
    }

    /// Take bytes; `on_event` gets the data of each event that they complete.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut on_event: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        loop {
            if std::mem::take(&mut self.after_cr) {
                bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
            let Some(end) = memchr2(b'\n', b'\r', bytes) else {
                if self.partial.len() + self.data.len() + bytes.len() > MAX_EVENT {
                    return Err(format!("an event of the stream is over {MAX_EVENT} bytes"));
                }
                self.partial.extend_from_slice(bytes);
                return Ok(());
            };
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            self.after_cr = bytes[end] == b'\r' && rest.is_empty();
            let rest = if bytes[end] == b'\r' {
                rest.strip_prefix(b"\n").unwrap_or(rest)
            } else {
                rest
            };
            if self.partial.is_empty() {
                bytes = self.line(line, rest, &mut on_event)?;
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                bytes = self.line(&whole, rest, &mut on_event)?;
                whole.clear();
                self.partial = whole;
            }
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }

    /// The stream has ended: hand on an event that lacks only its empty line.
    pub fn finish(
        &mut self,
        mut on_event: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        let last = std::mem::take(&mut self.partial);
        self.line(&last, &[], &mut on_event)?;
        self.line(&[], &[], &mut on_event).map(drop)
    }

    /// One line; `rest` is what follows it in this read. Returns what is left of `rest`.
    fn line<'a>(
        &mut self,
        line: &[u8],
        rest: &'a [u8],
        on_event: &mut impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<&'a [u8], String> {
        let line = if self.started {
            line
        } else {
            line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line)
        };
        self.started = true;
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                let result = on_event(&self.data);
                self.data.clear();
                result?;
            }
            return Ok(rest);
        }
        // Comments (":"), `event`, `id` and `retry` say nothing that is measured.
        let Some(value) = line.strip_prefix(b"data") else {
            return Ok(rest);
        };
        let value = match value {
            [] => value,
            [b':', b' ', value @ ..] | [b':', value @ ..] => value,
            _ => return Ok(rest),
        };
        if !self.has_data {
            // The usual event is one data line and an empty line in the same read: no copy.
            let after = match rest {
                [b'\n', after @ ..] => Some(after),
                [b'\r', b'\n', after @ ..] => Some(after),
                _ => None,
            };
            if let Some(after) = after {
                on_event(value)?;
                return Ok(after);
            }
        }
        if self.data.len() + value.len() > MAX_EVENT {
            return Err(format!("an event of the stream is over {MAX_EVENT} bytes"));
        }
        if self.has_data {
            self.data.push(b'\n');
        }
        self.has_data = true;
        self.data.extend_from_slice(value);
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let (mut parser, mut out) = (SseParser::default(), Vec::new());
        let mut take = |data: &[u8]| {
            out.push(String::from_utf8_lossy(data).into_owned());
            Ok(())
        };
        for piece in pieces {
            parser.feed(piece, &mut take).unwrap();
        }
        parser.finish(&mut take).unwrap();
        out
    }

    #[test]
    fn what_the_standard_says() {
        assert_eq!(
            events(&[b"data: a\n\ndata:b\r\n\r\ndata: c\r\r"]),
            ["a", "b", "c"]
        );
        assert_eq!(
            events(&[b": comment\n\nevent: x\nid: 1\nretry: 5\ndata: a\n\n"]),
            ["a"]
        );
        assert_eq!(events(&[b"data: one\ndata: two\ndata\n\n"]), ["one\ntwo\n"]);
        assert_eq!(events(&[b"\xef\xbb\xbfdata: bom\n\n"]), ["bom"]);
        assert_eq!(events(&[b"data:  two spaces\n\n\n\n"]), [" two spaces"]);
        assert_eq!(events(&[b"database: no\n\n"]), [] as [&str; 0]);
        assert_eq!(events(&[b"data: [DONE]"]), ["[DONE]"]);
        assert_eq!(events(&[b"data: cut\n"]), ["cut"]);
    }

    #[test]
    fn cuts_within_a_character_and_within_crlf() {
        let wire = "data: é中🙂\r\n\r\n".as_bytes();
        for cut in 0..=wire.len() {
            assert_eq!(
                events(&[&wire[..cut], &wire[cut..]]),
                ["é中🙂"],
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn an_endless_event_is_an_error() {
        let mut parser = SseParser::default();
        let piece = vec![b'x'; 1 << 20];
        let result = (0..20).try_for_each(|_| parser.feed(&piece, |_| Ok(())));
        assert!(result.unwrap_err().contains("over"));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            datas in prop::collection::vec("[a-zé中{}:\" ]{0,12}", 0..6),
            ending in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let wire: String = datas.iter().map(|d| format!(": c{ending}data: {d}{ending}{ending}")).collect();
            let wire = wire.as_bytes();
            let mut at: Vec<usize> = if wire.is_empty() { vec![] } else { cuts.iter().map(|c| c.index(wire.len())).collect() };
            at.extend([0, wire.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|w| &wire[w[0]..w[1]]).collect();
            prop_assert_eq!(events(&pieces), datas);
        }

        #[test]
        fn any_bytes_in_any_pieces_give_the_same_events(bytes in prop::collection::vec(prop::sample::select(b"data: x\n\r\xc3".to_vec()), 0..120), cut in any::<prop::sample::Index>()) {
            let cut = if bytes.is_empty() { 0 } else { cut.index(bytes.len()) };
            prop_assert_eq!(events(&[&bytes]), events(&[&bytes[..cut], &bytes[cut..]]));
        }
    }
}
