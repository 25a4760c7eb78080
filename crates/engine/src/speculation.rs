//! Speculation without a second model: what followed the last tokens when they stood in the text
//! before is drafted as what follows now (prompt lookup).
//!
//! Drafts cost a sequence more rows of a step and nothing else: the executor samples after each of
//! them as it would have without, and keeps what agrees. What a request answers does not depend on
//! them.

/// Most tokens of a text that are searched, from its end: less work than a hundredth of the attention
/// that the same step computes over them, however long the text.
const SEARCHED: usize = 32 << 10;

/// Largest value of each setting.
const LARGEST: usize = 64;

/// Settings of prompt lookup, with vLLM's names (`--speculative-config`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NgramSpeculation {
    /// Most drafts of a sequence in one step.
    pub num_speculative_tokens: usize,
    /// Most tokens that are compared: the longest match is taken.
    pub prompt_lookup_max: usize,
    /// Tokens that must agree at least.
    pub prompt_lookup_min: usize,
    /// No drafts in steps of more sequences than this.
    pub disable_by_batch_size: Option<usize>,
}

impl NgramSpeculation {
    /// Are the settings in range?
    ///
    /// # Errors
    /// The setting that is not, and its range.
    pub fn check(&self) -> Result<(), String> {
        let most = self.prompt_lookup_max;
        for (name, value, most) in [
            (
                "num_speculative_tokens",
                self.num_speculative_tokens,
                LARGEST,
            ),
            ("prompt_lookup_max", most, LARGEST),
            (
                "prompt_lookup_min",
                self.prompt_lookup_min,
                most.min(LARGEST),
            ),
            (
                "disable_by_batch_size",
                self.disable_by_batch_size.unwrap_or(1),
                usize::MAX,
            ),
        ] {
            if value == 0 || value > most {
                return Err(match (name, most) {
                    (_, usize::MAX) => format!("{name} must be at least 1"),
                    ("prompt_lookup_min", _) => format!(
                        "{name} is {value}; it must be 1 to prompt_lookup_max, which is {most}"
                    ),
                    _ => format!("{name} is {value}; it must be 1 to {most}"),
                });
            }
        }
        Ok(())
    }

    /// At most `most` tokens that may follow `tokens`: those that followed the latest of the places
    /// where the longest run of the last tokens stood before.
    pub fn propose(&self, tokens: &[u32], most: usize) -> Vec<u32> {
        let tokens = &tokens[tokens.len().saturating_sub(SEARCHED)..];
        let most = most.min(self.num_speculative_tokens);
        let mut longest = self.prompt_lookup_min.saturating_sub(1);
        let mut found = None;
        for end in (1..tokens.len()).rev() {
            // Nothing from here on can be longer.
            if longest >= self.prompt_lookup_max.min(end) {
                break;
            }
            let before = tokens[..end].iter().rev();
            let pairs = before.zip(tokens.iter().rev());
            let equal = pairs
                .take(self.prompt_lookup_max)
                .take_while(|(a, b)| a == b);
            let length = equal.count();
            if length > longest {
                (longest, found) = (length, Some(end));
            }
        }
        let mut drafts = Vec::with_capacity(most);
        if let Some(end) = found {
            for at in end..end + most {
                // Beyond the end the drafts themselves go on: a loop in the text is drafted as a loop.
                let token = match at.checked_sub(tokens.len()) {
                    None => tokens[at],
                    Some(beyond) => drafts[beyond],
                };
                drafts.push(token);
            }
        }
        drafts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ngram(tokens: usize, max: usize, min: usize) -> NgramSpeculation {
        NgramSpeculation {
            num_speculative_tokens: tokens,
            prompt_lookup_max: max,
            prompt_lookup_min: min,
            disable_by_batch_size: None,
        }
    }

    #[test]
    fn what_followed_is_drafted() {
        let lookup = ngram(3, 4, 2);
        assert_eq!(lookup.propose(&[1, 2, 3, 4, 5, 1, 2], 9), [3, 4, 5]);
        assert_eq!(lookup.propose(&[1, 2, 3, 4, 5, 1, 2], 2), [3, 4]);
        assert_eq!(lookup.propose(&[1, 2, 3, 4, 5, 1, 2], 0), []);
    }

    #[test]
    fn too_short_a_match_drafts_nothing() {
        let lookup = ngram(3, 4, 2);
        assert_eq!(lookup.propose(&[1, 2, 3, 9, 2], 9), []);
        assert_eq!(ngram(3, 4, 1).propose(&[1, 2, 3, 9, 2], 9), [3, 9, 2]);
        for short in [&[][..], &[1], &[1, 1]] {
            assert_eq!(lookup.propose(short, 9), [], "{short:?}");
        }
    }

    #[test]
    fn the_longest_match_wins_then_the_latest() {
        // "2 3" stands twice before; "1 2 3" only at the beginning.
        let text = [1, 2, 3, 70, 9, 2, 3, 80, 1, 2, 3];
        assert_eq!(ngram(1, 4, 2).propose(&text, 9), [70]);
        assert_eq!(ngram(1, 2, 2).propose(&text, 9), [80]);
        let text = [5, 6, 70, 5, 6, 80, 5, 6];
        assert_eq!(ngram(1, 4, 2).propose(&text, 9), [80]);
    }

    #[test]
    fn a_loop_is_drafted_as_a_loop() {
        assert_eq!(ngram(5, 4, 2).propose(&[1, 8, 9, 8, 9], 9), [8, 9, 8, 9, 8]);
        assert_eq!(ngram(4, 4, 2).propose(&[3, 7, 7, 7], 9), [7, 7, 7, 7]);
    }

    #[test]
    fn a_text_of_any_length_is_searched_to_a_bound() {
        let mut text: Vec<u32> = (0..100_000).collect();
        text.extend([99_000, 99_001]);
        assert_eq!(ngram(2, 4, 2).propose(&text, 9), [99_002, 99_003]);
        text.extend([10, 11]);
        assert_eq!(ngram(2, 4, 2).propose(&text, 9), []);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        assert_eq!(ngram(64, 64, 1).check(), Ok(()));
        for (wrong, word) in [
            (ngram(0, 4, 2), "num_speculative_tokens"),
            (ngram(65, 4, 2), "1 to 64"),
            (ngram(4, 0, 0), "prompt_lookup_max"),
            (ngram(4, 65, 1), "prompt_lookup_max"),
            (ngram(4, 2, 3), "prompt_lookup_min"),
            (ngram(4, 2, 0), "prompt_lookup_min"),
        ] {
            let error = wrong.check().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        let never = NgramSpeculation {
            disable_by_batch_size: Some(0),
            ..ngram(4, 4, 2)
        };
        assert!(never.check().unwrap_err().contains("disable_by_batch_size"));
    }
}
