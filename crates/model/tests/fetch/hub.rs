//! Repositories of the hub: what is chosen, what is refused, what is asked for again.

use std::time::{Duration, Instant};

use powerband_model::fetch::{self, FetchError, Silent};

use crate::mock_hub::{MockHub, Reply, Repo, bytes, files_below};

fn folder_repo() -> Repo {
    Repo {
        name: "org/model",
        files: vec![
            ("config.json", b"{}".to_vec(), false),
            ("tokenizer.json", b"{\"t\": 1}".to_vec(), true),
            ("model.safetensors", bytes(300_000), true),
            ("pytorch_model.bin", bytes(10), true),
            ("modeling.py", b"import os".to_vec(), false),
        ],
        ..Repo::default()
    }
}

#[test]
fn a_folder_comes_whole_and_once() {
    let hub = MockHub::with(folder_repo());
    let cache = tempfile::tempdir().unwrap();
    let options = hub.options(cache.path());
    assert_eq!(fetch::cached("org/model", &options), None);
    let path = fetch::locate("org/model", &options, &Silent).unwrap();
    assert_eq!(path, cache.path().join("org--model"));
    assert_eq!(
        files_below(&path),
        [
            ".pulled-default.json",
            "config.json",
            "model.safetensors",
            "tokenizer.json"
        ]
    );
    let weights = std::fs::read(path.join("model.safetensors")).unwrap();
    assert_eq!(weights, bytes(300_000));
    let asked = hub.requests().len();
    assert_eq!(asked, 4, "the list and three files: no pickle, no code");

    let again = fetch::locate("org/model", &options, &Silent).unwrap();
    assert_eq!(again, path);
    let mut offline = options.clone();
    offline.offline = true;
    assert_eq!(fetch::locate("org/model", &offline, &Silent).unwrap(), path);
    assert_eq!(fetch::cached("org/model", &options), Some(path.clone()));
    assert_eq!(hub.requests().len(), asked, "a cached model asks nobody");

    // A file that was cut off later is fetched again, the others are not.
    std::fs::write(path.join("model.safetensors"), "short").unwrap();
    fetch::locate("org/model", &options, &Silent).unwrap();
    assert_eq!(
        std::fs::read(path.join("model.safetensors")).unwrap(),
        bytes(300_000)
    );
    assert_eq!(hub.count("tokenizer.json"), 1);
}

#[test]
fn a_gguf_is_chosen_or_named() {
    let repo = Repo {
        name: "org/gguf",
        files: vec![
            ("m-Q4_K_M.gguf", bytes(10), true),
            ("m-Q8_0.gguf", bytes(20), true),
            ("sub/m-Q4_0.gguf", bytes(30), true),
        ],
        ..Repo::default()
    };
    let hub = MockHub::with(repo);
    let cache = tempfile::tempdir().unwrap();
    let options = hub.options(cache.path());
    for (model, file) in [
        ("org/gguf", "m-Q8_0.gguf"),
        ("org/gguf:q4_0", "sub/m-Q4_0.gguf"),
        ("org/gguf:m-Q4_K_M.gguf", "m-Q4_K_M.gguf"),
    ] {
        let path = fetch::locate(model, &options, &Silent).unwrap();
        assert_eq!(path, cache.path().join("org--gguf").join(file));
        assert_eq!(fetch::cached(model, &options), Some(path));
    }
    let error = fetch::locate("org/gguf:Q6_K", &options, &Silent).unwrap_err();
    assert!(error.to_string().contains("m-Q4_K_M.gguf"), "{error}");
}

#[test]
fn a_revision_has_its_own_folder() {
    let repo = folder_repo();
    let hub = MockHub::start(move |request| match request.path.as_str() {
        "/api/models/org/model/revision/refs%2Fpr%2F1?blobs=true" => Reply::text(repo.listing()),
        path if path.contains("/revision/") => {
            Reply::status(404).header("x-error-code", "RevisionNotFound")
        }
        _ => repo.answer(request),
    });
    let cache = tempfile::tempdir().unwrap();
    let mut options = hub.options(cache.path());
    options.revision = Some("refs/pr/1".to_owned());
    let path = fetch::locate("org/model", &options, &Silent).unwrap();
    assert_eq!(path, cache.path().join("org--model@refs--pr--1"));
    let error = fetch::locate("org/model@gone", &options, &Silent).unwrap_err();
    assert!(
        matches!(error, FetchError::NoSuchRevision { .. }),
        "{error}"
    );
    assert!(!cache.path().join("org--model@gone").exists());
}

#[test]
fn a_wrong_hash_leaves_nothing() {
    let mut repo = folder_repo();
    repo.wrong_hash = true;
    let hub = MockHub::with(repo);
    let cache = tempfile::tempdir().unwrap();
    let error = fetch::locate("org/model", &hub.options(cache.path()), &Silent).unwrap_err();
    assert!(matches!(error, FetchError::WrongHash { .. }), "{error}");
    assert_eq!(files_below(cache.path()), ["org--model/config.json"]);
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in [
        "../../evil.gguf",
        "/tmp/evil.safetensors",
        "a\\..\\evil.json",
    ] {
        let mut repo = folder_repo();
        repo.files.push((name, bytes(5), true));
        let hub = MockHub::with(repo);
        let cache = tempfile::tempdir().unwrap();
        let inner = cache.path().join("inner");
        let error = fetch::locate("org/model", &hub.options(&inner), &Silent).unwrap_err();
        assert!(matches!(error, FetchError::UnsafeName { .. }), "{error}");
        assert!(files_below(cache.path()).is_empty());
    }
}

#[test]
fn a_hub_that_never_answers_is_left() {
    let hub = MockHub::start(|_| Reply {
        silent: true,
        ..Reply::default()
    });
    let cache = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let error = fetch::locate("org/model", &hub.options(cache.path()), &Silent).unwrap_err();
    assert!(matches!(error, FetchError::NoAnswer { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(files_below(cache.path()).is_empty());
}

#[test]
fn no_hub_and_no_permission_to_ask_are_said() {
    let cache = tempfile::tempdir().unwrap();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    let mut options = fetch::FetchOptions::new(cache.path());
    options.endpoint = format!("http://{address}");
    let error = fetch::locate("org/model", &options, &Silent).unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("HF_ENDPOINT"), "{error}");
    options.endpoint = "not a url".to_owned();
    let error = fetch::locate("org/model", &options, &Silent).unwrap_err();
    assert!(matches!(error, FetchError::NotTheHub { .. }), "{error}");
    options.offline = true;
    let error = fetch::locate("org/model", &options, &Silent).unwrap_err();
    assert!(matches!(error, FetchError::Offline { .. }), "{error}");
}

#[test]
fn something_else_than_the_hub_is_noticed() {
    let cache = tempfile::tempdir().unwrap();
    for text in ["<html>log in</html>", "{}", "{\"sha\": \"../x\"}"] {
        let hub = MockHub::start(move |_| Reply::text(text));
        let error = fetch::locate("org/model", &hub.options(cache.path()), &Silent).unwrap_err();
        assert!(matches!(error, FetchError::NotTheHub { .. }), "{error}");
    }
    for (status, part) in [(429, "too many requests"), (500, "500")] {
        let hub = MockHub::start(move |_| Reply::status(status));
        let error = fetch::locate("org/model", &hub.options(cache.path()), &Silent).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(files_below(cache.path()).is_empty());
}

#[test]
fn two_at_once_fetch_once() {
    let repo = folder_repo();
    let hub = MockHub::start(move |request| {
        if request.path.ends_with("model.safetensors") {
            std::thread::sleep(Duration::from_millis(300));
        }
        repo.answer(request)
    });
    let cache = tempfile::tempdir().unwrap();
    let options = hub.options(cache.path());
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| fetch::locate("org/model", &options, &Silent)))
            .collect();
        for fetch in fetches {
            let path = fetch.join().unwrap().unwrap();
            let weights = std::fs::read(path.join("model.safetensors")).unwrap();
            assert_eq!(weights, bytes(300_000));
        }
    });
    assert_eq!(hub.count("model.safetensors"), 1);
}
