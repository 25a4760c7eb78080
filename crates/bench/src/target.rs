//! Where requests go: address, endpoint, key, headers, time limits.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::BenchError;

/// Which of the server's endpoints is loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Endpoint {
    /// `/v1/completions`: the prompt is what is counted, no template around it.
    #[default]
    #[serde(rename = "/v1/completions")]
    Completions,
    /// `/v1/chat/completions`: the prompt is a user message in the model's chat template.
    #[serde(rename = "/v1/chat/completions")]
    ChatCompletions,
    /// `/v1/responses`: the prompt is the input, in the model's chat template.
    #[serde(rename = "/v1/responses")]
    Responses,
    /// `/v1/embeddings`: the prompt is the input, nothing is generated.
    #[serde(rename = "/v1/embeddings")]
    Embeddings,
}

impl Endpoint {
    /// Its path.
    pub fn path(self) -> &'static str {
        match self {
            Endpoint::Completions => "/v1/completions",
            Endpoint::ChatCompletions => "/v1/chat/completions",
            Endpoint::Responses => "/v1/responses",
            Endpoint::Embeddings => "/v1/embeddings",
        }
    }

    /// Does it generate tokens? Where it does not, there are no times of tokens.
    pub fn generates(self) -> bool {
        self != Endpoint::Embeddings
    }

    /// Is the prompt taken as it is, without a template around it? Then it may be token ids too.
    pub fn takes_raw_prompts(self) -> bool {
        matches!(self, Endpoint::Completions | Endpoint::Embeddings)
    }

    /// The fewest output tokens that servers of the endpoint let one ask for.
    pub(crate) fn fewest_tokens(self) -> u64 {
        match self {
            Endpoint::Responses => 16,
            _ => 1,
        }
    }

    /// Read the short (`completions`, `chat`, `responses`, `embeddings`) or the long name
    /// (`/v1/chat/completions`).
    pub fn parse(name: &str) -> Option<Self> {
        match name.trim_start_matches('/').trim_start_matches("v1/") {
            "completions" => Some(Endpoint::Completions),
            "chat" | "chat/completions" => Some(Endpoint::ChatCompletions),
            "responses" => Some(Endpoint::Responses),
            "embeddings" => Some(Endpoint::Embeddings),
            _ => None,
        }
    }
}

/// The version of HTTP that requests are sent in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1: each stream has its own connection, so that none delays another.
    #[default]
    Http1,
    /// HTTP/2: up to a hundred streams share a connection. Over TLS the server has to offer it; in the clear it is
    /// taken for granted (h2c with prior knowledge).
    Http2,
    /// HTTP/2 where the server offers it in the handshake of TLS, else HTTP/1.1.
    Auto,
}

impl HttpVersion {
    /// Read `1.1`, `2` or `auto`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "1" | "1.1" => Some(HttpVersion::Http1),
            "2" => Some(HttpVersion::Http2),
            "auto" => Some(HttpVersion::Auto),
            _ => None,
        }
    }
}

/// Time limits of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the connection to stand.
    pub connect: Duration,
    /// From sending to the first byte of the answer.
    pub first_byte: Duration,
    /// Between two reads of an answer; `None` for no limit but `total`.
    pub idle: Option<Duration>,
    /// From sending to the last byte.
    pub total: Duration,
    /// The longest that a client of a closed loop waits before its next request where the server asks for
    /// it (429 or 503 with Retry-After). Zero: it does not wait. An open loop keeps its schedule.
    pub retry_after: Duration,
}

impl Default for Timeouts {
    /// 5 s to connect; up to 30 s of waiting on the server's word; an hour for the answer, since an overloaded server is what we measure.
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(3600),
            idle: None,
            total: Duration::from_secs(3600),
            retry_after: Duration::from_secs(30),
        }
    }
}

/// The server under load, as the user describes it.
#[derive(Debug, Clone, Default)]
pub struct TargetConfig {
    /// `http(s)://host[:port][/path]`, with or without `/v1` at the end.
    pub url: String,
    /// `host[:port]` that is connected to in place of the URL's, which still is the server's name in TLS and in
    /// each request. The port is the URL's unless given.
    pub connect_to: Option<String>,
    /// Version of HTTP.
    pub http: HttpVersion,
    /// Model; the server's first one if `None`.
    pub model: Option<String>,
    /// Endpoint.
    pub endpoint: Endpoint,
    /// Ask for whole answers (`stream: false`): then nothing is known of the times of tokens.
    pub no_stream: bool,
    /// Key, sent as a bearer token.
    pub api_key: Option<String>,
    /// Extra headers.
    pub headers: Vec<(String, String)>,
    /// Extra fields of each request's body; they win over ours.
    pub extra_body: serde_json::Map<String, serde_json::Value>,
    /// PEM file of certificate authorities to trust besides the public ones.
    pub ca_file: Option<PathBuf>,
    /// Trust any certificate; the results warn of it.
    pub insecure: bool,
    /// Time limits.
    pub timeouts: Timeouts,
}

/// A parsed base URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseUrl {
    /// Over TLS?
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Value of the Host header.
    pub authority: String,
    /// Path before `/v1`, without a slash at the end; often empty.
    pub root: String,
}

impl BaseUrl {
    /// Parse `--target`.
    pub fn parse(url: &str) -> Result<Self, BenchError> {
        let problem = |text: &str| {
            BenchError::config(
                "--target",
                format!("`{url}` {text}; it should look like http://127.0.0.1:8000"),
            )
        };
        let uri: http::Uri = url
            .trim()
            .parse()
            .map_err(|e| problem(&format!("is not a URL ({e})")))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(other) => return Err(problem(&format!("has the scheme `{other}`"))),
            None => return Err(problem("has no http:// or https:// in front")),
        };
        let authority = uri.authority().ok_or_else(|| problem("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(problem(
                "carries a user name: pass a key with --api-key instead",
            ));
        }
        if uri.query().is_some() {
            return Err(problem("has a query"));
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if host.is_empty() {
            return Err(problem("names no host"));
        }
        let path = uri.path().trim_end_matches('/');
        Ok(BaseUrl {
            tls,
            host,
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            root: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
        })
    }

    /// The address again, without `/v1`.
    pub fn display(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority, self.root)
    }
}

/// Split `host[:port]`, the value of `--connect-to`; an IPv6 address has brackets if there is a port.
pub(crate) fn host_and_port(place: &str, default_port: u16) -> Result<(String, u16), BenchError> {
    let problem = || {
        BenchError::config(
            "--connect-to",
            format!("`{place}` should look like 10.0.0.5, 10.0.0.5:8000 or [::1]:8000"),
        )
    };
    let text = place.trim();
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Ok((text.to_owned(), default_port));
    }
    let authority: http::uri::Authority = text.parse().map_err(|_| problem())?;
    let host = authority.host();
    // A port that is no number would otherwise be taken for none.
    let port = match &text[host.len().min(text.len())..] {
        "" => default_port,
        port => (port.strip_prefix(':').and_then(|p| p.parse().ok())).ok_or_else(problem)?,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || text.contains('@') {
        return Err(problem());
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_connect_to() {
        for (place, host, port) in [
            ("10.0.0.5", "10.0.0.5", 443),
            (" h.local:8000 ", "h.local", 8000),
            ("::1", "::1", 443),
            ("[::1]", "::1", 443),
            ("[::1]:80", "::1", 80),
        ] {
            let (found, at) = host_and_port(place, 443).unwrap();
            assert_eq!((found.as_str(), at), (host, port), "{place}");
        }
        for bad in ["", ":80", "h:x", "h:99999", "http://h", "u@h", "a b"] {
            let error = host_and_port(bad, 1).unwrap_err().to_string();
            assert!(error.contains("--connect-to"), "{bad}: {error}");
        }
    }

    #[test]
    fn with_or_without_v1() {
        for url in [
            "http://h:8000",
            "http://h:8000/",
            "http://h:8000/v1",
            "http://h:8000/v1/",
        ] {
            let base = BaseUrl::parse(url).unwrap();
            assert_eq!(base.display(), "http://h:8000", "{url}");
            assert_eq!(
                (base.host.as_str(), base.port, base.tls),
                ("h", 8000, false)
            );
        }
        let base = BaseUrl::parse("https://api.example.org/openai/v1").unwrap();
        assert_eq!(
            (base.port, base.tls, base.root.as_str()),
            (443, true, "/openai")
        );
        let base = BaseUrl::parse("http://[::1]:8000/v1").unwrap();
        assert_eq!(
            (base.host.as_str(), base.authority.as_str()),
            ("::1", "[::1]:8000")
        );
    }

    #[test]
    fn bad_urls_say_what_is_wrong() {
        for (url, words) in [
            ("127.0.0.1:8000", "http://"),
            ("localhost", "http://"),
            ("ftp://h", "scheme `ftp`"),
            ("http://", "--target"),
            ("http://u:p@h/", "--api-key"),
            ("http://h/?a=b", "query"),
            ("", "--target"),
        ] {
            let error = BaseUrl::parse(url).unwrap_err().to_string();
            assert!(error.contains(words), "{url}: {error}");
        }
    }

    #[test]
    fn endpoint_names() {
        assert_eq!(Endpoint::parse("chat"), Some(Endpoint::ChatCompletions));
        assert_eq!(
            Endpoint::parse("/v1/completions"),
            Some(Endpoint::Completions)
        );
        assert_eq!(Endpoint::parse("rerank"), None);
        for endpoint in [Endpoint::Responses, Endpoint::Embeddings] {
            assert_eq!(Endpoint::parse(endpoint.path()), Some(endpoint));
            assert_eq!(Endpoint::parse(&endpoint.path()[4..]), Some(endpoint));
        }
    }
}
