//! Downloads that break off, and servers that handle ranges in odd ways.

use std::sync::atomic::{AtomicUsize, Ordering};

use powerband_model::fetch::{self, FetchError, Silent};

use crate::mock_hub::{MockHub, Reply, Repo, bytes, files_below, sha256};

const SIZE: usize = 400_000;
const HALF: usize = SIZE / 2;

fn repo() -> Repo {
    Repo {
        name: "org/gguf",
        files: vec![("m-Q8_0.gguf", bytes(SIZE), true)],
        ..Repo::default()
    }
}

/// The partial file in a cache.
fn partial_name() -> String {
    format!(
        "org--gguf/m-Q8_0.gguf.{}.partial",
        &sha256(&bytes(SIZE))[..12]
    )
}

/// A hub whose file requests, counted from 0, go through `change`.
fn hub(change: impl Fn(usize, Reply) -> Reply + Send + Sync + 'static, repo: Repo) -> MockHub {
    let count = AtomicUsize::new(0);
    MockHub::start(move |request| {
        let reply = repo.answer(request);
        if request.path.contains("/resolve/") {
            change(count.fetch_add(1, Ordering::SeqCst), reply)
        } else {
            reply
        }
    })
}

fn ranges(hub: &MockHub) -> Vec<Option<u64>> {
    let requests = hub.requests();
    let files = requests.iter().filter(|r| r.path.contains("/resolve/"));
    files.map(|r| r.range).collect()
}

#[test]
fn a_cut_connection_goes_on_where_it_broke() {
    let cut = |count, reply| Reply {
        cut: (count == 0).then_some(HALF),
        ..reply
    };
    let hub = hub(cut, repo());
    let cache = tempfile::tempdir().unwrap();
    let path = fetch::locate("org/gguf", &hub.options(cache.path()), &Silent).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes(SIZE));
    assert_eq!(ranges(&hub), [None, Some(HALF as u64)]);
}

#[test]
fn a_broken_download_is_kept_for_the_next_run() {
    let down = |count, reply| match count {
        0 => Reply {
            cut: Some(HALF),
            ..reply
        },
        1..=2 => Reply::status(503),
        _ => reply,
    };
    let hub = hub(down, repo());
    let cache = tempfile::tempdir().unwrap();
    let options = hub.options(cache.path());
    let error = fetch::locate("org/gguf", &options, &Silent).unwrap_err();
    assert!(
        matches!(&error, FetchError::Interrupted { have, .. } if *have == HALF as u64),
        "{error}"
    );
    assert!(error.to_string().contains("run the same command again"));
    assert_eq!(files_below(cache.path()), [partial_name()]);
    let path = fetch::locate("org/gguf", &options, &Silent).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes(SIZE));
    assert_eq!(ranges(&hub).last(), Some(&Some(HALF as u64)));
    assert!(!cache.path().join(partial_name()).exists());
}

/// What is left of an earlier run, and how the server answers: it always comes out right.
fn with_left_over(left: &[u8], change: impl Fn(usize, Reply) -> Reply + Send + Sync + 'static) {
    with_repo(left, change, repo());
}

fn with_repo(
    left: &[u8],
    change: impl Fn(usize, Reply) -> Reply + Send + Sync + 'static,
    repo: Repo,
) {
    let hub = hub(change, repo);
    let cache = tempfile::tempdir().unwrap();
    std::fs::create_dir(cache.path().join("org--gguf")).unwrap();
    std::fs::write(cache.path().join(partial_name()), left).unwrap();
    let path = fetch::locate("org/gguf", &hub.options(cache.path()), &Silent).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes(SIZE));
}

#[test]
fn a_server_without_ranges_starts_anew() {
    let mut repo = repo();
    repo.ignores_range = true;
    with_repo(&bytes(SIZE)[..HALF], |_, reply| reply, repo);
}

#[test]
fn a_spoilt_left_over_is_thrown_away() {
    with_left_over(&vec![7; HALF], |_, reply| reply);
    with_left_over(&vec![7; SIZE], |_, reply| reply);
    with_left_over(&vec![7; SIZE + 1], |_, reply| reply);
    // All of it was there; only the renaming was missing.
    with_left_over(&bytes(SIZE), |_, _| Reply::status(500));
}

#[test]
fn odd_answers_to_ranges_start_anew() {
    with_left_over(&bytes(SIZE)[..HALF], |count, reply| match count {
        0 => Reply {
            headers: vec![("content-range".to_owned(), format!("bytes 0-1/{SIZE}"))],
            ..reply
        },
        _ => reply,
    });
    with_left_over(&bytes(SIZE)[..HALF], |count, reply| match count {
        0 => Reply::status(416),
        _ => reply,
    });
}

#[test]
fn more_than_was_promised_is_not_written() {
    let more = |_, reply: Reply| Reply {
        body: bytes(SIZE * 2),
        ..reply
    };
    let hub = hub(more, repo());
    let cache = tempfile::tempdir().unwrap();
    let error = fetch::locate("org/gguf", &hub.options(cache.path()), &Silent).unwrap_err();
    assert!(matches!(error, FetchError::WrongSize { .. }), "{error}");
    assert!(!cache.path().join("org--gguf/m-Q8_0.gguf").exists());
}

#[test]
fn a_connection_that_brings_nothing_is_given_up() {
    let silent = |count, reply| Reply {
        silent: count == 0,
        ..reply
    };
    let hub = hub(silent, repo());
    let cache = tempfile::tempdir().unwrap();
    let mut options = hub.options(cache.path());
    options.stall = std::time::Duration::from_millis(300);
    let path = fetch::locate("org/gguf", &options, &Silent).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes(SIZE));
}
