//! The binary in an environment of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A folder to run in, with nothing of the machine's environment but what a test gives.
pub struct Sandbox {
    pub folder: tempfile::TempDir,
}

impl Sandbox {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_powerband"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .env("PATH", "/nowhere")
            // Nobody listens there: no test may depend on a hub.
            .env("HF_ENDPOINT", "http://127.0.0.1:1")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        Ended::of(self.command(args).output().unwrap())
    }

    /// Starts in the background and reads stderr until a line holds `word`.
    pub fn start(&self, args: &[&str], word: &str) -> Running {
        let command = self.command(args);
        Running::start(command, word)
    }
}

/// What a finished command left.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Failed with this code and all of these words, a hint among them unless the error comes
    /// from the flags' parser.
    pub fn fails(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        for word in words {
            assert!(
                self.stderr.contains(word),
                "{word:?} is not in {}",
                self.stderr
            );
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }
}

/// A command in the background, killed when a test ends early.
pub struct Running {
    child: Child,
    /// The line that was waited for.
    pub line: String,
    /// All lines until then.
    pub seen: String,
    rest: Option<std::thread::JoinHandle<String>>,
}

impl Running {
    #[allow(clippy::zombie_processes)] // `end` and `drop` wait for it
    pub fn start(mut command: Command, word: &str) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            if stderr.read_line(&mut line).unwrap() == 0 {
                panic!("ended before {word:?}: {seen}");
            }
            seen.push_str(&line);
            if line.contains(word) {
                let rest = std::thread::spawn(move || {
                    let mut rest = String::new();
                    let _ = stderr.read_to_string(&mut rest);
                    rest
                });
                return Self {
                    child,
                    line,
                    seen,
                    rest: Some(rest),
                };
            }
        }
    }

    /// The address in the awaited line.
    pub fn address(&self) -> String {
        let (_, rest) = self.line.split_once("http://").unwrap();
        rest.split(['/', ' ', '\n', ':'].as_slice())
            .take(2)
            .collect::<Vec<_>>()
            .join(":")
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: kill has no memory effects; the child is ours and not waited for yet.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the end, at most a minute.
    pub fn end(mut self) -> Ended {
        let begun = Instant::now();
        while self.is_running() {
            assert!(begun.elapsed() < Duration::from_secs(60), "still running");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut stdout = String::new();
        let mut pipe = self.child.stdout.take().unwrap();
        pipe.read_to_string(&mut stdout).unwrap();
        Ended {
            code: self.child.wait().unwrap().code(),
            stdout,
            stderr: self.rest.take().unwrap().join().unwrap(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and body of a request.
pub fn http(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (status, body.to_owned())
}

/// The default model's file, where it has been fetched.
pub fn model() -> Option<PathBuf> {
    let path = std::env::var_os("POWERBAND_TEST_MODEL").map(PathBuf::from);
    let found = path.filter(|path| Path::is_file(path));
    if found.is_none() {
        eprintln!("skipped: POWERBAND_TEST_MODEL names no file");
    }
    found
}
