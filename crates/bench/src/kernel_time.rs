//! Reads that bring the kernel's own time of their bytes: when they reached this machine, however late
//! the reader came. Linux stamps received segments of a TCP socket on request (SO_TIMESTAMPNS); elsewhere
//! reads come without.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What a read brought.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    /// Bytes; 0 at the end of the stream.
    pub bytes: usize,
    /// When the newest segment among them came, wall-clock nanoseconds since 1970, if the kernel says.
    pub kernel_ns: Option<u64>,
}

/// Ask the kernel to note when bytes come in on `socket`. False where it does not.
#[cfg(target_os = "linux")]
pub(crate) fn ask(socket: BorrowedFd<'_>) -> bool {
    let on: libc::c_int = 1;
    // SAFETY: the call reads one int, which `on` is, and keeps no pointer to it.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    status == 0
}

/// Ask the kernel to note when bytes come in on `socket`. False where it does not.
#[cfg(not(target_os = "linux"))]
pub(crate) fn ask(_: BorrowedFd<'_>) -> bool {
    false
}

/// Space for one control message with a time, aligned as its header must be.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Read what `socket` has, up to the length of `buffer`; `WouldBlock` if it has nothing.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = Control([0; 64]);
    let mut space = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all-zero bytes are a valid msghdr: null pointers and zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut space;
    message.msg_iovlen = 1;
    loop {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len() as _;
        // SAFETY: `message` points to `space`, which covers `buffer`, and to `control`, each with its
        // length and alive until the call returns; the kernel writes no further than these lengths.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, 0) };
        if let Ok(bytes) = usize::try_from(n) {
            return Ok(Received {
                bytes,
                kernel_ns: time_of(&message),
            });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The time among the control messages of a received message.
#[cfg(target_os = "linux")]
fn time_of(message: &libc::msghdr) -> Option<u64> {
    // SAFETY: the kernel has filled `message`'s control buffer, which is alive, and set its length; the
    // macros stay within it. The data of a message of this type is a timespec, perhaps not aligned.
    let time = unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        loop {
            let h = header.as_ref()?;
            if h.cmsg_level == libc::SOL_SOCKET
                && h.cmsg_type == libc::SCM_TIMESTAMPNS
                && h.cmsg_len as usize
                    >= libc::CMSG_LEN(size_of::<libc::timespec>() as libc::c_uint) as usize
            {
                break libc::CMSG_DATA(header)
                    .cast::<libc::timespec>()
                    .read_unaligned();
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    };
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanoseconds = u64::try_from(time.tv_nsec).ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

/// The time among the control messages of a received message.
#[cfg(not(target_os = "linux"))]
fn time_of(_: &libc::msghdr) -> Option<u64> {
    None
}
