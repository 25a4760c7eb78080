//! JSON written by hand: an answer's fields keep their order, and a chunk costs a few copies.

use serde::Serialize;

use crate::generation::{Finish, StoppedAt, Usage};
use crate::metrics::End;

/// Appends any serializable value.
pub(crate) fn json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    let before = out.len();
    if serde_json::to_writer(&mut *out, value).is_err() {
        // Strings and numbers in memory cannot fail to be written; whatever could is null.
        out.truncate(before);
        out.extend_from_slice(b"null");
    }
}

/// Appends an integer.
pub(crate) fn integer(out: &mut Vec<u8>, value: u64) {
    json(out, &value);
}

/// A log-probability; JSON has no infinity, so an impossible token has this one.
pub(crate) fn logprob(out: &mut Vec<u8>, value: f32) {
    // `max` also replaces NaN.
    json(out, &value.max(-9999.0));
}

/// `"finish_reason":...,"stop_reason":...`
pub(crate) fn finish(out: &mut Vec<u8>, finish: Option<&Finish>) {
    let Some(finish) = finish else {
        out.extend_from_slice(b"\"finish_reason\":null");
        return;
    };
    let reason = match finish.end {
        End::Stop => "stop",
        End::Length => "length",
        End::Abort | End::Error => "abort",
    };
    out.extend_from_slice(b"\"finish_reason\":\"");
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\",\"stop_reason\":");
    match &finish.stopped_at {
        StoppedAt::Nothing => out.extend_from_slice(b"null"),
        StoppedAt::Token(id) => integer(out, u64::from(*id)),
        StoppedAt::Text(text) => json(out, text),
    }
}

/// `{"prompt_tokens":...}`
pub(crate) fn usage(out: &mut Vec<u8>, usage: &Usage) {
    out.extend_from_slice(b"{\"prompt_tokens\":");
    integer(out, usage.prompt as u64);
    out.extend_from_slice(b",\"completion_tokens\":");
    integer(out, usage.completion as u64);
    out.extend_from_slice(b",\"total_tokens\":");
    integer(out, (usage.prompt + usage.completion) as u64);
    if let Some(cached) = usage.cached {
        out.extend_from_slice(b",\"prompt_tokens_details\":{\"cached_tokens\":");
        integer(out, cached as u64);
        out.push(b'}');
    }
    out.push(b'}');
}
