//! Connections whose reads carry the time at which their bytes reached this machine.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::any_server::AnyServer;
use crate::clock::Clock;
use crate::connection::Connection;
use crate::error::BenchError;
use crate::http2::Http2;
use crate::kernel_time;
use crate::stamped::Stamped;
use crate::target::{BaseUrl, HttpVersion, TargetConfig, host_and_port};
use crate::transport::Transport;

/// Names of the versions of HTTP in the handshake of TLS (ALPN).
const HTTP1: &[u8] = b"http/1.1";
const HTTP2: &[u8] = b"h2";
/// What to do about a server that speaks another one.
const VERSION_HINT: &str = " (--http auto takes the version that it offers)";

/// A new connection, by the version of HTTP that it speaks.
pub(crate) enum Opened {
    /// For one request at a time.
    Own(Connection),
    /// For many.
    Shared(Arc<Http2>),
}

/// Opens connections to one server.
#[derive(Clone)]
pub(crate) struct Connector {
    addresses: Arc<[SocketAddr]>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Are connections of HTTP/2?
    http2: bool,
    timeout: Duration,
    idle: Option<Duration>,
    /// Never connected. While one socket asks for the times of bytes, Linux notes them for all; with the
    /// first one it begins a few milliseconds late, and with the last one it ends.
    _keeps_times: Option<Arc<TcpSocket>>,
}

impl Connector {
    /// Resolve the host once, prepare TLS and settle the version of HTTP.
    pub async fn new(base: &BaseUrl, config: &TargetConfig) -> Result<Self, BenchError> {
        let unreachable = |reason: String| BenchError::Unreachable {
            url: base.display(),
            reason,
        };
        let (host, port) = match &config.connect_to {
            Some(place) => host_and_port(place, base.port)?,
            None => (base.host.clone(), base.port),
        };
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), port))
            .await
            .map_err(|e| unreachable(format!("the host `{host}` has no address ({e})")))?
            .collect();
        let name =
            match base.tls {
                false => None,
                true => Some(ServerName::try_from(base.host.clone()).map_err(|e| {
                    unreachable(format!("`{}` is no name for TLS ({e})", base.host))
                })?),
            };
        let tls = |protocols: &[&[u8]]| match &name {
            None => Ok(None),
            Some(name) => Ok(Some((tls_connector(config, protocols)?, name.clone()))),
        };
        let mut connector = Connector {
            addresses: addresses.into(),
            tls: None,
            http2: config.http == HttpVersion::Http2,
            timeout: config.timeouts.connect,
            idle: config.timeouts.idle,
            _keeps_times: TcpSocket::new_v4().ok().map(|socket| {
                kernel_time::ask(socket.as_fd());
                Arc::new(socket)
            }),
        };
        if config.http == HttpVersion::Auto && base.tls {
            connector.tls = tls(&[HTTP2, HTTP1])?;
            let asked = connector.within(connector.reach(Clock::start())).await;
            connector.http2 = asked.map_err(unreachable)?.protocol() == Some(HTTP2);
        }
        connector.tls = tls(&[if connector.http2 { HTTP2 } else { HTTP1 }])?;
        Ok(connector)
    }

    /// The version of HTTP that was settled.
    pub fn http_version(&self) -> &'static str {
        if self.http2 { "2" } else { "1.1" }
    }

    /// Do connections carry many requests at a time?
    pub fn shares(&self) -> bool {
        self.http2
    }

    /// Where the server is.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Open a connection whose times are those of `clock`. The error is a sentence for an outcome.
    pub async fn open(&self, clock: Clock) -> Result<Opened, String> {
        self.within(async {
            let transport = self.reach(clock).await?;
            if !self.http2 {
                return Ok(Opened::Own(Connection::new(transport, self.idle)));
            }
            if self.tls.is_some() && transport.protocol() != Some(HTTP2) {
                return Err(format!(
                    "the server does not offer HTTP/2 over TLS{VERSION_HINT}"
                ));
            }
            let connection = Http2::begin(transport, clock, self.idle).await?;
            Ok(Opened::Shared(connection))
        })
        .await
    }

    /// Within the time that a connection may take.
    async fn within<T>(&self, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        let limit = self.timeout.as_secs_f64();
        let version = if self.http2 { " of HTTP/2" } else { "" };
        (tokio::time::timeout(self.timeout, work).await)
            .unwrap_or_else(|_| Err(format!("no connection{version} within {limit} s")))
    }

    /// Connect to the first address that answers, up to TLS.
    async fn reach(&self, clock: Clock) -> Result<Transport, String> {
        let mut reason = "the host has no address".to_owned();
        for address in self.addresses.iter() {
            match TcpStream::connect(address).await {
                Ok(socket) => return self.wrap(socket, clock).await,
                Err(e) => reason = connect_error(&e, address),
            }
        }
        Err(reason)
    }

    async fn wrap(&self, socket: TcpStream, clock: Clock) -> Result<Transport, String> {
        // A request must leave at once; without this the kernel may hold small writes back.
        socket.set_nodelay(true).map_err(|e| e.to_string())?;
        let stamped = Stamped::new(socket, clock);
        match &self.tls {
            None => Ok(Transport::Plain(stamped)),
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), stamped).await;
                Ok(Transport::Tls(Box::new(tls.map_err(handshake_error)?)))
            }
        }
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
    use rustls::{AlertDescription, CertificateError, Error};
    let cause = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
    let hint = match cause {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            ": nobody trusted has signed the server's certificate (pass its authority with --ca-file)"
        }
        Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => VERSION_HINT,
        _ => "",
    };
    format!("TLS handshake failed: {error}{hint}")
}

/// TLS with the public authorities and, if given, the user's own, that offers `protocols`.
fn tls_connector(config: &TargetConfig, protocols: &[&[u8]]) -> Result<TlsConnector, BenchError> {
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
    tls.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    Ok(TlsConnector::from(Arc::new(tls)))
}
