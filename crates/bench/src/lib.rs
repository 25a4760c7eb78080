//! The load generator: target, data, load shape, clock, records, results. It knows any OpenAI-compatible
//! server and nothing of ours.
//!
//! Reading order: [`config`], [`data`] and [`profile`] (what a run is to do), [`run`] (the levels of a run), `level`,
//! `schedule` and `worker` (threads and clients), `limits` and `watch` (when they end), `client` (one request) on
//! `stamped`, `transport` and `connect` (how bytes reach the server and when they come), `http1` and `http2` (made
//! one by `link`), `sse` and `chunk` (what the bytes say), `answer` (what they make of a record), [`record`] (what is
//! known of one request and of one level), [`requests`] (many of them, on `spill`; `recorder` takes them from the
//! threads), [`metrics`] (the numbers that follow, on [`distribution`] and `column`), `server_side` (what the server
//! says of itself meanwhile), `host` and `gpu` (what this machine does meanwhile; `beside` reads it, `over_time`
//! keeps it), [`guidellm`] (the file format).

mod answer;
mod any_server;
mod ask;
mod beside;
mod body;
mod cancel;
mod chunk;
mod client;
mod clock;
mod column;
pub mod config;
mod connect;
mod connection;
mod counters;
pub mod data;
pub mod distribution;
pub mod drift;
mod error;
mod form;
#[doc(hidden)]
pub mod fuzzing;
pub mod goodput;
mod gpu;
pub mod guidellm;
mod head;
mod health;
mod host;
mod http1;
mod http2;
pub mod jsonl;
mod kernel_time;
pub mod knee;
mod level;
mod limits;
mod link;
pub mod metrics;
mod order;
mod over_time;
mod preflight;
pub mod profile;
mod random;
mod read_lag;
pub mod record;
mod recorder;
mod repeat;
pub mod requests;
mod retry_after;
mod run;
mod saturation;
mod schedule;
pub mod search;
mod server_side;
pub mod slo;
pub mod special;
mod spill;
mod sse;
mod stamped;
mod system;
pub mod target;
mod timeline;
mod transport;
mod watch;
mod whole_file;
mod worker;

pub use cancel::Cancel;
pub use config::{BenchConfig, Phase, TokenCounter};
pub use data::{
    Column, DataConfig, DataSource, FileData, History, PrefixBucket, PromptFormat, RowOrder,
    Spread, ThinkTime, TraceData, TraceFormat,
};
pub use distribution::{DistributionSummary, summarize, summarize_weighted};
pub use drift::Drift;
pub use error::BenchError;
pub use goodput::{GoodputLoad, GoodputResult, GoodputSearch};
pub use gpu::{GpuMetrics, GpuNow, GpuSample, GpuUse, GpuWatch};
pub use host::{HostSample, HostUse};
pub use knee::{KneeResult, KneeSearch};
pub use level::{Progress, run_level};
pub use limits::{ErrorRate, Limits, RunLimits};
pub use metrics::{LevelMetrics, Steady};
pub use order::Order;
pub use preflight::{Prepared, prepare};
pub use profile::Profile;
pub use record::{
    ClientHealth, ClientLag, LevelResult, Outcome, RequestRecord, Strategy, TokenSource,
};
pub use requests::{Requests, Totals};
pub use run::{Event, RunResult, measure, run};
pub use saturation::OverSaturation;
pub use search::Conclusion;
pub use server_side::ServerSample;
pub use slo::{Goodput, Slo};
pub use target::{Endpoint, HttpVersion, TargetConfig, Timeouts};
