//! Texts of a known length, each different from its first words on, so that no prefix cache helps.
//! Made when they are needed, from the seed and a number alone.

use crate::body::push_number;
use crate::random::{Random, mix};

/// What prompts are made of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompts {
    /// The opening and words of the list.
    Words(Words),
    /// Token ids in place of text.
    TokenIds {
        /// Smallest id, and the one past the largest.
        range: (u32, u32),
        /// Seed.
        seed: u64,
    },
    /// Prompts made in advance, with the tokens of each, taken in turn.
    Fixed(Vec<(String, u64)>),
}

/// Words, and how many make a number of tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Words {
    /// Words that cost the same each.
    pub list: Vec<&'static str>,
    /// Tokens that a word costs.
    pub per_word: f64,
    /// Tokens of a prompt besides the words: the opening and what the server puts around the text.
    pub overhead: u64,
    /// The same where a system prompt stands before it, which it does not count.
    pub overhead_behind_prefix: u64,
    /// Seed.
    pub seed: u64,
}

/// What a text is for: texts of the same number but of different kinds have nothing in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What a user says: the number is the request's.
    User,
    /// What many prompts begin with.
    Prefix,
    /// A block that prompts of a trace have in common, within a level of this number.
    Block(u64),
}

impl Words {
    /// How many words make up so many tokens, besides an overhead.
    pub fn count(&self, tokens: u64, overhead: u64) -> u64 {
        let left = tokens.saturating_sub(overhead);
        if self.per_word == 1.0 {
            left
        } else {
            (left as f64 / self.per_word) as u64
        }
    }

    /// Append `count` words, each with a space in front. Plain letters: nothing to escape.
    pub fn push(&self, kind: Kind, number: u64, count: u64, out: &mut Vec<u8>) {
        for_each_index(kind.seed(self.seed), number, count, self.list.len(), |i| {
            out.push(b' ');
            out.extend_from_slice(self.list[i].as_bytes());
        });
    }
}

impl Kind {
    /// The seed of this kind's texts.
    fn seed(self, seed: u64) -> u64 {
        match self {
            Kind::User => seed,
            Kind::Prefix => mix(seed ^ 0x7072_6566_6978),
            Kind::Block(level) => mix(mix(seed ^ 0x62_6c6f_636b) ^ level),
        }
    }
}

/// Append so many token ids of a range, each with a comma behind it.
pub(crate) fn push_ids(
    range: (u32, u32),
    seed: u64,
    kind: Kind,
    number: u64,
    count: u64,
    out: &mut Vec<u8>,
) {
    let (low, width) = (range.0, range.1.saturating_sub(range.0).max(1));
    for_each_index(kind.seed(seed), number, count, width as usize, |i| {
        push_number(out, u64::from(low) + i as u64);
        out.push(b',');
    });
}

/// `count` indices below `n`: the first spell the mixed number in base `n`, so that no two numbers begin
/// alike; the rest are random.
fn for_each_index(seed: u64, number: u64, count: u64, n: usize, mut take: impl FnMut(usize)) {
    let n = n.max(1) as u64;
    let mut random = Random::new(seed, number);
    let mut unique = random.own();
    for _ in 0..count {
        if unique > 0 {
            take((unique % n) as usize);
            unique = if n > 1 { unique / n } else { 0 };
        } else {
            take(random.below(n) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::words::WORDS;
    use std::collections::HashSet;

    fn words(seed: u64) -> Words {
        Words {
            list: WORDS.to_vec(),
            per_word: 1.0,
            overhead: 1,
            overhead_behind_prefix: 1,
            seed,
        }
    }

    fn text(words: &Words, kind: Kind, number: u64) -> String {
        let mut out = Vec::new();
        words.push(kind, number, 127, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn prompts_differ_from_their_first_words_on() {
        let w = words(1);
        let starts: HashSet<String> = (0..5000u64)
            .map(|i| {
                let text = text(&w, Kind::User, i << 7);
                assert_eq!(text.split(' ').count(), 128);
                text.split(' ').take(6).collect::<Vec<_>>().join(" ")
            })
            .collect();
        assert_eq!(starts.len(), 5000);
        assert_eq!(text(&w, Kind::User, 3), text(&w, Kind::User, 3));
        assert_ne!(text(&w, Kind::User, 3), text(&w, Kind::Prefix, 3));
        assert_ne!(text(&w, Kind::User, 3), text(&words(2), Kind::User, 3));
    }

    #[test]
    fn words_that_cost_several_tokens_are_fewer() {
        assert_eq!(words(1).count(128, 1), 127);
        assert_eq!(words(1).count(1, 3), 0);
        let long = Words {
            per_word: 5.0,
            ..words(1)
        };
        assert_eq!(long.count(128, 0), 25);
    }

    #[test]
    fn token_ids_stay_in_their_range() {
        let mut out = Vec::new();
        push_ids((100, 105), 7, Kind::User, 9, 128, &mut out);
        let text = String::from_utf8(out).unwrap();
        let ids: Vec<u32> = text
            .split_terminator(',')
            .map(|id| id.parse().unwrap())
            .collect();
        assert_eq!(ids.len(), 128);
        assert!(ids.iter().all(|id| (100..105).contains(id)));
    }
}
