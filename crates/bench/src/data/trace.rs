//! Requests of a recorded load: their times and lengths, and texts of those lengths that have in common what the
//! recorded ones had.

mod calls;

use std::sync::Arc;

pub(crate) use calls::{Call, Calls, MOST_SPAN_S};

use super::prompts::{Kind, Prompts, push_ids};
use super::session::{Session, Sizes};
use super::words::OPENING;
use crate::form::Form;

/// The requests of a trace, in the order of their times.
#[derive(Debug)]
pub(crate) struct Trace {
    /// When each came, seconds after the first.
    pub times_s: Arc<[f64]>,
    calls: Calls,
    prompts: Prompts,
}

impl Trace {
    /// `prompts` makes texts of any length.
    pub fn new(mut calls: Calls, prompts: Prompts) -> Self {
        Trace {
            times_s: std::mem::take(&mut calls.times_s).into(),
            calls,
            prompts,
        }
    }

    /// What is to be told of a level of so many requests.
    pub fn warning(&self, requests: u64) -> Option<String> {
        let all = self.calls.len() as u64;
        (requests > all).then(|| {
            format!("the trace has {all} requests and the level needed {requests}: their lengths were taken again from the start")
        })
    }

    /// Append the prompt of a request. Where the trace is taken again within a level, blocks have other texts.
    ///
    /// # Errors
    /// If it cannot be read back from the temporary file.
    pub fn write(&self, form: Form, session: &Session, out: &mut Vec<u8>) -> Result<Sizes, String> {
        let (level, within) = (session.number >> 32, session.number & u64::from(u32::MAX));
        let all = self.calls.len().max(1) as u64;
        let call = self.calls.get((within % all) as usize)?;
        let round = (level << 32) + within / all;
        match &self.prompts {
            Prompts::Words(words) => {
                let count = words.count(call.input, words.overhead);
                let block = words.count(self.calls.block_tokens, 0).max(1);
                form.write(out, &[], None, |out| {
                    out.extend_from_slice(OPENING.as_bytes());
                    each_part(&call, count, block, |id, count| match id {
                        Some(id) => words.push(Kind::Block(round), id, count, out),
                        None => words.push(Kind::User, session.number, count, out),
                    });
                });
            }
            Prompts::TokenIds { range, seed } => {
                out.push(b'[');
                let block = self.calls.block_tokens;
                each_part(&call, call.input, block, |id, count| {
                    let (kind, number) = match id {
                        Some(id) => (Kind::Block(round), id),
                        None => (Kind::User, session.number),
                    };
                    push_ids(*range, *seed, kind, number, count, out);
                });
                // In place of the last comma.
                out.pop();
                out.push(b']');
            }
            Prompts::Fixed(_) => return Err("prompts of a trace cannot be made in advance".into()),
        }
        Ok(Sizes {
            prompt_tokens: Some(call.input),
            exact: true,
            output_tokens: call.output,
        })
    }
}

/// The parts of a prompt, each with how many words or ids it has: the blocks that it shares (with their numbers), and
/// then its own.
fn each_part(call: &Call, all: u64, block: u64, mut take: impl FnMut(Option<u64>, u64)) {
    let mut left = all;
    for id in &call.blocks {
        let count = left.min(block);
        take(Some(*id), count);
        left -= count;
    }
    take(None, left);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::prompts::Words;
    use crate::data::words::WORDS;
    use crate::data::{TraceData, TraceFormat};

    /// Two prompts that begin with the same block of 4, one with another, and one with two blocks.
    const ROWS: &str = r#"{"timestamp": 0, "input_length": 10, "output_length": 1, "hash_ids": [5]}
{"timestamp": 1, "input_length": 7, "output_length": 2, "hash_ids": [5]}
{"timestamp": 2, "input_length": 7, "output_length": 3, "hash_ids": [6]}
{"timestamp": 3, "input_length": 8, "output_length": 4, "hash_ids": [5, 9]}
"#;

    fn trace(prompts: Prompts) -> Trace {
        trace_of(ROWS, TraceFormat::Mooncake { block_tokens: 4 }, prompts)
    }

    fn trace_of(rows: &str, format: TraceFormat, prompts: Prompts) -> Trace {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.jsonl");
        std::fs::write(&path, rows).unwrap();
        let data = TraceData { path, format };
        Trace::new(
            Calls::load(&data, folder.path(), &mut vec![]).unwrap(),
            prompts,
        )
    }

    fn ids() -> Prompts {
        Prompts::TokenIds {
            range: (10, 1000),
            seed: 3,
        }
    }

    fn sent(trace: &Trace, number: u64) -> (Vec<u32>, Sizes) {
        let mut out = Vec::new();
        let session = Session::new(number, 1);
        let sizes = trace.write(Form::Text, &session, &mut out).unwrap();
        (serde_json::from_slice(&out).unwrap(), sizes)
    }

    #[test]
    fn prompts_have_in_common_what_the_recorded_ones_had() {
        let trace = trace(ids());
        let all: Vec<(Vec<u32>, Sizes)> = (0..4).map(|n| sent(&trace, n)).collect();
        let lengths: Vec<usize> = all.iter().map(|(ids, _)| ids.len()).collect();
        assert_eq!(lengths, [10, 7, 7, 8]);
        for ((ids, sizes), output) in all.iter().zip(1..) {
            assert_eq!(sizes.prompt_tokens, Some(ids.len() as u64));
            assert_eq!((sizes.output_tokens, sizes.exact), (output, true));
        }
        let of = |i: usize, range: std::ops::Range<usize>| all[i].0[range].to_vec();
        assert_eq!(of(0, 0..4), of(1, 0..4));
        assert_eq!(of(0, 0..4), of(3, 0..4));
        assert_ne!(of(0, 0..4), of(2, 0..4));
        // Behind the blocks each has its own.
        assert_ne!(of(0, 4..7), of(1, 4..7));
        assert_ne!(of(1, 4..7), of(2, 4..7));
        // Another level, or the trace once more, has other texts of the same lengths.
        for number in [1 << 32, 4] {
            let (ids, _) = sent(&trace, number);
            assert_eq!(ids.len(), 10);
            assert_ne!(ids[..4], all[0].0[..4]);
        }
        assert_eq!(trace.warning(4), None);
        assert!(trace.warning(5).unwrap().contains("4 requests"));
    }

    #[test]
    fn mooncakes_own_rows_share_their_first_block() {
        // The first two of its conversation trace (FAST '25).
        let rows = r#"{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]}
{"timestamp": 0, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27]}
"#;
        let trace = trace_of(rows, TraceFormat::parse("mooncake").unwrap(), ids());
        let (first, _) = sent(&trace, 0);
        let (second, _) = sent(&trace, 1);
        assert_eq!((first.len(), second.len()), (6758, 7322));
        let common = first.iter().zip(&second).take_while(|(a, b)| a == b);
        assert_eq!(common.count(), 512);
    }

    #[test]
    fn words_are_as_many_as_the_lengths_say() {
        let words = Words {
            list: WORDS.to_vec(),
            per_word: 1.0,
            overhead: 3,
            overhead_behind_prefix: 3,
            seed: 5,
        };
        let trace = trace(Prompts::Words(words));
        let text = |number: u64| -> Vec<String> {
            let mut out = Vec::new();
            let session = Session::new(number, 1);
            trace.write(Form::Text, &session, &mut out).unwrap();
            let text: String = serde_json::from_slice(&out).unwrap();
            text.split(' ').map(str::to_owned).collect()
        };
        let (first, second) = (text(0), text(1));
        // Of the three tokens around it, one is the opening.
        assert_eq!((first.len(), second.len()), (10 - 2, 7 - 2));
        assert_eq!(first[..5], second[..5]);
        assert_ne!(first[5..], text(1 << 32)[5..]);
    }
}
