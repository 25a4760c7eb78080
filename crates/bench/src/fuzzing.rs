//! For the fuzz targets: an answer of a server, read without a socket; a file of prompts, a trace.

use std::path::Path;

use crate::chunk;
use crate::data::prompts::Prompts;
use crate::data::session::Session;
use crate::data::{Calls, DataConfig, FileData, Rows, Trace, TraceData, TraceFormat};
use crate::form::Form;
use crate::http1::{Decoder, parse_head};
use crate::repeat::ChunkParser;
use crate::server_side::names::Reading;
use crate::server_side::prometheus::samples;
use crate::sse::SseParser;

/// What the bytes of one response hold, read `piece` bytes at a time: its events, and why reading
/// ended before the bytes did, if so. In pieces, chunks are parsed as in a level, with a memory of the one
/// before; all at once without. Neither must matter.
pub fn response(bytes: &[u8], piece: usize) -> (Vec<String>, Option<String>) {
    let mut events = Vec::new();
    let mut memory = (piece < bytes.len()).then(ChunkParser::default);
    let problem = read(bytes, piece.max(1), &mut |data| {
        let mut text = String::new();
        chunk::take_text(data, |part, _| text.push_str(part));
        let parsed = match &mut memory {
            Some(parser) => parser.parse(data),
            None => chunk::parse(data),
        };
        events.push(format!("{parsed:?} {text}"));
        Ok(())
    });
    (events, problem.err())
}

/// How many samples a text of metrics has, and what the server says with them, for comparing.
pub fn metrics(text: &str) -> (usize, String) {
    (samples(text).count(), format!("{:?}", Reading::of(text)))
}

/// The first prompts of a file of any format, or why it cannot be used.
pub fn data_file(path: &Path) -> Result<Vec<String>, String> {
    let (data, file) = (DataConfig::default(), FileData::new(path));
    let folder = std::env::temp_dir();
    let rows = Rows::load(
        &data,
        &file,
        &Default::default(),
        None,
        &folder,
        &mut vec![],
    );
    let rows = rows.map_err(|e| e.to_string())?;
    let prompt = |number| {
        let mut out = Vec::new();
        let written = rows.write(Form::Messages, &rows.session(number), &mut out);
        written.map(|_| String::from_utf8_lossy(&out).into_owned())
    };
    (0..4).map(prompt).collect()
}

/// The first prompts of a trace in a file of any format, or why it cannot be used.
pub fn trace_file(path: &Path, format: TraceFormat) -> Result<Vec<String>, String> {
    /// A longer prompt says no more and takes its time.
    const MOST_TOKENS: u64 = 10_000;
    let path = path.to_owned();
    let calls = Calls::load(
        &TraceData { path, format },
        &std::env::temp_dir(),
        &mut vec![],
    );
    let calls = calls.map_err(|e| e.to_string())?;
    let short = |place: &u64| {
        let call = calls.get(*place as usize % calls.len());
        call.is_ok_and(|call| call.input <= MOST_TOKENS)
    };
    let places: Vec<u64> = (0..4).filter(short).collect();
    let ids = Prompts::TokenIds {
        range: (0, 9),
        seed: 1,
    };
    let trace = Trace::new(calls, ids);
    let prompt = |number: u64| {
        let mut out = Vec::new();
        let written = trace.write(Form::Text, &Session::new(number, 1), &mut out);
        written.map(|_| String::from_utf8_lossy(&out).into_owned())
    };
    places.into_iter().map(prompt).collect()
}

fn read(
    bytes: &[u8],
    piece: usize,
    on_event: &mut impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let mut rest = bytes;
    let head = loop {
        let Some((head, length)) = parse_head(rest)? else {
            return Err("no whole head".into());
        };
        rest = &rest[length..];
        if !(100..200).contains(&head.status) {
            break head;
        }
    };
    let mut decoder = Decoder::new(head.framing());
    let mut sse = SseParser::default();
    let mut body = Vec::new();
    for read in rest.chunks(piece) {
        let (_, done) = decoder.decode(read, |data| {
            if head.event_stream {
                sse.feed(data, &mut *on_event)
            } else {
                body.extend_from_slice(data);
                Ok(())
            }
        })?;
        if done {
            break;
        }
    }
    if head.event_stream {
        sse.finish(on_event)
    } else {
        on_event(&body)
    }
}
