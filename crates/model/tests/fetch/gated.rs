//! A refusal is one of four things, and each names its next step.

use powerband_model::fetch::{self, FetchError, Silent, Token};

use crate::mock_hub::{MockHub, Reply, Repo, files_below};

const GOOD: &str = "hf_good_secret";
const BAD: &str = "hf_bad_secret";

/// A hub with a gated repository whose list everyone may see, as on the real one.
fn hub() -> MockHub {
    let repo = Repo {
        name: "org/gated",
        files: vec![
            ("config.json", b"{}".to_vec(), false),
            ("model.safetensors", vec![1; 10], true),
        ],
        ..Repo::default()
    };
    MockHub::start(move |request| {
        let token = request.authorization.as_deref();
        let token = token.map(|t| t.strip_prefix("Bearer ").unwrap());
        let known = token == Some(GOOD);
        let error = |status, code| Reply::status(status).header("x-error-code", code);
        match request.path.as_str() {
            "/api/whoami-v2" if known => Reply::text("{\"name\": \"me\"}"),
            "/api/whoami-v2" => Reply::status(401),
            // A token that the hub does not know is refused everywhere.
            _ if token.is_some() && !known => Reply::status(401).header(
                "x-error-message",
                "Invalid credentials in Authorization header",
            ),
            path if path.starts_with("/api/models/org/gated") => Reply::text(repo.listing()),
            path if path.starts_with("/org/gated/") => {
                error(if known { 403 } else { 401 }, "GatedRepo")
            }
            path if path.starts_with("/api/models/org/odd") => Reply::status(403).header(
                "x-error-message",
                format!("{} is blocked", token.unwrap_or("you")),
            ),
            _ => error(if known { 404 } else { 401 }, "RepoNotFound"),
        }
    })
}

fn refusal(model: &str, token: Option<&str>) -> FetchError {
    let hub = hub();
    let cache = tempfile::tempdir().unwrap();
    let mut options = hub.options(cache.path());
    options.token = token.and_then(Token::new);
    let error = fetch::locate(model, &options, &Silent).unwrap_err();
    for text in [
        error.to_string(),
        format!("{error:?}"),
        format!("{options:?}"),
    ] {
        assert!(!text.contains("secret"), "{text}");
    }
    let left = files_below(cache.path());
    assert!(
        left.iter().all(|name| name.ends_with(".partial")),
        "{left:?}"
    );
    error
}

#[test]
fn no_token() {
    let error = refusal("org/gated", None);
    assert!(matches!(error, FetchError::NoToken { .. }), "{error}");
    let text = error.to_string();
    for part in [
        "gated",
        "/org/gated",
        "/settings/tokens",
        "HF_TOKEN",
        ".env",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn bad_token() {
    for model in ["org/gated", "org/missing"] {
        let error = refusal(model, Some(BAD));
        assert!(matches!(error, FetchError::BadToken { .. }), "{error}");
        assert!(error.to_string().contains("/settings/tokens"), "{error}");
    }
    // A token with a line break never becomes a header.
    let error = refusal("org/gated", Some("hf_secret\r\nx: y"));
    assert!(matches!(error, FetchError::BadToken { .. }), "{error}");
}

#[test]
fn licence_not_accepted() {
    let error = refusal("org/gated", Some(GOOD));
    assert!(
        matches!(error, FetchError::LicenceNotAccepted { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("accept its licence"), "{error}");
}

#[test]
fn no_such_repository() {
    for (token, part) in [(None, "HF_TOKEN"), (Some(GOOD), "this token")] {
        let error = refusal("org/missing", token);
        assert!(matches!(error, FetchError::NoSuchRepo { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn other_refusals_are_passed_on_without_the_token() {
    let error = refusal("org/odd", Some(GOOD));
    assert!(error.to_string().contains("(token) is blocked"), "{error}");
}
