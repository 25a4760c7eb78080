//! From a request's head to its handler: limits, keys, routes; and a net under all of it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use http::header::{self, HeaderMap};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;

use crate::answer::json_response;
use crate::auth::KeyDigest;
use crate::body::{Body, read_json};
use crate::config::Limits;
use crate::error::ApiError;
use crate::generation::Caller;
use crate::routes::{self, Handler};
use crate::state::State;
use crate::{chat, completions, info, json, prometheus};

/// Answers one request. Whatever goes wrong, there is an answer.
pub(crate) async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Body> {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    let origin = allowed_origin(&state, &parts.headers);
    let mut response = match preflight(&parts, origin.is_some()) {
        Some(response) => response,
        None => guarded(handle(&state, &parts, body, arrived)).await,
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    }
    state.metrics.answer(response.status());
    response
}

/// A panic is one failed request, not a dead connection.
async fn guarded(work: impl Future<Output = Result<Response<Body>, ApiError>>) -> Response<Body> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => error.into_response(),
        Err(_) => ApiError::internal("the server failed on this request; its log says why")
            .into_response(),
    }
}

async fn handle(
    state: &Arc<State>,
    parts: &Parts,
    body: Incoming,
    arrived: Instant,
) -> Result<Response<Body>, ApiError> {
    let limits = &state.config.limits;
    check_size(&parts.uri, &parts.headers, limits)?;
    // Only the path of the request line counts: what a Host header says is never part of it.
    let path = parts.uri.path();
    let key = authorize(state, &parts.method, path, &parts.headers)?;
    let (handler, rest) = routes::resolve(&parts.method, path)?;
    match handler {
        Handler::Health => return health(state),
        Handler::Version => return Ok(info::version()),
        Handler::Metrics => return Ok(prometheus::metrics(state)),
        Handler::Models => return Ok(info::models(state)),
        Handler::Model => return info::model(state, rest),
        Handler::Completions | Handler::Chat | Handler::Tokenize | Handler::Detokenize => {}
    }
    let body = read_json(&parts.headers, body, limits).await?;
    post(state, handler, body, Caller { arrived, key }).await
}

/// Answers a POST whose body is there.
pub(crate) async fn post(
    state: &Arc<State>,
    handler: Handler,
    body: Bytes,
    caller: Caller,
) -> Result<Response<Body>, ApiError> {
    let document = json::parse(&body, &state.config.limits)?;
    drop(body);
    match handler {
        Handler::Chat => chat::handle(state, &caller, document).await,
        Handler::Tokenize => info::tokenize(state, document).await,
        Handler::Detokenize => info::detokenize(state, document).await,
        _ => completions::handle(state, &caller, document).await,
    }
}

/// Deny by default: what is not marked public on the list of routes needs a key, and so does what is
/// not on the list.
fn authorize(
    state: &State,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Result<Option<KeyDigest>, ApiError> {
    let reads = method == Method::GET || method == Method::HEAD;
    match routes::find(path) {
        Some((route, _)) if route.public && reads => Ok(None),
        _ => state.keys.check(headers),
    }
}

fn check_size(uri: &Uri, headers: &HeaderMap, limits: &Limits) -> Result<(), ApiError> {
    let length = uri.path_and_query().map_or(0, |path| path.as_str().len());
    if length > limits.uri_bytes {
        return Err(ApiError::new(
            StatusCode::URI_TOO_LONG,
            format!(
                "the path and query have {length} bytes; {} are allowed",
                limits.uri_bytes
            ),
        ));
    }
    let size: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if size > limits.header_bytes {
        return Err(ApiError::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            format!(
                "the headers have {size} bytes; {} are allowed",
                limits.header_bytes
            ),
        ));
    }
    Ok(())
}

/// Never goes through the engine's queue.
fn health(state: &State) -> Result<Response<Body>, ApiError> {
    state.health().map_err(ApiError::unavailable)?;
    Ok(json_response(b"{\"status\":\"ok\"}".to_vec()))
}

/// The origin to allow, if the caller's is one that was asked for on the command line.
fn allowed_origin(state: &State, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    state
        .config
        .allowed_origins
        .iter()
        .any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
        .then(|| origin.clone())
}

/// A browser asks before it calls; it cannot send a key with the question.
fn preflight(parts: &Parts, origin_allowed: bool) -> Option<Response<Body>> {
    let asks = parts.method == Method::OPTIONS
        && parts
            .headers
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if !(asks && origin_allowed) {
        return None;
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST"),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("authorization, content-type"),
    );
    headers.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("600"),
    );
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered() {
        let response = guarded(async { panic!("on purpose") }).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
