//! Connections whose reads carry the time at which their bytes reached this machine.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::any_server::AnyServer;
use crate::clock::Clock;
use crate::error::BenchError;
use crate::kernel_time;
use crate::stamped::Stamped;
use crate::target::{BaseUrl, TargetConfig};

/// Bytes of a connection's read buffer: more than a burst of chunks, little enough for 1,000 streams.
const BUFFER: usize = 8 * 1024;

/// Plain or over TLS.
enum Stream {
    Plain(Stamped),
    Tls(Box<TlsStream<Stamped>>),
}

/// An open connection with its read buffer.
pub(crate) struct Connection {
    stream: Stream,
    /// Bytes read and not yet consumed are `buffer[start..end]`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Requests that this connection has carried to their end.
    pub served: u64,
    /// The longest wait for more of an answer.
    pub idle: Option<Duration>,
}

impl Connection {
    /// Write all of `bytes`, a request.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(s) => {
                s.asking();
                s.write_all(bytes).await
            }
            Stream::Tls(s) => {
                s.get_mut().0.asking();
                s.write_all(bytes).await?;
                s.flush().await
            }
        }
    }

    /// Bytes that were read and not consumed.
    pub fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Mark the first `n` unread bytes as consumed.
    pub fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    /// When the newest of the bytes reached this machine, ns.
    pub fn arrival_ns(&self) -> u64 {
        match &self.stream {
            Stream::Plain(s) => s.arrival_ns(),
            Stream::Tls(s) => s.get_ref().0.arrival_ns(),
        }
    }

    /// Read more behind the unread bytes; 0 at the end of the stream. The buffer grows if they fill it
    /// (only a response head can do that, and its caller bounds it).
    pub async fn read_more(&mut self) -> io::Result<usize> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.end == self.buffer.len() {
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
        }
        let free = &mut self.buffer[self.end..];
        let n = match &mut self.stream {
            Stream::Plain(s) => s.read(free).await?,
            Stream::Tls(s) => match s.read(free).await {
                // Many servers close without TLS's goodbye; HTTP's own framing tells a cut from an end.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => 0,
                other => other?,
            },
        };
        self.end += n;
        Ok(n)
    }
}

/// Opens connections to one server.
#[derive(Clone)]
pub(crate) struct Connector {
    addresses: Arc<[SocketAddr]>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
    idle: Option<Duration>,
    /// Never connected. While one socket asks for the times of bytes, Linux notes them for all; with the
    /// first one it begins a few milliseconds late, and with the last one it ends.
    _keeps_times: Option<Arc<TcpSocket>>,
}

impl Connector {
    /// Resolve the host once and prepare TLS.
    pub async fn new(base: &BaseUrl, config: &TargetConfig) -> Result<Self, BenchError> {
        let unreachable = |reason: String| BenchError::Unreachable {
            url: base.display(),
            reason,
        };
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((base.host.as_str(), base.port))
            .await
            .map_err(|e| unreachable(format!("the host `{}` has no address ({e})", base.host)))?
            .collect();
        let tls = match base.tls {
            false => None,
            true => {
                let name = ServerName::try_from(base.host.clone()).map_err(|e| {
                    unreachable(format!("`{}` is no name for TLS ({e})", base.host))
                })?;
                Some((tls_connector(config)?, name))
            }
        };
        Ok(Connector {
            addresses: addresses.into(),
            tls,
            timeout: config.timeouts.connect,
            idle: config.timeouts.idle,
            _keeps_times: TcpSocket::new_v4().ok().map(|socket| {
                kernel_time::ask(socket.as_fd());
                Arc::new(socket)
            }),
        })
    }

    /// Where the server is.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Open a connection whose times are those of `clock`. The error is a sentence for an outcome.
    pub async fn open(&self, clock: Clock) -> Result<Connection, String> {
        match tokio::time::timeout(self.timeout, self.open_any(clock)).await {
            Ok(result) => result,
            Err(_) => Err(format!(
                "no connection within {} s",
                self.timeout.as_secs_f64()
            )),
        }
    }

    async fn open_any(&self, clock: Clock) -> Result<Connection, String> {
        let mut reason = "the host has no address".to_owned();
        for address in self.addresses.iter() {
            match TcpStream::connect(address).await {
                Ok(socket) => return self.wrap(socket, clock).await,
                Err(e) => reason = connect_error(&e, address),
            }
        }
        Err(reason)
    }

    async fn wrap(&self, socket: TcpStream, clock: Clock) -> Result<Connection, String> {
        // A request must leave at once; without this the kernel may hold small writes back.
        socket.set_nodelay(true).map_err(|e| e.to_string())?;
        let stamped = Stamped::new(socket, clock);
        let stream = match &self.tls {
            None => Stream::Plain(stamped),
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), stamped).await;
                Stream::Tls(Box::new(tls.map_err(handshake_error)?))
            }
        };
        Ok(Connection {
            stream,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            served: 0,
            idle: self.idle,
        })
    }
}

/// What a failed connect means, in the words of an outcome.
fn connect_error(error: &io::Error, address: &SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => format!("connection refused by {address}"),
        _ => match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => {
                format!(
                    "this machine has no more open files for a connection to {address} (raise `ulimit -n`)"
                )
            }
            _ => format!("cannot connect to {address}: {error}"),
        },
    }
}

/// What a failed handshake means, in the words of an outcome.
fn handshake_error(error: io::Error) -> String {
    use rustls::{CertificateError, Error};
    let cause = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
    let hint = match cause {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            ": nobody trusted has signed the server's certificate (pass its authority with --ca-file)"
        }
        _ => "",
    };
    format!("TLS handshake failed: {error}{hint}")
}

/// TLS with the public authorities and, if given, the user's own.
fn tls_connector(config: &TargetConfig) -> Result<TlsConnector, BenchError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(path) = &config.ca_file {
        let unreadable = |problem: String| BenchError::Read {
            path: path.clone(),
            problem,
        };
        let before = roots.len();
        let certificates =
            CertificateDer::pem_file_iter(path).map_err(|e| unreadable(e.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|e| unreadable(e.to_string()))?;
            roots
                .add(certificate)
                .map_err(|e| unreadable(e.to_string()))?;
        }
        if roots.len() == before {
            return Err(unreadable("it holds no certificate in PEM form".into()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| BenchError::config("--target", format!("TLS cannot be set up: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    if config.insecure {
        tls.dangerous().set_certificate_verifier(AnyServer::new());
    }
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(tls)))
}
