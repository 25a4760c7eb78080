//! Bodies: what is read from a client, within bounds, and what is sent back.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use crate::config::Limits;
use crate::error::ApiError;

/// The body of an answer: whole, or pulled piece by piece as the connection can take it.
pub(crate) enum Body {
    Full(Option<Bytes>),
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl Body {
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Body::Full(Some(bytes.into()))
    }

    pub fn empty() -> Self {
        Body::Full(None)
    }

    pub fn stream(stream: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Body::Stream(Box::pin(stream))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Body::Full(bytes) => Poll::Ready(bytes.take().map(|data| Ok(Frame::data(data)))),
            Body::Stream(stream) => stream
                .as_mut()
                .poll_next(cx)
                .map(|item| item.map(|data| Ok(Frame::data(data)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Body::Stream(_) => SizeHint::default(),
        }
    }
}

/// Reads a JSON body within the limits on its size and time.
///
/// The content type must be JSON: a browser may send any other type to this address from any page
/// without asking first.
pub(crate) async fn read_json(
    headers: &HeaderMap,
    incoming: Incoming,
    limits: &Limits,
) -> Result<Bytes, ApiError> {
    require_json(headers)?;
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    let waits_for_consent = headers.contains_key(header::EXPECT);
    if length.is_some_and(|length| length > limits.body_bytes as u64) && waits_for_consent {
        return Err(too_large(limits));
    }
    match tokio::time::timeout(limits.body_timeout, collect(incoming, limits)).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            format!(
                "the body did not arrive within {} s",
                limits.body_timeout.as_secs_f64()
            ),
        )),
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
    if is_json {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "the body must be JSON: send the header `Content-Type: application/json`",
    ))
}

/// A body over the limit is read on for a while (and thrown away), so that a client that sends all
/// before it reads gets the answer instead of a reset connection.
async fn collect(mut incoming: Incoming, limits: &Limits) -> Result<Bytes, ApiError> {
    let broken = |_| ApiError::new(StatusCode::BAD_REQUEST, "the body broke off");
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    let mut size = 0;
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame.map_err(broken)?.into_data() else {
            continue;
        };
        size += data.len();
        if size > 4 * limits.body_bytes {
            break;
        }
        if size > limits.body_bytes {
            rest = BytesMut::new();
        } else if first.is_none() {
            // Nearly every body is one frame: no copy.
            first = Some(data);
        } else {
            rest.extend_from_slice(&data);
        }
    }
    if size > limits.body_bytes {
        return Err(too_large(limits));
    }
    let first = first.unwrap_or_default();
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(size);
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}

fn too_large(limits: &Limits) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is larger than {} bytes", limits.body_bytes),
    )
}
