//! Log-probabilities in the two shapes of the API.

use powerband_engine::TokenOutput;
use powerband_engine::request::TokenLogprobs;
use powerband_model::Tokenizer;

use crate::write;

/// How tokens are named in log-probabilities.
pub(crate) struct Names<'a> {
    pub tokenizer: Option<&'a Tokenizer>,
    /// `token_id:ID` even where there is a tokenizer.
    pub as_ids: bool,
}

impl Names<'_> {
    /// The token's text, broken characters replaced.
    fn text(&self, id: u32) -> String {
        match self.tokenizer {
            Some(tokenizer) if !self.as_ids => {
                String::from_utf8_lossy(&tokenizer.token_bytes(id)).into_owned()
            }
            _ => format!("token_id:{id}"),
        }
    }

    fn bytes(&self, id: u32) -> Vec<u8> {
        match self.tokenizer {
            Some(tokenizer) => tokenizer.token_bytes(id),
            None => Vec::new(),
        }
    }
}

fn of(output: &TokenOutput) -> Option<&TokenLogprobs> {
    output.logprobs.as_ref()
}

/// The shape of completions: parallel lists. `offset` is where the first token's text begins and is
/// moved past the last.
pub(crate) fn completion(
    out: &mut Vec<u8>,
    tokens: &[TokenOutput],
    names: &Names<'_>,
    offset: &mut usize,
) {
    out.extend_from_slice(b"{\"text_offset\":");
    let texts: Vec<String> = tokens
        .iter()
        .map(|output| names.text(output.token))
        .collect();
    let offsets: Vec<usize> = texts
        .iter()
        .map(|text| {
            let start = *offset;
            *offset += text.chars().count();
            start
        })
        .collect();
    write::json(out, &offsets);
    out.extend_from_slice(b",\"token_logprobs\":");
    list(out, tokens, |out, output| match of(output) {
        Some(logprobs) => write::logprob(out, logprobs.logprob),
        None => out.extend_from_slice(b"null"),
    });
    out.extend_from_slice(b",\"tokens\":");
    write::json(out, &texts);
    out.extend_from_slice(b",\"top_logprobs\":");
    list(out, tokens, |out, output| match of(output) {
        Some(logprobs) => top_by_text(out, output.token, logprobs, names),
        None => out.extend_from_slice(b"null"),
    });
    out.push(b'}');
}

/// `{"text": logprob}` of the likeliest tokens, and of the sampled one if it is not among them.
fn top_by_text(out: &mut Vec<u8>, sampled: u32, logprobs: &TokenLogprobs, names: &Names<'_>) {
    let mut seen: Vec<String> = Vec::with_capacity(logprobs.top.len() + 1);
    out.push(b'{');
    for (id, logprob) in logprobs
        .top
        .iter()
        .copied()
        .chain([(sampled, logprobs.logprob)])
    {
        let text = names.text(id);
        // Two tokens may be written alike (parts of characters): the likelier one stays.
        if seen.contains(&text) {
            continue;
        }
        if !seen.is_empty() {
            out.push(b',');
        }
        write::json(out, &text);
        out.push(b':');
        write::logprob(out, logprob);
        seen.push(text);
    }
    out.push(b'}');
}

/// The shape of chats: one object a token.
pub(crate) fn chat(out: &mut Vec<u8>, tokens: &[TokenOutput], names: &Names<'_>) {
    out.extend_from_slice(b"{\"content\":");
    list(out, tokens, |out, output| {
        let (logprob, top) = match of(output) {
            Some(logprobs) => (logprobs.logprob, logprobs.top.as_slice()),
            None => (f32::NEG_INFINITY, [].as_slice()),
        };
        out.push(b'{');
        chat_token(out, output.token, logprob, names);
        out.extend_from_slice(b",\"top_logprobs\":");
        list(out, top, |out, (id, logprob)| {
            out.push(b'{');
            chat_token(out, *id, *logprob, names);
            out.push(b'}');
        });
        out.push(b'}');
    });
    out.push(b'}');
}

fn chat_token(out: &mut Vec<u8>, id: u32, logprob: f32, names: &Names<'_>) {
    out.extend_from_slice(b"\"token\":");
    write::json(out, &names.text(id));
    out.extend_from_slice(b",\"logprob\":");
    write::logprob(out, logprob);
    out.extend_from_slice(b",\"bytes\":");
    write::json(out, &names.bytes(id));
}

fn list<T>(out: &mut Vec<u8>, items: &[T], mut each: impl FnMut(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        each(out, item);
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names<'static> = Names {
        tokenizer: None,
        as_ids: false,
    };

    fn output() -> TokenOutput {
        TokenOutput {
            token: 7,
            logprobs: Some(TokenLogprobs {
                logprob: -2.5,
                top: vec![(1, -0.5), (2, f32::NEG_INFINITY)],
            }),
        }
    }

    #[test]
    fn completions_list_the_sampled_token_beside_the_likeliest() {
        let (mut out, mut offset) = (Vec::new(), 3);
        completion(&mut out, &[output()], &NAMES, &mut offset);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"text_offset":[3],"token_logprobs":[-2.5],"tokens":["token_id:7"],"top_logprobs":[{"token_id:1":-0.5,"token_id:2":-9999.0,"token_id:7":-2.5}]}"#
        );
        assert_eq!(offset, 3 + "token_id:7".len());
    }

    #[test]
    fn chats_have_an_object_a_token() {
        let mut out = Vec::new();
        chat(&mut out, &[output()], &NAMES);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"content":[{"token":"token_id:7","logprob":-2.5,"bytes":[],"top_logprobs":[{"token":"token_id:1","logprob":-0.5,"bytes":[]},{"token":"token_id:2","logprob":-9999.0,"bytes":[]}]}]}"#
        );
    }
}
