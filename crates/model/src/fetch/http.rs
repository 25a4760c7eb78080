//! GET requests to the hub: the token goes to the hub and nowhere else, and nothing waits for ever.

use std::sync::mpsc;
use std::time::Duration;

use ureq::http::header::{LOCATION, RANGE};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use super::{FetchError, FetchOptions, Token};

/// Repositories that were renamed and file stores come to three or so.
const MAX_REDIRECTS: usize = 8;
/// The listing of the largest repositories is some hundreds of kilobytes.
const MAX_TEXT: u64 = 16 << 20;

/// A client for one hub.
#[derive(Debug, Clone)]
pub(super) struct Http {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
    deadline: Duration,
}

/// Status, headers and text of a small answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Http {
    pub(super) fn new(options: &FetchOptions) -> Result<Self, FetchError> {
        // A token with a line break would be a header of its own; no token has one.
        let bad = |token: &Token| !token.secret().bytes().all(|b| b.is_ascii_graphic());
        if options.token.as_ref().is_some_and(bad) {
            return Err(FetchError::BadToken {
                endpoint: options.endpoint.clone(),
            });
        }
        let connect = options.deadline.max(Duration::from_secs(1));
        let agent = Agent::config_builder()
            // Redirects are followed here, where it is decided who sees the token.
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_resolve(Some(connect))
            .timeout_connect(Some(connect))
            .timeout_recv_response(Some(options.stall))
            .timeout_per_read(Some(options.stall))
            .timeout_per_write(Some(options.stall))
            .user_agent(concat!("powerband/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self {
            agent,
            endpoint: options.endpoint.clone(),
            token: options.token.clone(),
            deadline: options.deadline,
        })
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// A foreign text in which the token, should it be repeated there, is hidden.
    pub(super) fn without_token(&self, text: &str) -> String {
        match &self.token {
            Some(token) => text.replace(token.secret(), "(token)"),
            None => text.to_owned(),
        }
    }

    /// A text from `path` of the hub, whose first answer must come within the deadline. A name lookup
    /// cannot be stopped, so it runs in a thread that is left behind when it takes too long.
    pub(super) fn text(&self, path: &str) -> Result<Answer, FetchError> {
        let (first, answered) = mpsc::channel();
        let (whole, done) = mpsc::channel();
        let http = self.clone();
        let path = path.to_owned();
        std::thread::spawn(move || {
            let response = http.get(&path, None);
            // The receiver is gone when the deadline has passed.
            let _ = first.send(());
            let _ = whole.send(response.and_then(|response| http.read_text(response)));
        });
        let silent = |_| FetchError::NoAnswer {
            endpoint: self.endpoint.clone(),
            deadline: self.deadline,
        };
        answered.recv_timeout(self.deadline).map_err(silent)?;
        // The body of a hub that has answered may take longer, but not for ever.
        let rest = self.deadline.max(Duration::from_secs(1)) * 10;
        done.recv_timeout(rest).map_err(silent)?
    }

    fn read_text(&self, response: Response<Body>) -> Result<Answer, FetchError> {
        let (parts, mut body) = response.into_parts();
        let text = body.with_config().limit(MAX_TEXT).lossy_utf8(true);
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: text.read_to_string().map_err(|e| self.unreachable(&e))?,
        })
    }

    /// A GET of `path` of the hub, from byte `from` on, after all redirects.
    pub(super) fn get(&self, path: &str, from: Option<u64>) -> Result<Response<Body>, FetchError> {
        let home = self.parse(&self.endpoint)?;
        let mut uri = self.parse(&format!("{}{path}", self.endpoint))?;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&uri);
            if let Some(token) = self.token.as_ref().filter(|_| same_origin(&uri, &home)) {
                request = request.header("authorization", format!("Bearer {}", token.secret()));
            }
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request.call().map_err(|e| self.unreachable(&e))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION);
            let next = location
                .and_then(|location| location.to_str().ok())
                .and_then(|location| join(&uri, location))
                .ok_or_else(|| self.not_the_hub("a redirect that leads nowhere"))?;
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(self.not_the_hub("a redirect from https to http"));
            }
            uri = next;
        }
        Err(self.not_the_hub("too many redirects"))
    }

    fn parse(&self, url: &str) -> Result<Uri, FetchError> {
        let uri = url.parse::<Uri>().ok();
        uri.filter(|uri| uri.host().is_some() && uri.scheme().is_some())
            .ok_or_else(|| self.not_the_hub("its address is no http:// or https:// URL"))
    }

    fn not_the_hub(&self, reason: &str) -> FetchError {
        FetchError::NotTheHub {
            endpoint: self.endpoint.clone(),
            reason: reason.to_owned(),
        }
    }

    /// What failed below HTTP, without addresses: those of a file store hold signatures.
    fn unreachable(&self, error: &ureq::Error) -> FetchError {
        let reason = match error {
            ureq::Error::HostNotFound => "the host name is not known".to_owned(),
            ureq::Error::Timeout(_) => "it did not answer in time".to_owned(),
            ureq::Error::BadUri(_) => "its address is no valid URL".to_owned(),
            ureq::Error::Io(error) => error.to_string(),
            other => other.to_string(),
        };
        FetchError::Unreachable {
            endpoint: self.endpoint.clone(),
            reason,
        }
    }
}

/// Same scheme, host and port.
fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| {
        let default = if uri.scheme_str() == Some("https") {
            443
        } else {
            80
        };
        uri.port_u16().unwrap_or(default)
    };
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

/// The address that a redirect from `from` leads to.
fn join(from: &Uri, location: &str) -> Option<Uri> {
    let scheme = from.scheme_str()?;
    let authority = from.authority()?;
    // A fragment is the browser's business.
    let location = location.split('#').next()?;
    let absolute = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from.path().rsplit_once('/')?.0;
        format!("{scheme}://{authority}{folder}/{location}")
    };
    absolute
        .parse::<Uri>()
        .ok()
        .filter(|uri| uri.host().is_some())
}

/// `text` as part of a path in a URL; slashes stay.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_joined_as_browsers_do() {
        let from: Uri = "https://hub.example/o/n/resolve/main/x".parse().unwrap();
        let cases = [
            ("https://cdn.example/y?s=1#f", "https://cdn.example/y?s=1"),
            ("/api/cache/x", "https://hub.example/api/cache/x"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("y", "https://hub.example/o/n/resolve/main/y"),
        ];
        for (location, expected) in cases {
            assert_eq!(join(&from, location).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://Hub.example/a", "https://hub.example:443"));
        assert!(!same("https://hub.example", "http://hub.example"));
        assert!(!same("https://hub.example", "https://hub.example.evil.org"));
        assert!(!same("https://hub.example", "https://hub.example:8443"));
        assert!(!same(
            "https://hub.example@evil.org/",
            "https://hub.example"
        ));
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escape("a b/ü?.gguf"), "a%20b/%C3%BC%3F.gguf");
    }
}
