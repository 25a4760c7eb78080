//! What a download tells the one who waits for it.

/// Hears how far a fetch is. Bars and log lines are the caller's business.
pub trait Progress: Sync {
    /// Something worth a line: which source is used, why another one is not.
    fn note(&self, text: &str);
    /// A file begins; `total` is its size in bytes.
    fn begin(&self, name: &str, total: u64);
    /// `bytes` of the file are here, those of an earlier attempt included; may go back.
    fn at(&self, bytes: u64);
    /// The file is whole, or given up.
    fn end(&self);
}

/// Says nothing.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn note(&self, _: &str) {}
    fn begin(&self, _: &str, _: u64) {}
    fn at(&self, _: u64) {}
    fn end(&self) {}
}
