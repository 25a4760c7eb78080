//! Who sees the token.

use powerband_model::fetch::{self, FetchError, Silent, Token};

use crate::mock_hub::{MockHub, Reply, Repo, Request, bytes};

fn repo() -> Repo {
    Repo {
        name: "org/gguf",
        files: vec![("m-Q8_0.gguf", bytes(1000), true)],
        ..Repo::default()
    }
}

fn tokens(requests: &[Request]) -> Vec<bool> {
    requests.iter().map(|r| r.authorization.is_some()).collect()
}

#[test]
fn another_host_never_gets_it() {
    let store = MockHub::start(|_| Reply {
        body: bytes(1000),
        ..Reply::status(200)
    });
    let (repo, elsewhere) = (repo(), store.endpoint.clone());
    let hub = MockHub::start(move |request| {
        if request.path.contains("/resolve/") {
            // First within the hub, as for repositories that were renamed, then away from it.
            return Reply::status(307).header("location", "/moved/m-Q8_0.gguf");
        }
        if request.path.starts_with("/moved/") {
            return Reply::status(302).header("location", format!("{elsewhere}/x?signature=1"));
        }
        repo.answer(request)
    });
    let cache = tempfile::tempdir().unwrap();
    let mut options = hub.options(cache.path());
    options.token = Token::new("hf_secret");
    let path = fetch::locate("org/gguf", &options, &Silent).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes(1000));
    assert_eq!(tokens(&hub.requests()), [true, true, true]);
    assert_eq!(tokens(&store.requests()), [false]);
}

#[test]
fn redirects_end() {
    let hub = MockHub::start(|request| {
        Reply::status(302).header("location", format!("{}x", request.path))
    });
    let cache = tempfile::tempdir().unwrap();
    let error = fetch::locate("org/gguf", &hub.options(cache.path()), &Silent).unwrap_err();
    assert!(matches!(error, FetchError::NotTheHub { .. }), "{error}");
    assert!(hub.requests().len() < 20);
}

#[test]
fn without_one_none_is_sent() {
    let hub = MockHub::with(repo());
    let cache = tempfile::tempdir().unwrap();
    fetch::locate("org/gguf", &hub.options(cache.path()), &Silent).unwrap();
    assert_eq!(tokens(&hub.requests()), [false, false]);
}
