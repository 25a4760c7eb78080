//! Sessions made up: texts of drawn lengths, shared prefixes, several turns.

use super::lengths::Drawn;
use super::prompts::{Kind, Prompts, push_ids};
use super::session::{Session, Sizes};
use super::words::OPENING;
use super::{DataConfig, PrefixBucket};
use crate::form::{Form, Part, push_escaped};
use crate::random::Random;

/// Draws that must not depend on each other have seeds of their own.
const PREFIX_DRAW: u64 = 0x7072_6566_6978_2064;
const SIZE_DRAW: u64 = 0x7369_7a65_2064_7261;

/// The sessions of a run that are made up.
#[derive(Debug, Clone)]
pub(crate) struct Synthetic {
    pub prompts: Prompts,
    pub prompt_tokens: Drawn,
    pub output_tokens: Drawn,
    pub prefixes: Vec<PrefixBucket>,
    pub turns: u32,
    pub think_s: Option<Drawn>,
    pub seed: u64,
}

/// What a session begins with.
#[derive(Debug, Clone, Copy)]
struct Prefix {
    number: u64,
    tokens: u64,
}

impl Synthetic {
    pub fn new(data: &DataConfig, prompts: Prompts, seed: u64) -> Self {
        Synthetic {
            prompts,
            prompt_tokens: Drawn::tokens(data.prompt_tokens, data.prompt_spread),
            output_tokens: Drawn::tokens(data.output_tokens, data.output_spread),
            prefixes: data.prefix_buckets.clone(),
            turns: data.turns,
            think_s: data.think_time.map(|t| t.drawn()),
            seed,
        }
    }

    /// Requests with prompts of one length: for trying things out.
    pub fn plain(prompts: Prompts, prompt_tokens: u64) -> Self {
        let data = DataConfig {
            prompt_tokens,
            ..DataConfig::default()
        };
        Synthetic::new(&data, prompts, 0)
    }

    /// The prompt and the output tokens that all requests have, where they do.
    pub fn uniform(&self) -> (Option<u64>, Option<u64>) {
        let alike = |prefix: &PrefixBucket| prefix.tokens == self.prefixes[0].tokens;
        let prompt = self
            .prompt_tokens
            .only()
            .filter(|_| self.turns == 1 && self.prefixes.iter().all(alike))
            .map(|tokens| tokens as u64 + self.prefixes.first().map_or(0, |p| p.tokens));
        (
            prompt,
            self.output_tokens.only().map(|tokens| tokens as u64),
        )
    }

    /// The draws of a turn, and what was drawn first: its lengths. The n-th session of each level has the
    /// same, so that levels differ in their load alone.
    fn drawn(&self, session: u64, turn: u32) -> (u64, u64, Random) {
        let within_level = session & u64::from(u32::MAX);
        let seed = self.seed ^ SIZE_DRAW ^ (u64::from(turn) << 32);
        let mut random = Random::apart(seed, within_level);
        let prompt = self.prompt_tokens.count(&mut random);
        let output = self.output_tokens.count(&mut random);
        (prompt, output, random)
    }

    /// What the user's think time after a turn is, seconds.
    pub fn think_s(&self, session: u64, turn: u32) -> f64 {
        let Some(think) = self.think_s else {
            return 0.0;
        };
        let (_, _, mut random) = self.drawn(session, turn);
        think.value(&mut random)
    }

    /// The prefix of a session: buckets by their weight, prefixes of a bucket equally often.
    fn prefix(&self, session: u64) -> Option<Prefix> {
        let all: u64 = self.prefixes.iter().map(|p| p.weight).sum();
        if all == 0 {
            return None;
        }
        let within_level = session & u64::from(u32::MAX);
        let mut random = Random::apart(self.seed ^ PREFIX_DRAW, within_level);
        let mut at = random.below(all);
        for (bucket, number) in self.prefixes.iter().zip(0u64..) {
            if at < bucket.weight {
                return (bucket.tokens > 0).then(|| Prefix {
                    number: (number << 32) + random.below(bucket.count),
                    tokens: bucket.tokens,
                });
            }
            at -= bucket.weight;
        }
        None
    }

    /// Append the session's next prompt.
    pub fn write(&self, form: Form, session: &Session, out: &mut Vec<u8>) -> Sizes {
        let (mut prompt_tokens, output_tokens, _) = self.drawn(session.number, session.turn);
        let first = session.turn == 0;
        let prefix = first.then(|| self.prefix(session.number)).flatten();
        match &self.prompts {
            Prompts::Words(words) => {
                let overhead = match (first, prefix) {
                    (true, None) => words.overhead,
                    (true, Some(_)) => words.overhead_behind_prefix,
                    // What is said later is counted without what the server puts around it.
                    (false, _) => 1,
                };
                let count = words.count(prompt_tokens, overhead);
                let system = |out: &mut Vec<u8>| {
                    if let Some(prefix) = prefix {
                        out.extend_from_slice(OPENING.as_bytes());
                        let count = words.count(prefix.tokens, 1);
                        words.push(Kind::Prefix, prefix.number, count, out);
                    }
                };
                let system: Option<Part<'_>> = prefix.map(|_| &system as Part<'_>);
                let number = session.text_number();
                form.write(out, &session.history, system, |out| {
                    out.extend_from_slice(OPENING.as_bytes());
                    words.push(Kind::User, number, count, out);
                });
            }
            Prompts::TokenIds { range, seed } => {
                out.push(b'[');
                if let Some(Prefix { number, tokens }) = prefix {
                    push_ids(*range, *seed, Kind::Prefix, number, tokens, out);
                }
                push_ids(
                    *range,
                    *seed,
                    Kind::User,
                    session.number,
                    prompt_tokens,
                    out,
                );
                // In place of the last comma.
                out.pop();
                out.push(b']');
            }
            Prompts::Fixed(prompts) => {
                let at = (session.number % prompts.len().max(1) as u64) as usize;
                let (text, tokens) = prompts.get(at).map_or(("", 0), |(t, n)| (t.as_str(), *n));
                prompt_tokens = tokens;
                form.write(out, &session.history, None, |out| push_escaped(out, text));
            }
        }
        let prefix_tokens = prefix.map_or(0, |p| p.tokens);
        Sizes {
            prompt_tokens: Some(session.context_tokens + prefix_tokens + prompt_tokens),
            exact: first,
            output_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::data::prompts::Words;
    use crate::data::words::WORDS;
    use crate::data::{Spread, ThinkTime};

    fn words(overhead: u64, overhead_behind_prefix: u64) -> Prompts {
        Prompts::Words(Words {
            list: WORDS.to_vec(),
            per_word: 1.0,
            overhead,
            overhead_behind_prefix,
            seed: 5,
        })
    }

    fn made(data: DataConfig, prompts: Prompts) -> Synthetic {
        Synthetic::new(&data, prompts, 5)
    }

    /// A session's first prompt as a text, and its sizes.
    fn first(synthetic: &Synthetic, number: u64) -> (String, Sizes) {
        let mut out = Vec::new();
        let session = Session::new(number, synthetic.turns);
        let sizes = synthetic.write(Form::Text, &session, &mut out);
        (serde_json::from_slice(&out).unwrap(), sizes)
    }

    #[test]
    fn a_prompt_has_as_many_words_as_tokens_are_wanted() {
        let data = DataConfig {
            prompt_spread: Spread {
                stdev: Some(20),
                ..Spread::default()
            },
            output_spread: Spread {
                min: Some(10),
                ..Spread::default()
            },
            ..DataConfig::default()
        };
        // Three tokens stand besides the words, one of them the opening.
        let synthetic = made(data, words(3, 0));
        assert_eq!(synthetic.uniform(), (None, None));
        let mut lengths = HashSet::new();
        for number in 0..200 {
            let (text, sizes) = first(&synthetic, number);
            assert!(sizes.exact && (10..=64).contains(&sizes.output_tokens));
            let tokens = sizes.prompt_tokens.unwrap();
            assert_eq!(text.split(' ').count() as u64 + 2, tokens);
            lengths.insert(tokens);
            // The same session of another level has the same lengths and other words.
            let (other, as_long) = first(&synthetic, (1 << 32) + number);
            assert_eq!(as_long, sizes);
            assert_ne!(other, text);
        }
        assert!(lengths.len() > 30, "{lengths:?}");
    }

    #[test]
    fn prefixes_are_shared_by_weight() {
        let bucket = |weight, count, tokens| PrefixBucket {
            weight,
            count,
            tokens,
        };
        let data = DataConfig {
            prompt_tokens: 10,
            // A quarter of the sessions has no prefix.
            prefix_buckets: vec![bucket(50, 2, 20), bucket(25, 1, 7), bucket(25, 1, 0)],
            ..DataConfig::default()
        };
        let synthetic = made(data, words(1, 1));
        let mut seen: HashMap<String, usize> = HashMap::new();
        for number in 0..4000 {
            let (text, sizes) = first(&synthetic, number);
            let words: Vec<&str> = text.split(' ').collect();
            assert_eq!(words.len() as u64, sizes.prompt_tokens.unwrap());
            let prefix = &words[..words.len() - 10];
            assert!([0, 7, 20].contains(&prefix.len()));
            *seen.entry(prefix.join(" ")).or_default() += 1;
        }
        let mut shares: Vec<(usize, usize)> = seen
            .iter()
            .map(|(text, n)| (text.split_terminator(' ').count(), *n))
            .collect();
        shares.sort_unstable();
        let lengths: Vec<usize> = shares.iter().map(|(length, _)| *length).collect();
        assert_eq!(lengths, [0, 7, 20, 20]);
        assert!(
            shares.iter().all(|(_, n)| n.abs_diff(1000) < 120),
            "{shares:?}"
        );
        assert_eq!(synthetic.uniform().0, None);
    }

    #[test]
    fn prefixes_of_one_length_make_prompts_of_one_length() {
        let bucket = PrefixBucket {
            count: 3,
            tokens: 20,
            ..PrefixBucket::default()
        };
        let data = DataConfig {
            prefix_buckets: vec![bucket],
            ..DataConfig::default()
        };
        assert_eq!(
            made(data.clone(), words(1, 1)).uniform(),
            (Some(148), Some(64))
        );
        let ids = Prompts::TokenIds {
            range: (5, 5000),
            seed: 1,
        };
        let mut starts = HashSet::new();
        for number in 0..50 {
            let mut out = Vec::new();
            let synthetic = made(data.clone(), ids.clone());
            let sizes = synthetic.write(Form::Text, &Session::new(number, 1), &mut out);
            let ids: Vec<u32> = serde_json::from_slice(&out).unwrap();
            assert_eq!((ids.len(), sizes.prompt_tokens), (148, Some(148)));
            starts.insert(ids[..20].to_vec());
        }
        assert_eq!(starts.len(), 3);
    }

    #[test]
    fn later_turns_have_no_prefix_and_follow_what_was_said() {
        let data = DataConfig {
            prompt_tokens: 4,
            output_tokens: 6,
            turns: 2,
            think_time: Some(ThinkTime::fixed(0.5)),
            prefix_buckets: vec![PrefixBucket {
                tokens: 3,
                ..PrefixBucket::default()
            }],
            ..DataConfig::default()
        };
        let synthetic = made(data, words(2, 2));
        let mut session = Session::new(9, 2);
        let mut out = Vec::new();
        synthetic.write(Form::Messages, &session, &mut out);
        let before: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(before[0]["content"].as_str().unwrap().split(' ').count(), 3);
        // Two tokens besides the words, one of which is the opening.
        assert_eq!(before[1]["content"].as_str().unwrap().split(' ').count(), 3);
        session.advance(Form::Messages, &out, "well", 7 + 6, 1);
        out.clear();
        let sizes = synthetic.write(Form::Messages, &session, &mut out);
        let after: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&after[0], &after[1]), (&before[0], &before[1]));
        assert_eq!(after[2]["content"], "well");
        let said = after[3]["content"].as_str().unwrap();
        assert_eq!(said.split(' ').count(), 4);
        assert_ne!(said, before[1]["content"]);
        assert_eq!((sizes.prompt_tokens, sizes.exact), (Some(13 + 4), false));
        assert_eq!(synthetic.think_s(9, 0), 0.5);
    }
}
