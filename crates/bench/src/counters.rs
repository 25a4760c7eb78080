//! Running sums of a level, for the display and for what is told at its end.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::chunk::Usage;
use crate::data::session::Sizes;
use crate::record::RequestRecord;

/// A prompt is far off from this share of its tokens on, and from so many: a template around it is fewer.
const FAR: f64 = 0.1;
const FAR_TOKENS: f64 = 32.0;

/// The sums, shared by all clients of a level.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub sent: AtomicU64,
    pub successful: AtomicU64,
    pub errored: AtomicU64,
    pub chunks: AtomicU64,
    pub output_tokens: AtomicU64,
    pub total_tokens: AtomicU64,
    /// First tokens, those of requests that are still going on included, and the sum of their TTFT.
    pub first_tokens: AtomicU64,
    pub first_token_us: AtomicU64,
    pub ttft_us: AtomicU64,
    pub itl_us: AtomicU64,
    /// Requests that `itl_us` sums up.
    pub itl_requests: AtomicU64,
    /// Requests whose prompt or answer has another number of tokens than was asked for.
    pub other_prompts: AtomicU64,
    pub other_outputs: AtomicU64,
    /// Requests whose prompt the server counts far off what the data says.
    pub far_prompts: AtomicU64,
    /// Requests whose answer came in more chunks than the server counts tokens.
    pub short_counts: AtomicU64,
    /// Requests of which nobody tells the prompt tokens.
    pub unknown_prompts: AtomicU64,
    /// CPU time of the client's threads, ns.
    pub cpu_ns: AtomicU64,
    /// The latest that a thread woke since the display last asked, us.
    pub late_us: AtomicU64,
    /// Connections opened, and what opening them took: all together and the longest.
    pub connections: AtomicU64,
    pub connect_us: AtomicU64,
    pub connect_max_us: AtomicU64,
    /// What requests waited for a connection, that of others included.
    pub connect_wait_us: AtomicU64,
    /// Waits that the server asked for, and their length in all.
    pub pauses: AtomicU64,
    pub paused_ms: AtomicU64,
}

impl Counters {
    /// Note it if a request has not the sizes that were asked for.
    pub fn compare(&self, sizes: &Sizes, usage: Option<Usage>, record: &RequestRecord) {
        let counted = usage.and_then(|u| u.prompt_tokens);
        if let (Some(counted), Some(asked)) = (counted, sizes.prompt_tokens) {
            if sizes.exact && counted != asked {
                self.other_prompts.fetch_add(1, Relaxed);
            } else if counted.abs_diff(asked) as f64 > FAR_TOKENS.max(FAR * asked as f64) {
                self.far_prompts.fetch_add(1, Relaxed);
            }
        }
        let counted = usage.and_then(|u| u.completion_tokens);
        if counted.is_some_and(|n| n < record.chunks) {
            self.short_counts.fetch_add(1, Relaxed);
        }
        if record.output_tokens != sizes.output_tokens {
            self.other_outputs.fetch_add(1, Relaxed);
        }
    }

    /// A request waited so many nanoseconds for a connection that another one opened.
    pub fn waited(&self, took_ns: u64) {
        self.connect_wait_us.fetch_add(took_ns / 1000, Relaxed);
    }

    /// A request has opened a connection, which took so many nanoseconds.
    pub fn connected(&self, took_ns: u64) {
        self.waited(took_ns);
        self.connections.fetch_add(1, Relaxed);
        self.connect_us.fetch_add(took_ns / 1000, Relaxed);
        self.connect_max_us.fetch_max(took_ns / 1000, Relaxed);
    }
}
