//! A socket that knows when its newest bytes reached this machine. It sits below TLS, so that neither
//! decryption nor parsing counts as the server's time; and where the kernel notes the time, neither does
//! our own lateness in reading, which is counted apart.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::clock::Clock;
use crate::kernel_time;
use crate::read_lag;

/// Two clocks compared at two moments agree within this, ns: a time that is too early by less is meant.
const JITTER_NS: u64 = 10_000;

/// Two clocks read further apart than this (ns) are read again: something came between.
const CLOSE_NS: u64 = 1_000;

/// See the module.
pub(crate) struct Stamped {
    socket: TcpStream,
    clock: Clock,
    /// Nothing can have come before this; ns.
    not_before_ns: u64,
    arrival_ns: u64,
    /// Others look at what a read brought before there is another.
    takes_turns: bool,
    /// The newest read found as much as it had room for: there may be more.
    filled: bool,
}

impl Stamped {
    /// Stamp the reads of `socket` by `clock`.
    pub fn new(socket: TcpStream, clock: Clock) -> Self {
        // Where the kernel refuses, its reads say so by bringing no time.
        kernel_time::ask(socket.as_fd());
        let now = clock.now_ns();
        Stamped {
            socket,
            clock,
            not_before_ns: now,
            arrival_ns: now,
            takes_turns: false,
            filled: false,
        }
    }

    /// From now on let the other tasks of the thread run between two reads. Whoever is woken by what a read
    /// brought then sees that read's time. (A read that does not fill its buffer has emptied the socket, and
    /// the runtime looks for more only between tasks: those need no turn.)
    pub fn take_turns(&mut self) {
        self.takes_turns = true;
    }

    /// When the newest of the bytes read reached this machine, ns: by the kernel, else when it was read.
    /// Never less than before.
    pub fn arrival_ns(&self) -> u64 {
        self.arrival_ns
    }

    /// A request goes out now: its answer cannot have come before.
    pub fn asking(&mut self) {
        self.not_before_ns = self.clock.now_ns();
    }

    /// Bytes were read that the kernel says came at `kernel_ns` (wall clock).
    fn note(&mut self, kernel_ns: Option<u64>) {
        let (wall_ns, now_ns) = both_clocks(&self.clock);
        // By how long ago it was and not by a kept offset: a step of the wall clock spoils one read at most.
        let earliest = self.not_before_ns.max(self.arrival_ns);
        let arrival = kernel_ns
            .and_then(|kernel_ns| wall_ns.checked_sub(kernel_ns))
            .and_then(|lag_ns| now_ns.checked_sub(lag_ns))
            .filter(|arrival| arrival + JITTER_NS >= earliest)
            .map(|arrival| arrival.max(earliest));
        read_lag::note(arrival.map(|t| now_ns.saturating_sub(t)));
        self.arrival_ns = arrival.unwrap_or(now_ns);
    }
}

/// (Wall clock, `clock`) at one moment, ns.
fn both_clocks(clock: &Clock) -> (u64, u64) {
    let mut before = clock.now_ns();
    for _ in 0..3 {
        let wall = wall_ns();
        let after = clock.now_ns();
        if after - before < CLOSE_NS {
            return (wall, before + (after - before) / 2);
        }
        before = after;
    }
    (wall_ns(), clock.now_ns())
}

/// Nanoseconds since 1970.
fn wall_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |t| t.as_nanos() as u64)
}

impl AsyncRead for Stamped {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.takes_turns && std::mem::take(&mut this.filled) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let free = buf.initialize_unfilled();
        if free.is_empty() {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(this.socket.poll_read_ready(cx))?;
            let mut received = None;
            let result = this.socket.try_io(Interest::READABLE, || {
                let got = kernel_time::receive(this.socket.as_fd(), free)?;
                received = Some(got);
                if (1..free.len()).contains(&got.bytes) {
                    // A short read has emptied the socket. The runtime learns it by this error and
                    // need not read once more to find nothing.
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            match (received, result) {
                (Some(got), _) => {
                    this.filled = got.bytes == free.len();
                    if got.bytes > 0 {
                        buf.advance(got.bytes);
                        this.note(got.kernel_ns);
                    }
                    return Poll::Ready(Ok(()));
                }
                (None, Err(e)) if e.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(e));
                }
                // Not ready after all: wait again.
                (None, _) => {}
            }
        }
    }
}

impl AsyncWrite for Stamped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;

    /// A connection and its server's end.
    async fn pair(clock: Clock) -> (Stamped, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await;
        let server = listener.accept().unwrap().0;
        server.set_nodelay(true).unwrap();
        (Stamped::new(socket.unwrap(), clock), server)
    }

    const LATE: Duration = Duration::from_millis(60);

    #[tokio::test]
    async fn bytes_have_the_time_of_their_arrival_and_not_of_a_late_read() {
        let clock = Clock::start();
        let (mut stamped, mut server) = pair(clock).await;
        // The kernel may begin to stamp a moment after it was first asked to.
        std::thread::sleep(Duration::from_millis(20));
        let mut buffer = [0; 64];
        for round in 0..2 {
            read_lag::take();
            stamped.asking();
            let sent = clock.now_ns();
            server.write_all(b"first").unwrap();
            let between = clock.now_ns();
            std::thread::sleep(LATE);
            server.write_all(b" and newest").unwrap();
            let newest = clock.now_ns();
            std::thread::sleep(LATE);
            let read_begin = clock.now_ns();
            assert_eq!(stamped.read(&mut buffer).await.unwrap(), 16, "{round}");
            let lags = read_lag::take();
            assert_eq!(lags.reads(), 1);
            if cfg!(not(target_os = "linux")) {
                assert!(stamped.arrival_ns() >= read_begin && lags.summary().is_none());
                continue;
            }
            // On loopback bytes arrive within the call that sends them; they are the newest ones' time.
            let arrival = stamped.arrival_ns();
            assert!(
                between < arrival && arrival <= newest,
                "{sent} {between} {arrival} {newest}"
            );
            let lag = lags.summary().unwrap();
            assert!(lag.p50_ms >= LATE.as_secs_f64() * 1e3 * 0.97, "{lag:?}");
            assert!(lag.max_ms <= (clock.now_ns() - between) as f64 / 1e6);
        }
    }

    #[tokio::test]
    async fn a_time_that_cannot_be_is_not_believed() {
        let clock = Clock::start();
        let (mut stamped, _server) = pair(clock).await;
        std::thread::sleep(Duration::from_millis(5));
        let ms = 1_000_000;
        for (kernel_ns, what) in [
            (None, "no time"),
            (Some(wall_ns() + 3_600_000 * ms), "after the read"),
            (Some(wall_ns() - 3_600_000 * ms), "before the clock began"),
            (Some(wall_ns() - 4 * ms), "before the request was sent"),
        ] {
            stamped.asking();
            let before = clock.now_ns();
            stamped.note(kernel_ns);
            assert!(stamped.arrival_ns() >= before, "{what}");
        }
        assert!(read_lag::take().summary().is_none());
        // Before bytes that came earlier.
        std::thread::sleep(Duration::from_millis(5));
        let before = stamped.arrival_ns();
        stamped.note(Some(wall_ns() - ms));
        let second = stamped.arrival_ns();
        assert!(second > before && read_lag::take().summary().is_some());
        stamped.note(Some(wall_ns() - 3 * ms));
        assert!(stamped.arrival_ns() > second);
    }

    #[tokio::test]
    async fn the_end_and_an_empty_buffer() {
        let (mut stamped, server) = pair(Clock::start()).await;
        assert_eq!(stamped.read(&mut []).await.unwrap(), 0);
        drop(server);
        assert_eq!(stamped.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
