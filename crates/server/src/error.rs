//! What can go wrong: with the server as a whole, and with one request.

use std::borrow::Cow;

use http::{HeaderValue, Response, StatusCode, header};
use powerband_engine::SubmitError;
use serde_json::json;

use crate::body::Body;

/// The server could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Another process listens there.
    #[error(
        "cannot listen on {address}: the port is in use; choose another with --port (0 takes any free \
         one), or stop the process that holds it (`ss -ltnp` names it)"
    )]
    PortInUse {
        /// Host and port.
        address: String,
    },
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on {address}: {source}; {hint}")]
    Bind {
        /// Host and port.
        address: String,
        /// What the operating system said.
        source: std::io::Error,
        /// What to try next.
        hint: &'static str,
    },
    /// A setting is unusable; the text names the flag.
    #[error("{0}")]
    Config(String),
}

/// One request's failure, in OpenAI's shape.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub message: String,
    pub kind: &'static str,
    pub param: Option<Cow<'static, str>>,
    pub code: Option<&'static str>,
    /// Seconds.
    pub retry_after: Option<u32>,
    /// Value of an `Allow` header.
    pub allow: Option<&'static str>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = if status.is_server_error() {
            "server_error"
        } else {
            "invalid_request_error"
        };
        Self {
            status,
            message: message.into(),
            kind,
            param: None,
            code: None,
            retry_after: None,
            allow: None,
        }
    }

    /// 400 on a field of the body.
    pub fn invalid(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::new(StatusCode::BAD_REQUEST, message)
        }
    }

    /// 400 on a field that is known but not built.
    pub fn unsupported(param: &'static str, detail: &str) -> Self {
        Self {
            code: Some("unsupported_parameter"),
            ..Self::invalid(param, format!("`{param}` is not supported yet: {detail}"))
        }
    }

    /// Names the field at fault.
    pub fn at(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The server is stopping, or its engine has stopped.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    /// All places are taken.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Self {
            kind: "rate_limit_error",
            code: Some("queue_full"),
            retry_after: Some(1),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    /// `{"error": {...}}`
    pub fn to_json(&self) -> Vec<u8> {
        // Written field by field so that the order does not hang on a feature of the JSON crate.
        let mut out = b"{\"error\":{\"message\":".to_vec();
        out.extend(json!(self.message).to_string().into_bytes());
        out.extend_from_slice(b",\"type\":\"");
        out.extend_from_slice(self.kind.as_bytes());
        out.extend_from_slice(b"\",\"param\":");
        out.extend(json!(self.param).to_string().into_bytes());
        out.extend_from_slice(b",\"code\":");
        out.extend(json!(self.code).to_string().into_bytes());
        out.extend_from_slice(b"}}");
        out
    }

    pub fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::full(self.to_json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(methods) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(methods));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::QueueFull { .. } => Self::overloaded(format!("{error}; try again later")),
            SubmitError::Invalid(message) => Self::new(StatusCode::BAD_REQUEST, message),
            SubmitError::Closed(_) => Self::unavailable(error.to_string()),
            other => Self::internal(other.to_string()),
        }
    }
}
