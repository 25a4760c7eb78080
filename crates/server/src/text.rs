//! From token ids to the text a client sees: incremental decoding and stop strings.

use std::sync::Arc;

use powerband_model::{IncrementalDecoder, Tokenizer};

/// Finds stop strings in text that arrives in pieces. Text is held back only as long as it could
/// still be the beginning of one.
///
/// The match is the one that ends first (of those that end together, the longest), so the result
/// does not depend on how the text is cut into pieces.
pub(crate) struct StopScanner {
    stops: Arc<[String]>,
    include: bool,
    held: String,
}

impl StopScanner {
    /// With `include`, the stop string stays in the text.
    pub fn new(stops: Arc<[String]>, include: bool) -> Self {
        Self {
            stops,
            include,
            held: String::new(),
        }
    }

    /// The text that is safe to send, and the index of the stop string that was found.
    pub fn push(&mut self, piece: String) -> (String, Option<usize>) {
        if self.stops.is_empty() {
            return (piece, None);
        }
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&piece);
        let first = self
            .stops
            .iter()
            .enumerate()
            .filter_map(|(index, stop)| {
                text.find(stop.as_str())
                    .map(|start| (start + stop.len(), start, index))
            })
            .min();
        if let Some((end, start, index)) = first {
            text.truncate(if self.include { end } else { start });
            return (text, Some(index));
        }
        let keep = self
            .stops
            .iter()
            .map(|stop| overlap(text.as_bytes(), stop.as_bytes()))
            .max()
            .unwrap_or(0);
        // A stop string begins with a character, so this is between two characters.
        self.held = text.split_off(text.len() - keep);
        (text, None)
    }

    /// What was held back when the end came.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`, but not all of it.
fn overlap(text: &[u8], stop: &[u8]) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest)
        .rev()
        .find(|&length| text.ends_with(&stop[..length]))
        .unwrap_or(0)
}

/// The text of one sequence as it grows.
pub(crate) struct TextStream {
    tokenizer: Option<Arc<Tokenizer>>,
    decoder: IncrementalDecoder,
    scanner: StopScanner,
    /// Stop strings are not looked for in the text of this many tokens.
    unchecked: usize,
}

impl TextStream {
    pub fn new(
        tokenizer: Option<Arc<Tokenizer>>,
        skip_special: bool,
        scanner: StopScanner,
        min_tokens: usize,
    ) -> Self {
        Self {
            tokenizer,
            decoder: IncrementalDecoder::new(skip_special),
            scanner,
            unchecked: min_tokens,
        }
    }

    /// The text that one more token adds, and the stop string it ends at.
    pub fn push(&mut self, token: u32) -> (String, Option<usize>) {
        let Some(tokenizer) = &self.tokenizer else {
            return (String::new(), None);
        };
        let text = self.decoder.push(tokenizer, token);
        if self.unchecked > 0 {
            self.unchecked -= 1;
            return (text, None);
        }
        self.scanner.push(text)
    }

    /// The rest: a broken character, then what could have become a stop string.
    pub fn finish(&mut self) -> (String, Option<usize>) {
        let (mut text, stop) = self.scanner.push(self.decoder.finish());
        if stop.is_none() {
            text.push_str(&self.scanner.finish());
        }
        (text, stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], include: bool, pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let stops: Arc<[String]> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut scanner = StopScanner::new(stops, include);
        let mut sent = Vec::new();
        for piece in pieces {
            let (text, stop) = scanner.push((*piece).to_owned());
            sent.push(text);
            if stop.is_some() {
                return (sent, stop);
            }
        }
        sent.push(scanner.finish());
        (sent, None)
    }

    #[test]
    fn text_is_held_back_only_while_it_could_match() {
        let (sent, stop) = run(&["END"], false, &["aE", "N", "x", "E", "ND tail"]);
        assert_eq!(sent, ["a", "", "ENx", "", ""]);
        assert_eq!(stop, Some(0));
        let (sent, stop) = run(&["END"], false, &["aE", "N"]);
        assert_eq!((sent.concat().as_str(), stop), ("aEN", None));
    }

    #[test]
    fn the_match_that_ends_first_wins() {
        assert_eq!(
            run(&["bcd", "c"], false, &["abcd"]),
            (vec!["ab".to_owned()], Some(1))
        );
        assert_eq!(
            run(&["c", "bc"], false, &["abcd"]),
            (vec!["a".to_owned()], Some(1))
        );
        assert_eq!(
            run(&["c"], true, &["abcd"]),
            (vec!["abc".to_owned()], Some(0))
        );
        assert_eq!(run(&["aab"], false, &["aa", "ab"]).0.concat(), "a");
        assert_eq!(
            run(&["\u{e9}\u{20ac}"], false, &["x\u{e9}", "\u{20ac}y"])
                .0
                .concat(),
            "x"
        );
    }

    proptest! {
        #[test]
        fn how_the_text_is_cut_makes_no_difference(
            text in "[abé]{0,40}",
            stops in proptest::collection::vec("[abé]{1,5}", 1..4),
            include in any::<bool>(),
            cuts in proptest::collection::vec(1usize..5, 1..40),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let chars: Vec<char> = text.chars().collect();
            let mut pieces = Vec::new();
            let mut rest = chars.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece.iter().collect::<String>());
                rest = after;
            }
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let cut = run(&stops, include, &pieces);
            let whole = run(&stops, include, &[&text]);
            prop_assert_eq!(cut.0.concat(), whole.0.concat());
            prop_assert_eq!(cut.1, whole.1);
            // Independently: the shortest beginning of the text that ends in a stop string.
            let end = (0..=text.len())
                .filter(|end| text.is_char_boundary(*end))
                .find(|end| stops.iter().any(|stop| text[..*end].ends_with(stop)));
            let expected = match end {
                None => text.clone(),
                Some(end) if include => text[..end].to_owned(),
                Some(end) => {
                    let longest = stops.iter().filter(|stop| text[..end].ends_with(*stop)).map(|s| s.len()).max();
                    text[..end - longest.unwrap()].to_owned()
                }
            };
            prop_assert_eq!(whole.0.concat(), expected);
        }
    }
}
