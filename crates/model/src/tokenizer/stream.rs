//! Detokenizing a stream: text comes out as soon as its last byte is there.

use crate::Tokenizer;

/// Collects the bytes of tokens and hands out whole characters. The pieces, joined, are what
/// [`Tokenizer::decode`] gives for all the tokens together.
#[derive(Debug, Default)]
pub struct IncrementalDecoder {
    skip_special: bool,
    pending: Vec<u8>,
}

impl IncrementalDecoder {
    /// `skip_special`: control tokens give no text.
    pub fn new(skip_special: bool) -> Self {
        Self {
            skip_special,
            pending: Vec::new(),
        }
    }

    /// The text that this token completes; often the token's own, empty inside a character.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        if !(self.skip_special && tokenizer.is_special(id)) {
            self.pending.extend_from_slice(tokenizer.token_slice(id));
        }
        self.complete()
    }

    /// What is left when no token will follow: U+FFFD for a character that was cut off.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }

    fn complete(&mut self) -> String {
        let mut text = String::new();
        let mut done = 0;
        loop {
            let rest = &self.pending[done..];
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    done = self.pending.len();
                    break;
                }
                Err(e) => {
                    text.push_str(&String::from_utf8_lossy(&rest[..e.valid_up_to()]));
                    done += e.valid_up_to();
                    // No length: the character may still be completed.
                    let Some(broken) = e.error_len() else { break };
                    text.push('\u{fffd}');
                    done += broken;
                }
            }
        }
        self.pending.drain(..done);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_join_to_the_lossy_whole(bytes in proptest::collection::vec(any::<u8>(), 0..40), cut in 1usize..5) {
            let mut decoder = IncrementalDecoder::new(true);
            let mut text = String::new();
            for piece in bytes.chunks(cut) {
                decoder.pending.extend_from_slice(piece);
                text += &decoder.complete();
            }
            text += &decoder.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes).into_owned());
        }
    }

    #[test]
    fn a_character_comes_out_with_its_last_byte() {
        let mut decoder = IncrementalDecoder::new(true);
        for (byte, expected) in "é😀".bytes().zip(["", "é", "", "", "", "😀"]) {
            decoder.pending.push(byte);
            assert_eq!(decoder.complete(), expected);
        }
    }
}
