//! Telling a run to stop, from a signal handler or from a test.

use std::sync::Arc;

use tokio::sync::watch;

/// A flag that can be raised once, by any copy, and waited for.
#[derive(Debug, Clone)]
pub struct Cancel {
    raised: Arc<watch::Sender<Option<String>>>,
}

impl Default for Cancel {
    fn default() -> Self {
        Cancel {
            raised: Arc::new(watch::Sender::new(None)),
        }
    }
}

impl Cancel {
    /// Raise the flag: the run keeps its finished levels and ends.
    pub fn cancel(&self) {
        self.stop("cancelled");
    }

    /// Raise the flag with a reason; the first reason stays.
    pub(crate) fn stop(&self, reason: &str) {
        self.raised.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(reason.to_owned());
            }
            first
        });
    }

    /// Is it raised?
    pub fn is_cancelled(&self) -> bool {
        self.raised.borrow().is_some()
    }

    /// Why it was raised, if it was.
    pub(crate) fn reason(&self) -> Option<String> {
        self.raised.borrow().clone()
    }

    /// Wait until it is raised.
    pub async fn cancelled(&self) {
        // The sender lives as long as `self`: waiting cannot fail.
        let _ = self.raised.subscribe().wait_for(Option::is_some).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn copies_share_the_flag_and_the_first_reason_stays() {
        let flag = Cancel::default();
        let copy = flag.clone();
        assert!(!copy.is_cancelled());
        flag.stop("time limit");
        flag.cancel();
        copy.cancelled().await;
        assert_eq!(copy.reason().as_deref(), Some("time limit"));
    }
}
