//! One file from the hub: resumed where it broke off, checked, renamed.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use ureq::http::StatusCode;
use ureq::http::header::CONTENT_RANGE;

use super::hub::{Hub, Remote};
use super::partial::{Expected, Partial};
use super::{FetchError, Progress};

/// Attempts in a row that bring nothing.
const FRUITLESS: u32 = 3;
/// Attempts in all: a server that sends a byte at a time does not hold us for ever.
const ATTEMPTS: u32 = 50;
/// Before the next attempt; doubled each time.
const PAUSE: Duration = Duration::from_millis(200);

/// Brings a file to `target`. What is there when it fails is kept for the next time, unless it is wrong.
pub(super) fn download(
    hub: &Hub,
    remote: Remote<'_>,
    expected: &Expected,
    target: &Path,
    progress: &dyn Progress,
) -> Result<(), FetchError> {
    let mut partial = Partial::open(target, expected)?;
    let mut resumed = partial.len() > 0;
    progress.begin(&expected.name, expected.size);
    let result = loop {
        if let Err(error) = complete(hub, remote, expected, &mut partial, progress) {
            break Err(error);
        }
        match partial.finish(target, expected) {
            // The first part may have been spoilt on this disk: once more from the start.
            Err(FetchError::WrongHash { .. }) if resumed => {
                progress.note("what an earlier attempt left is not right; starting anew");
                resumed = false;
                match Partial::open(target, expected) {
                    Ok(new) => partial = new,
                    Err(error) => break Err(error),
                }
            }
            result => break result,
        }
    };
    progress.end();
    result
}

/// Asks again and again until every byte is here.
fn complete(
    hub: &Hub,
    remote: Remote<'_>,
    expected: &Expected,
    partial: &mut Partial,
    progress: &dyn Progress,
) -> Result<(), FetchError> {
    let mut fruitless = 0;
    for _ in 0..ATTEMPTS {
        progress.at(partial.len());
        if partial.len() == expected.size {
            return Ok(());
        }
        let before = partial.len();
        let error = match attempt(hub, remote, expected, partial, progress) {
            Ok(()) => continue,
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Broken(error)) => error,
        };
        fruitless = if partial.len() > before {
            1
        } else {
            fruitless + 1
        };
        if fruitless == FRUITLESS {
            return Err(if partial.len() == 0 {
                error
            } else {
                interrupted(expected, partial, &error)
            });
        }
        std::thread::sleep(PAUSE * 2u32.pow(fruitless));
    }
    Err(interrupted(
        expected,
        partial,
        &"the connection breaks too often",
    ))
}

fn interrupted(
    expected: &Expected,
    partial: &Partial,
    reason: &dyn std::fmt::Display,
) -> FetchError {
    FetchError::Interrupted {
        name: expected.name.clone(),
        have: partial.len(),
        size: expected.size,
        reason: reason.to_string(),
    }
}

/// How an attempt failed.
enum Failure {
    /// Another attempt may bring the rest.
    Broken(FetchError),
    /// Asking again brings the same.
    Final(FetchError),
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Unreachable { .. } => Failure::Broken(error),
            FetchError::Answer { status, .. } if status >= 500 => Failure::Broken(error),
            _ => Failure::Final(error),
        }
    }
}

/// One request, from the first byte that is missing.
fn attempt(
    hub: &Hub,
    remote: Remote<'_>,
    expected: &Expected,
    partial: &mut Partial,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let have = partial.len();
    let response = hub.file(remote, (have > 0).then_some(have))?;
    let broken = |reason: String| {
        Failure::Broken(FetchError::Unreachable {
            endpoint: hub.endpoint().to_owned(),
            reason,
        })
    };
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = response.headers().get(CONTENT_RANGE);
            let start = range
                .and_then(|range| range.to_str().ok()?.strip_prefix("bytes ")?.split_once('-'))
                .and_then(|(start, _)| start.parse::<u64>().ok());
            if start != Some(have) {
                partial.restart()?;
                return Err(broken("it sent another part than was asked for".to_owned()));
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            partial.restart()?;
            return Err(broken(
                "it does not have the part that was asked for".to_owned(),
            ));
        }
        // It sends everything, whatever was asked for.
        _ => partial.restart()?,
    }
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = match body.read(&mut buffer) {
            Ok(0) if partial.len() < expected.size => {
                return Err(broken("the connection was closed".to_owned()));
            }
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(broken(error.to_string())),
        };
        let found = partial.len() + read as u64;
        if found > expected.size {
            partial.restart()?;
            return Err(Failure::Final(FetchError::WrongSize {
                name: expected.name.clone(),
                expected: expected.size,
                found,
            }));
        }
        partial.write(&buffer[..read])?;
        progress.at(partial.len());
    }
}
