//! A hub of one repository, as a thread behind a real socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use powerband_model::fetch::FetchOptions;
use serde_json::json;
use sha2::{Digest, Sha256};

/// What a client asked for.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<u64>,
}

/// What it gets.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Say nothing until the client goes.
    pub silent: bool,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub fn text(text: impl Into<String>) -> Self {
        Self {
            status: 200,
            body: text.into().into_bytes(),
            ..Self::default()
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// A server that hands each request to a function.
pub struct MockHub {
    pub endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl MockHub {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(answer);
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                std::thread::spawn(move || {
                    // A client may leave in the middle; that is the test's business.
                    let _ = serve(stream, &*answer, &log);
                });
            }
        });
        Self { endpoint, requests }
    }

    /// A hub with one repository and nothing special about it.
    pub fn with(repo: Repo) -> Self {
        Self::start(move |request| repo.answer(request))
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Requests whose path ends so.
    pub fn count(&self, end: &str) -> usize {
        let requests = self.requests();
        requests.iter().filter(|r| r.path.ends_with(end)).count()
    }

    pub fn options(&self, cache: &Path) -> FetchOptions {
        let mut options = FetchOptions::new(cache);
        options.endpoint.clone_from(&self.endpoint);
        options
    }
}

fn serve(
    stream: TcpStream,
    answer: &dyn Fn(&Request) -> Reply,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request {
        path,
        authorization: None,
        range: None,
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.to_owned()),
            "range" => {
                let start = value.strip_prefix("bytes=").unwrap().trim_end_matches('-');
                request.range = Some(start.parse().unwrap());
            }
            _ => {}
        }
    }
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    if reply.silent {
        // Returns when the client closes.
        reader.read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    let mut head = format!(
        "HTTP/1.1 {} X\r\ncontent-length: {}\r\nconnection: close\r\n",
        reply.status,
        reply.body.len()
    );
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    let end = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
    stream.write_all(&reply.body[..end])?;
    stream.flush()
}

/// A repository: `(name, content, stored as a large file)`.
#[derive(Clone, Default)]
pub struct Repo {
    pub name: &'static str,
    pub files: Vec<(&'static str, Vec<u8>, bool)>,
    /// Said instead of the true hash.
    pub wrong_hash: bool,
    pub ignores_range: bool,
}

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Repo {
    pub fn answer(&self, request: &Request) -> Reply {
        let listing = format!("/api/models/{}?blobs=true", self.name);
        if request.path == listing {
            return Reply::text(self.listing());
        }
        let start = format!("/{}/resolve/{COMMIT}/", self.name);
        let file = request.path.strip_prefix(&start);
        let found = file.and_then(|file| self.files.iter().find(|(name, ..)| *name == file));
        let Some((_, content, _)) = found else {
            return Reply::status(404).header("x-error-code", "EntryNotFound");
        };
        match request.range {
            Some(from) if !self.ignores_range => {
                let (from, size) = (from as usize, content.len());
                if from >= size {
                    return Reply::status(416);
                }
                let range = format!("bytes {from}-{}/{size}", size - 1);
                Reply {
                    body: content[from..].to_vec(),
                    ..Reply::status(206).header("content-range", range)
                }
            }
            _ => Reply {
                body: content.clone(),
                ..Reply::status(200)
            },
        }
    }

    pub fn listing(&self) -> String {
        let files: Vec<_> = self
            .files
            .iter()
            .map(|(name, content, large)| {
                let hash = if self.wrong_hash {
                    sha256(b"something else")
                } else {
                    sha256(content)
                };
                let size = content.len();
                let lfs = large.then(|| json!({"sha256": hash, "size": size, "pointerSize": 130}));
                json!({"rfilename": name, "size": size, "blobId": "x", "lfs": lfs})
            })
            .collect();
        json!({"id": self.name, "sha": COMMIT, "gated": false, "siblings": files}).to_string()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that do not repeat soon.
pub fn bytes(count: usize) -> Vec<u8> {
    let next = |x: &mut u32| {
        *x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*x >> 24) as u8)
    };
    let mut state = 1u32;
    std::iter::from_fn(|| next(&mut state))
        .take(count)
        .collect()
}

/// Every file below a folder that is no lock.
pub fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if entry.file_name() != ".lock" {
                let path = path.strip_prefix(folder).unwrap();
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}
