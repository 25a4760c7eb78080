//! What the client asks of the operating system so that it is on time. All of it is optional: where the
//! system says no, the client's health tells what that costs.

/// Largest table of open files that is made in advance.
const ROOM: libc::rlim_t = 1 << 13;
/// The share of a core's time that a thread may take before others have their turn, ns: short, so that
/// its own turn comes soon after it wakes. The least that Linux allows.
#[cfg(target_os = "linux")]
const SLICE_NS: u64 = 100_000;

/// Let this process hold as many connections as the system allows it: the usual soft limit of 1,024
/// open files would end a level of 1,000 streams. To be called before there are threads.
pub(crate) fn make_room_for_connections() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the calls read and write one rlimit, which `limit` is, and keep no pointer to it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max
        {
            limit.rlim_cur = limit.rlim_max.min(1 << 20);
            // If the system says no, connections will fail with a reason that names the limit.
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
    // Linux doubles the table of open files when it is full, and with several threads that stops whoever
    // opens one for 10 ms and more: a level would stumble at its 256th and its 512th connection.
    let last = limit.rlim_cur.min(ROOM).saturating_sub(1) as libc::c_int;
    // SAFETY: these calls take no pointers. The new number is the lowest free one from `last` on, so no
    // open file is touched, and it is closed again; without a standard input there is nothing to do.
    unsafe {
        let copy = libc::fcntl(libc::STDIN_FILENO, libc::F_DUPFD_CLOEXEC, last);
        if copy >= 0 {
            libc::close(copy);
        }
    }
}

/// Let the calling thread have a core soon after it wakes, and its sleeps end when they should: Linux
/// lets both slip, for the sake of throughput.
#[cfg(target_os = "linux")]
pub(crate) fn be_prompt() {
    let size = size_of::<libc::sched_attr>() as libc::c_uint;
    // SAFETY: all-zero bytes are a valid sched_attr, which holds numbers only. The calls read and write
    // one, whose size they are told, and keep no pointer to it; prctl takes numbers alone.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong);
        let mut attributes: libc::sched_attr = std::mem::zeroed();
        if libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) == 0
            && attributes.sched_policy == libc::SCHED_OTHER as u32
        {
            attributes.sched_runtime = SLICE_NS;
            libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
        }
    }
}

/// Nothing where there is nothing to ask for.
#[cfg(not(target_os = "linux"))]
pub(crate) fn be_prompt() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_a_thousand_streams_where_the_system_allows_it() {
        make_room_for_connections();
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the call writes one rlimit, which `limit` is, and keeps no pointer to it.
        let status = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
        assert_eq!(status, 0);
        assert!(limit.rlim_cur == limit.rlim_max.min(1 << 20) || limit.rlim_cur > 1 << 20);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_prompt_thread_keeps_its_policy_and_niceness() {
        let attributes = || {
            let size = size_of::<libc::sched_attr>() as libc::c_uint;
            // SAFETY: as in `be_prompt`.
            unsafe {
                let mut a: libc::sched_attr = std::mem::zeroed();
                libc::syscall(libc::SYS_sched_getattr, 0, &raw mut a, size, 0);
                (a.sched_policy, a.sched_nice, a.sched_priority)
            }
        };
        let before = attributes();
        be_prompt();
        assert_eq!(attributes(), before);
    }
}
