//! The list of everything that is served. What is not on it is not there.

use http::{Method, StatusCode};

use crate::error::ApiError;

/// What answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handler {
    Health,
    Version,
    Metrics,
    Models,
    Model,
    Completions,
    Chat,
    Tokenize,
    Detokenize,
}

/// One endpoint.
#[derive(Debug)]
pub struct Route {
    /// `GET` or `POST`; `HEAD` is answered where `GET` is.
    pub method: &'static str,
    /// The path; a last part in braces stands for any rest.
    pub path: &'static str,
    /// Answered without a key. All others ask for one where the server has keys.
    pub public: bool,
    pub(crate) handler: Handler,
}

const fn get(path: &'static str, handler: Handler) -> Route {
    Route {
        method: "GET",
        path,
        public: false,
        handler,
    }
}

const fn post(path: &'static str, handler: Handler) -> Route {
    Route {
        method: "POST",
        path,
        public: false,
        handler,
    }
}

/// All endpoints.
pub const ROUTES: &[Route] = &[
    Route {
        method: "GET",
        path: "/health",
        public: true,
        handler: Handler::Health,
    },
    get("/version", Handler::Version),
    get("/metrics", Handler::Metrics),
    get("/v1/models", Handler::Models),
    get("/v1/models/{id}", Handler::Model),
    post("/v1/completions", Handler::Completions),
    post("/v1/chat/completions", Handler::Chat),
    post("/tokenize", Handler::Tokenize),
    post("/detokenize", Handler::Detokenize),
];

impl Route {
    /// The rest of the path where it fits.
    fn matches<'p>(&self, path: &'p str) -> Option<&'p str> {
        match self.path.split_once('{') {
            None => (self.path == path).then_some(""),
            Some((prefix, _)) => path.strip_prefix(prefix).filter(|rest| !rest.is_empty()),
        }
    }

    fn allows(&self, method: &Method) -> bool {
        method.as_str() == self.method || (self.method == "GET" && method == Method::HEAD)
    }
}

/// The route of a path, whatever the method; the path is compared as it was sent, byte by byte.
pub(crate) fn find(path: &str) -> Option<(&'static Route, &str)> {
    ROUTES
        .iter()
        .find_map(|route| route.matches(path).map(|rest| (route, rest)))
}

/// The handler and the rest of the path, or 404 or 405.
pub(crate) fn resolve<'p>(method: &Method, path: &'p str) -> Result<(Handler, &'p str), ApiError> {
    let Some((route, rest)) = find(path) else {
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!(
                "there is nothing at {method} {}; completions are at POST /v1/completions and \
                 /v1/chat/completions",
                crate::state::shortened(path)
            ),
        )
        .with_code("not_found"));
    };
    if !route.allows(method) {
        return Err(ApiError {
            allow: Some(match route.method {
                "GET" => "GET, HEAD",
                other => other,
            }),
            ..ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{} is {}, not {method}", route.path, route.method),
            )
            .with_code("method_not_allowed")
        });
    }
    Ok((route.handler, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_as_sent() {
        assert!(find("/v1/models").is_some());
        assert_eq!(
            find("/v1/models/a/b%20c").map(|(_, rest)| rest),
            Some("a/b%20c")
        );
        for path in [
            "//v1/models",
            "/v1/models/",
            "/v1//models",
            "/V1/models",
            "/v1/%6dodels",
            "/",
            "",
            "*",
            "/health/",
        ] {
            assert!(find(path).is_none(), "{path}");
        }
    }

    #[test]
    fn only_health_is_public() {
        let public: Vec<_> = ROUTES
            .iter()
            .filter(|route| route.public)
            .map(|route| route.path)
            .collect();
        assert_eq!(public, ["/health"]);
    }
}
