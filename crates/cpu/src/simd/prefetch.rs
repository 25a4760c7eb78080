//! Lines of memory that are asked for before they are needed.

/// A function that asks for the cache line at `at`, which need not exist, by these hints of the architectures.
macro_rules! asks {
    ($(#[$text:meta])* $name:ident, $x86:ident, $arm:literal) => {
        $(#[$text])*
        #[inline(always)]
        pub fn $name(at: *const u8) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a hint that reads nothing; SSE is part of the architecture.
            unsafe {
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::$x86 }>(at.cast());
            }
            #[cfg(target_arch = "aarch64")]
            // SAFETY: a hint that reads nothing.
            unsafe {
                std::arch::asm!(concat!("prfm ", $arm, ", [{at}]"), at = in(reg) at,
                    options(nostack, preserves_flags, readonly));
            }
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            let _ = at;
        }
    };
}

asks! {
    /// Asks for the cache line at `at`, which need not exist, to come into the first-level cache.
    prefetch, _MM_HINT_T0, "pldl1keep"
}

asks! {
    /// The same for the second-level cache. The first has few places for lines that are on their way: what is
    /// far ahead would take them from what is read now.
    prefetch_far, _MM_HINT_T1, "pldl2keep"
}
