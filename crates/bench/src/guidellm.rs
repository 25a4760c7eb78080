//! GuideLLM's report, schema version 2, as our file format: [`write`] one level, [`read`] levels of any
//! file of that kind, also of other tools. What the format has no place for stands under `powerband`, in
//! objects whose schema permits it, so that what we read back is exactly what we wrote.

mod read;
mod summary;
mod write;

pub use read::read;
pub use write::{write, write_sample};

/// The release of GuideLLM whose report we write.
const FORMAT_OF: &str = "0.8.1";
