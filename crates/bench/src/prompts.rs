//! Prompts of a known length, each different from its first words on, so that no prefix cache helps.
//! Made when they are needed, from the seed and the request's number alone.

/// Everyday English words: with a space in front each is one token in the byte-pair vocabularies in use.
/// The calibration drops those that are not.
pub(crate) const WORDS: [&str; 189] = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "community",
    "name",
    "president",
    "team",
    "minute",
    "idea",
    "kid",
    "body",
    "information",
    "back",
    "parent",
    "face",
    "others",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
    "girl",
    "guy",
    "moment",
    "air",
    "teacher",
    "force",
    "education",
    "foot",
    "boy",
    "age",
    "policy",
    "music",
    "market",
    "sense",
    "nation",
    "plan",
    "college",
    "interest",
    "death",
    "experience",
    "effect",
    "use",
    "class",
    "control",
    "care",
    "field",
    "development",
    "role",
    "effort",
    "rate",
    "heart",
    "drug",
    "show",
    "leader",
    "light",
    "voice",
    "wife",
    "police",
    "mind",
    "price",
    "report",
    "decision",
    "son",
    "view",
    "relationship",
    "town",
    "road",
    "arm",
    "difference",
    "value",
    "building",
    "action",
    "season",
    "society",
    "tax",
    "director",
    "position",
    "player",
    "record",
    "paper",
    "space",
    "ground",
    "form",
    "event",
    "matter",
    "center",
    "couple",
    "site",
    "project",
    "activity",
    "star",
    "table",
    "need",
    "court",
    "oil",
    "situation",
    "cost",
    "industry",
    "figure",
    "street",
    "image",
    "phone",
    "data",
    "picture",
    "practice",
    "piece",
    "land",
    "product",
    "doctor",
    "wall",
    "news",
    "test",
    "movie",
    "north",
    "love",
    "step",
];

/// The word that every prompt starts with: without a space in front, words differ in their tokens, so
/// it is always the same one.
pub(crate) const OPENING: &str = "Say";

/// A mixing step that maps 64-bit numbers one to one.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A small random generator; also the schedule of Poisson arrivals.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// From a seed and a number: different numbers give different first values.
    pub fn new(seed: u64, number: u64) -> Self {
        Random(mix(seed).wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n` (n > 0).
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// A fraction in (0, 1].
    pub fn fraction(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

/// Where prompts come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Prompts {
    /// [`OPENING`] and `count` words of the list.
    Words {
        /// Words that cost one token each.
        words: Vec<&'static str>,
        /// How many a prompt has besides the opening.
        count: usize,
        /// Seed.
        seed: u64,
    },
    /// Token ids in place of text.
    TokenIds {
        /// How many.
        count: usize,
        /// Smallest id, and the one past the largest.
        range: (u32, u32),
        /// Seed.
        seed: u64,
    },
    /// Prompts made in advance, taken in turn.
    Fixed(Vec<String>),
}

impl Prompts {
    /// Append prompt `number` as JSON.
    pub fn write_json(&self, number: u64, out: &mut Vec<u8>) {
        match self {
            Prompts::Words { words, count, seed } => {
                out.push(b'"');
                out.extend_from_slice(OPENING.as_bytes());
                for_each_index(*seed, number, *count, words.len(), |i| {
                    out.push(b' ');
                    // Plain letters: nothing to escape.
                    out.extend_from_slice(words[i].as_bytes());
                });
                out.push(b'"');
            }
            Prompts::TokenIds { count, range, seed } => {
                out.push(b'[');
                let (low, width) = (range.0, range.1.saturating_sub(range.0).max(1));
                let mut first = true;
                for_each_index(*seed, number, *count, width as usize, |i| {
                    if !std::mem::take(&mut first) {
                        out.push(b',');
                    }
                    out.extend_from_slice((low + i as u32).to_string().as_bytes());
                });
                out.push(b']');
            }
            Prompts::Fixed(prompts) => {
                let prompt = prompts.get((number % prompts.len().max(1) as u64) as usize);
                out.extend_from_slice(serde_json::json!(prompt).to_string().as_bytes());
            }
        }
    }

    /// Prompt `number` as text; empty for token ids.
    pub fn text(&self, number: u64) -> String {
        let mut json = Vec::new();
        self.write_json(number, &mut json);
        serde_json::from_slice(&json).unwrap_or_default()
    }
}

/// `count` indices below `n`: the first spell the mixed number in base `n`, so that no two numbers begin
/// alike; the rest are random.
fn for_each_index(seed: u64, number: u64, count: usize, n: usize, mut take: impl FnMut(usize)) {
    let n = n.max(1) as u64;
    let mut random = Random::new(seed, number);
    let mut unique = mix(random.0);
    for _ in 0..count {
        if unique > 0 {
            take((unique % n) as usize);
            unique = if n > 1 { unique / n } else { 0 };
        } else {
            take(random.below(n) as usize);
        }
    }
}

/// The text of `words` after the opening: what the calibration counts.
pub(crate) fn sample(words: &[&str]) -> String {
    let mut text = OPENING.to_owned();
    for word in words {
        text.push(' ');
        text.push_str(word);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn prompts_differ_from_their_first_words_on() {
        let prompts = Prompts::Words {
            words: WORDS.to_vec(),
            count: 127,
            seed: 1,
        };
        let starts: HashSet<String> = (0..5000u64)
            .map(|i| {
                let text = prompts.text(i << 7);
                assert_eq!(text.split(' ').count(), 128);
                text.split(' ').take(6).collect::<Vec<_>>().join(" ")
            })
            .collect();
        assert_eq!(starts.len(), 5000);
        assert_eq!(prompts.text(3), prompts.text(3));
        assert_ne!(
            prompts.text(3),
            Prompts::Words {
                words: WORDS.to_vec(),
                count: 127,
                seed: 2
            }
            .text(3)
        );
    }

    #[test]
    fn token_ids_stay_in_their_range() {
        let prompts = Prompts::TokenIds {
            count: 128,
            range: (100, 105),
            seed: 7,
        };
        let mut json = Vec::new();
        prompts.write_json(9, &mut json);
        let ids: Vec<u32> = serde_json::from_slice(&json).unwrap();
        assert_eq!(ids.len(), 128);
        assert!(ids.iter().all(|id| (100..105).contains(id)));
    }

    #[test]
    fn fixed_prompts_are_escaped_and_taken_in_turn() {
        let prompts = Prompts::Fixed(vec!["a\"\n".into(), "b".into()]);
        assert_eq!(
            (prompts.text(0).as_str(), prompts.text(3).as_str()),
            ("a\"\n", "b")
        );
    }

    #[test]
    fn fractions_are_even() {
        let mut random = Random::new(5, 0);
        let mean = (0..10_000).map(|_| random.fraction()).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
