//! A bar while weights are loaded and converted, for people who wait.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use powerband_model::Weights;

/// What is quicker needs no bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// Watches weights being taken.
pub struct Loading {
    bar: Arc<Mutex<Option<ProgressBar>>>,
}

impl Loading {
    /// From now on; nothing is shown where standard error is no terminal.
    pub fn watch(weights: &mut Weights) -> Self {
        let bar = Arc::new(Mutex::new(None));
        if std::io::stderr().is_terminal() {
            let (shown, begin) = (bar.clone(), Instant::now());
            let total = weights.elements() as u64;
            let taken = Mutex::new(0u64);
            weights.watch(Arc::new(move |elements| {
                let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
                *taken += elements as u64;
                if begin.elapsed() >= PATIENCE {
                    let mut bar = shown.lock().unwrap_or_else(PoisonError::into_inner);
                    // Some are taken twice: an embedding that is the output matrix too.
                    bar.get_or_insert_with(|| started(total))
                        .set_position((*taken).min(total));
                }
            }));
        }
        Self { bar }
    }

    /// All have been taken.
    pub fn done(&self) {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.done();
    }
}

fn started(total: u64) -> ProgressBar {
    let template = "  loading  {bar:24} {percent:>3} % of the weights, {eta} left";
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style)
}
