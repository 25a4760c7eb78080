//! The bytes of a request: all that does not change is made once, a request adds its prompt and its number of
//! output tokens.

use std::io::Write;
use std::ops::Range;

use serde_json::{Map, Value, json};

use crate::form::Form;
use crate::target::{BaseUrl, Endpoint, TargetConfig};

/// Which optional fields the server takes; found out before the first level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BodyShape {
    /// `ignore_eos`: run on past the end token, so that outputs have exactly `max_tokens`.
    pub ignore_eos: bool,
    /// `min_tokens`, the same for servers that know it better.
    pub min_tokens: bool,
    /// `stream_options.include_usage`.
    pub include_usage: bool,
}

impl BodyShape {
    /// What is tried first; `ignore_eos` if it was asked for.
    pub fn most(config: &TargetConfig, ignore_eos: bool) -> Self {
        let (endpoint, generates) = (config.endpoint, config.endpoint.generates());
        BodyShape {
            ignore_eos: ignore_eos && generates,
            // No field of the Responses API.
            min_tokens: ignore_eos && generates && endpoint != Endpoint::Responses,
            // Answers of the others, and those that are not streamed, always carry it.
            include_usage: !config.no_stream
                && matches!(endpoint, Endpoint::Completions | Endpoint::ChatCompletions),
        }
    }
}

/// A request but for its prompt and its number of output tokens.
#[derive(Debug, Clone)]
pub(crate) struct RequestTemplate {
    /// Head up to the value of Content-Length.
    head: Vec<u8>,
    /// Body before the prompt.
    prefix: &'static [u8],
    /// What stands before each number of output tokens in the body: one field or two, or none.
    counts: Vec<Vec<u8>>,
    /// Body behind them.
    suffix: Vec<u8>,
    /// How the endpoint takes a prompt.
    pub form: Form,
    /// Are there tokens in the answer, and do they come one by one?
    pub generates: bool,
    pub streams: bool,
}

impl RequestTemplate {
    /// A greedy request.
    pub fn new(base: &BaseUrl, config: &TargetConfig, model: &str, shape: BodyShape) -> Self {
        let mut fields = Map::new();
        fields.insert("model".into(), json!(model));
        let generates = config.endpoint.generates();
        let streams = generates && !config.no_stream;
        let mut counts = Vec::new();
        if generates {
            counts.push(match config.endpoint {
                Endpoint::Responses => "max_output_tokens",
                _ => "max_tokens",
            });
            fields.insert("temperature".into(), json!(0));
            fields.insert("stream".into(), json!(streams));
        }
        if shape.include_usage {
            fields.insert("stream_options".into(), json!({"include_usage": true}));
        }
        if shape.ignore_eos {
            fields.insert("ignore_eos".into(), json!(true));
        }
        if shape.min_tokens {
            counts.push("min_tokens");
        }
        counts.retain(|name| !config.extra_body.contains_key(*name));
        for (name, value) in &config.extra_body {
            fields.insert(name.clone(), value.clone());
        }
        // `{...}` without its brace follows the prompt.
        let fields = Value::Object(fields).to_string();
        let (form, prefix): (_, &[u8]) = match config.endpoint {
            Endpoint::Completions => (Form::Text, b"{\"prompt\":"),
            Endpoint::ChatCompletions => (Form::Messages, b"{\"messages\":"),
            Endpoint::Responses => (Form::TextOrMessages, b"{\"input\":"),
            Endpoint::Embeddings => (Form::Text, b"{\"input\":"),
        };
        let mut head = head_lines(
            base,
            config,
            "POST",
            &format!("{}{}", base.root, config.endpoint.path()),
        );
        let accept = match streams {
            true => "text/event-stream",
            false => "application/json",
        };
        head.push_str(&format!(
            "Accept: {accept}\r\nContent-Type: application/json\r\nContent-Length: "
        ));
        RequestTemplate {
            head: head.into_bytes(),
            prefix,
            counts: counts
                .into_iter()
                .map(|name| format!(",\"{name}\":").into_bytes())
                .collect(),
            suffix: format!(",{}", &fields[1..]).into_bytes(),
            form,
            generates,
            streams,
        }
    }

    /// Write the whole request into `wire` and its body into `body` (both cleared first). `prompt` appends
    /// the prompt in the endpoint's form and tells how many output tokens are wanted; where it stands in
    /// `body` is returned.
    pub fn write(
        &self,
        wire: &mut Vec<u8>,
        body: &mut Vec<u8>,
        prompt: impl FnOnce(&mut Vec<u8>) -> u64,
    ) -> Range<usize> {
        body.clear();
        body.extend_from_slice(self.prefix);
        let output_tokens = prompt(body);
        let prompt = self.prefix.len()..body.len();
        for count in &self.counts {
            body.extend_from_slice(count);
            push_number(body, output_tokens);
        }
        body.extend_from_slice(&self.suffix);
        wire.clear();
        wire.extend_from_slice(&self.head);
        push_number(wire, body.len() as u64);
        wire.extend_from_slice(b"\r\n\r\n");
        wire.extend_from_slice(body);
        prompt
    }
}

/// Append a number in digits, without a string of its own.
pub(crate) fn push_number(out: &mut Vec<u8>, number: u64) {
    // A vector takes all that is written to it.
    let _ = write!(out, "{number}");
}

/// Request line, Host, key and the user's headers, without the empty line.
fn head_lines(base: &BaseUrl, config: &TargetConfig, method: &str, path: &str) -> String {
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: powerband-bench/{}\r\nAccept-Encoding: identity\r\n",
        base.authority,
        env!("CARGO_PKG_VERSION")
    );
    if let Some(key) = &config.api_key {
        head.push_str(&format!("Authorization: Bearer {key}\r\n"));
    }
    for (name, value) in &config.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head
}

/// A small request of its own: GET, or POST where there is a body.
pub(crate) fn plain_request(
    base: &BaseUrl,
    config: &TargetConfig,
    path: &str,
    body: Option<&Value>,
) -> Vec<u8> {
    let method = if body.is_some() { "POST" } else { "GET" };
    let mut request = head_lines(base, config, method, &format!("{}{path}", base.root));
    match body {
        None => request.push_str("\r\n"),
        Some(body) => {
            let body = body.to_string();
            request.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
        }
    }
    request.into_bytes()
}

/// A header that would break the request apart is refused: its problem, if it has one.
pub(crate) fn header_problem(name: &str, value: &str) -> Option<String> {
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Some(format!("`{name}` is no header name"));
    }
    if http::HeaderValue::from_str(value).is_err() {
        return Some(format!(
            "the value of `{name}` has characters that a header cannot carry"
        ));
    }
    let own = ["content-length", "transfer-encoding", "connection", "host"];
    own.iter()
        .any(|o| name.eq_ignore_ascii_case(o))
        .then(|| format!("`{name}` is set by the client itself"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(config: &TargetConfig, shape: BodyShape) -> (String, Value) {
        let base = BaseUrl::parse("http://h:1/base/v1").unwrap();
        let template = RequestTemplate::new(&base, config, "m\"x", shape);
        let (mut wire, mut scratch) = (vec![1], vec![2]);
        let prompt = template.write(&mut wire, &mut scratch, |out| {
            template
                .form
                .write(out, &[], None, |out| out.extend_from_slice(b"hello"));
            64
        });
        assert!(scratch[prompt].ends_with(match template.form {
            Form::Messages => b"\"hello\"}]",
            _ => b"\"hello\"",
        }));
        let text = String::from_utf8(wire).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("Content-Length: {}", body.len())),
            "{head}"
        );
        (head.to_owned(), serde_json::from_str(body).unwrap())
    }

    const ALL: BodyShape = BodyShape {
        ignore_eos: true,
        min_tokens: true,
        include_usage: true,
    };
    const NONE: BodyShape = BodyShape {
        ignore_eos: false,
        min_tokens: false,
        include_usage: false,
    };

    #[test]
    fn completions_with_every_field() {
        let mut config = TargetConfig {
            api_key: Some("k".into()),
            ..TargetConfig::default()
        };
        config.headers.push(("X-A".into(), "b".into()));
        config.extra_body.insert("temperature".into(), json!(0.5));
        let (head, body) = request(&config, ALL);
        assert!(head.starts_with("POST /base/v1/completions HTTP/1.1\r\nHost: h:1\r\n"));
        assert!(head.contains("Authorization: Bearer k\r\nX-A: b\r\n"));
        assert_eq!(
            body,
            json!({"prompt": "hello", "model": "m\"x", "max_tokens": 64, "temperature": 0.5, "stream": true,
                   "stream_options": {"include_usage": true}, "ignore_eos": true, "min_tokens": 64})
        );
    }

    #[test]
    fn chat_with_the_least() {
        let config = TargetConfig {
            endpoint: Endpoint::ChatCompletions,
            ..TargetConfig::default()
        };
        let (head, body) = request(&config, NONE);
        assert!(head.starts_with("POST /base/v1/chat/completions "));
        assert_eq!(
            body,
            json!({"messages": [{"role": "user", "content": "hello"}], "model": "m\"x", "max_tokens": 64,
                   "temperature": 0, "stream": true})
        );
    }

    #[test]
    fn responses_embeddings_and_whole_answers() {
        let of = |endpoint, no_stream| {
            let config = TargetConfig {
                endpoint,
                no_stream,
                ..TargetConfig::default()
            };
            request(&config, BodyShape::most(&config, true)).1
        };
        assert_eq!(
            of(Endpoint::Responses, false),
            json!({"input": "hello", "model": "m\"x", "max_output_tokens": 64, "temperature": 0, "stream": true,
                   "ignore_eos": true})
        );
        assert_eq!(
            of(Endpoint::Embeddings, false),
            json!({"input": "hello", "model": "m\"x"})
        );
        assert_eq!(
            of(Endpoint::Completions, true),
            json!({"prompt": "hello", "model": "m\"x", "max_tokens": 64, "temperature": 0, "stream": false,
                   "ignore_eos": true, "min_tokens": 64})
        );
    }

    #[test]
    fn a_users_own_number_of_tokens_wins() {
        let mut config = TargetConfig::default();
        config.extra_body.insert("max_tokens".into(), json!(9));
        let (_, body) = request(&config, ALL);
        assert_eq!(
            (&body["max_tokens"], &body["min_tokens"]),
            (&json!(9), &json!(64))
        );
    }

    #[test]
    fn headers_cannot_break_the_request() {
        assert!(header_problem("X-A", "fine").is_none());
        for (name, value) in [
            ("X-A", "a\r\nEvil: b"),
            ("X A", "b"),
            ("Content-Length", "0"),
        ] {
            assert!(header_problem(name, value).is_some(), "{name}");
        }
    }
}
