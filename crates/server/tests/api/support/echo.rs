//! An executor without a model: the output repeats the prompt, over and over. What comes back thus
//! shows what the engine and the server made of what went in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use powerband_engine::executor::{
    Admission, ExecutorLimits, PendingStep, Step, StepOutput, StepTokens,
};
use powerband_engine::request::TokenLogprobs;
use powerband_engine::{EngineError, Executor, TokenOutput};

/// Lets a test hold or break the executor.
#[derive(Clone, Default)]
pub struct Lever {
    held: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
    /// Microseconds a step takes.
    pace: Arc<AtomicU64>,
}

impl Lever {
    /// Steps do not end until [`Lever::release`].
    pub fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
    }

    pub fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
    }

    /// The next step fails.
    pub fn break_down(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }

    pub fn pace(&self, step: Duration) {
        self.pace.store(step.as_micros() as u64, Ordering::SeqCst);
    }
}

pub struct EchoExecutor {
    limits: ExecutorLimits,
    slots: Vec<Option<Admission>>,
    pending: Option<StepOutput>,
    lever: Lever,
}

impl EchoExecutor {
    pub fn new(limits: ExecutorLimits, lever: Lever) -> Self {
        Self {
            slots: vec![None; limits.max_num_seqs],
            limits,
            pending: None,
            lever,
        }
    }
}

/// What the echo samples after `produced` tokens.
fn next(prompt: &[u32], produced: usize) -> u32 {
    prompt[produced % prompt.len()]
}

impl Executor for EchoExecutor {
    fn limits(&self) -> &ExecutorLimits {
        &self.limits
    }

    fn verifies_drafts(&self) -> bool {
        true
    }

    fn submit(&mut self, step: Step) -> Result<PendingStep, EngineError> {
        for slot in step.released {
            self.slots[slot] = None;
        }
        let mut output = StepOutput::default();
        for sequence in step.sequences {
            let slot = &mut self.slots[sequence.slot];
            if let Some(admission) = sequence.admission {
                *slot = Some(admission);
            }
            let admission = slot.as_mut().expect("a sequence in a slot was admitted");
            if !sequence.sample {
                continue;
            }
            let drafts = match &sequence.tokens {
                StepTokens::Speculative(ids) => &ids[1..],
                StepTokens::Known(_) | StepTokens::LastSampled => &[],
            };
            for at in 0..=drafts.len() {
                let mut token = next(&admission.prompt, admission.output.len());
                let suppressed = sequence.suppressed.as_deref().unwrap_or_default();
                if suppressed.contains(&token) {
                    token = u32::from(b'~');
                }
                admission.output.push(token);
                let logprobs = admission.sampling.logprobs.map(|top| TokenLogprobs {
                    logprob: -0.25,
                    top: (0..top).map(|at| (token + at, -0.25 - at as f32)).collect(),
                });
                output
                    .samples
                    .push((sequence.slot, TokenOutput { token, logprobs }));
                if drafts.get(at) != Some(&token) {
                    break;
                }
            }
        }
        self.pending = Some(output);
        Ok(PendingStep(0))
    }

    fn collect(&mut self, _: PendingStep) -> Result<StepOutput, EngineError> {
        std::thread::sleep(Duration::from_micros(
            self.lever.pace.load(Ordering::SeqCst),
        ));
        while self.lever.held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_micros(200));
        }
        if self.lever.broken.load(Ordering::SeqCst) {
            return Err(EngineError::Executor("broken on purpose".to_owned()));
        }
        Ok(self.pending.take().expect("a step was submitted"))
    }
}
