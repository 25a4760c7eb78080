//! The [`Executor`]: steps of the engine as graphs and launches on one GPU.
//!
//! A step is written into page-locked memory, its kernels are launched, and `submit` returns; the
//! GPU fetches the step itself, keeps the tokens it samples as inputs of the next, and writes them
//! where `collect` reads them once the step's event has passed.

use std::collections::VecDeque;
use std::time::Duration;

use powerband_engine::executor::{Executor, ExecutorLimits, PendingStep, Step, StepOutput};
use powerband_engine::request::TokenLogprobs;
use powerband_engine::{EngineError, TokenOutput};
use powerband_model::{ModelSpec, Weights};

use crate::buffers::Buffers;
use crate::driver::{Device, DeviceMemory, DriverError, Event, Graph, HostMemory, Module, Stream};
use crate::fatbin;
use crate::formats::Formats;
use crate::forward::{Cache, Forward, Parts, RING, results_bytes};
use crate::memory::{self, MemoryBudget};
use crate::model::Model;
use crate::options::{self, CudaOptions};
use crate::params::{RowResult, bytes_of};
use crate::slots::Slots;
use crate::step::{BLOCK_SIZE, Batch, Bounds, StepLayout, StepSize};

/// Sizes of decoding batches that have a graph: a batch uses the next larger one. They lie close
/// together, so that no number of sequences pays for many more than it has.
fn graph_sizes(most: usize) -> Vec<usize> {
    let steps = |n: usize| match n {
        0..8 => n.max(1),
        8..64 => 8,
        64..128 => 16,
        128..256 => 32,
        _ => 64,
    };
    let sizes = std::iter::successors(Some(1), |&n| Some(n + steps(n)));
    let mut sizes: Vec<_> = sizes.take_while(|&n| n < most).collect();
    sizes.push(most);
    sizes
}

/// The graph of a decoding step.
#[derive(Debug)]
struct Recorded {
    sequences: usize,
    graph: Graph,
}

/// A step that the GPU is computing.
#[derive(Debug)]
struct InFlight {
    number: u64,
    place: usize,
    /// Slot, row, and the number of top log-probabilities.
    samples: Vec<(usize, usize, Option<usize>)>,
}

/// The executor on an NVIDIA GPU.
#[derive(Debug)]
pub struct CudaExecutor {
    // Dropped in this order: the streams first, which wait for what is under way.
    stream: Stream,
    /// Steps come to the GPU here, while the one before is computed.
    copies: Stream,
    copied: Vec<Event>,
    graphs: Vec<Recorded>,
    events: Vec<Event>,
    steps: HostMemory,
    results: HostMemory,
    forward: Forward,
    batch: Batch,
    slots: Slots,
    limits: ExecutorLimits,
    bounds: Bounds,
    budget: MemoryBudget,
    in_flight: VecDeque<InFlight>,
    submitted: u64,
    failed: bool,
    _memory: [DeviceMemory; 3],
    _module: Module,
}

fn failure(error: DriverError) -> EngineError {
    match error.out_of_memory {
        true => EngineError::Memory(format!(
            "{error}; other processes may have taken the GPU's memory; a smaller --gpu-memory-utilization leaves more room"
        )),
        false => EngineError::Executor(error.to_string()),
    }
}

impl CudaExecutor {
    /// Loads a model and takes the memory that it will ever need.
    ///
    /// # Errors
    /// No GPU or driver, a setting that is out of range, a tensor that is missing or of the wrong
    /// shape, or too little memory; the text names the flag and, for memory, a value that fits.
    pub fn new(
        spec: &ModelSpec,
        weights: &Weights,
        mut options: CudaOptions,
    ) -> Result<Self, EngineError> {
        options::check(spec, &options)?;
        let device = Device::open_as(options.ordinal, options.generation).map_err(failure)?;
        if device.major < 8 {
            return Err(EngineError::Unsupported(format!(
                "{} (compute capability {}.{}); the kernels need 8.0 or newer",
                device.name, device.major, device.minor
            )));
        }
        let kernels = fatbin::kernels(options.fatbin.as_deref())?;
        let module = Module::load(&device, &kernels).map_err(failure)?;
        let stream = Stream::new(&device).map_err(failure)?;
        let layout = StepLayout::new(spec, &options);
        let formats = Formats::choose(spec, weights, &options);
        let model_at = |base| Model::new(base, spec, &formats, options.max_model_len);
        let weight_bytes = model_at(0).end as usize;
        let buffer_bytes = Buffers::new(0, spec, &options, &layout).end as usize;
        let (free, _) = device.memory().map_err(failure)?;
        memory::check_fixed(weight_bytes + buffer_bytes, free, &options)?;

        let weight_memory = DeviceMemory::new(&device, weight_bytes).map_err(failure)?;
        let buffer_memory = DeviceMemory::new(&device, buffer_bytes).map_err(failure)?;
        let model = model_at(weight_memory.at);
        let buffers = Buffers::new(buffer_memory.at, spec, &options, &layout);
        // Tiles have columns that belong to nobody; they must be zeros.
        stream
            .set_bytes(weight_memory.at, 0, weight_bytes)
            .map_err(failure)?;
        stream
            .set_bytes(buffer_memory.at, 0, buffer_bytes)
            .map_err(failure)?;
        crate::load::load(
            &stream,
            &module,
            &model,
            weights,
            options.dummy_seed,
            options.max_model_len,
        )?;

        let (free, total) = device.memory().map_err(failure)?;
        options.max_model_len = memory::model_len(spec, &options, free, total);
        let num_blocks = memory::kv_blocks(spec, &options, free, total)?;
        let kv_bytes = (num_blocks + 1) * memory::block_bytes(spec, options.kv_dtype);
        let kv_memory = DeviceMemory::new(&device, kv_bytes).map_err(failure)?;
        // What was never written is multiplied by zero, so it must be finite.
        stream
            .set_bytes(kv_memory.at, 0, kv_bytes)
            .map_err(failure)?;

        let steps = HostMemory::new(&device, RING * layout.bytes).map_err(failure)?;
        let stride = results_bytes(options.max_num_seqs);
        let results = HostMemory::new(&device, RING * stride).map_err(failure)?;
        let parts = Parts {
            model,
            buffers,
            layout,
            cache: Cache {
                at: kv_memory.at,
                dtype: options.kv_dtype,
                num_blocks,
            },
            max_model_len: options.max_model_len,
            results: results.at,
            results_stride: stride,
        };
        let forward = Forward::new(&stream, &module, parts).map_err(failure)?;
        let events = || {
            let all: Result<Vec<_>, _> = (0..RING).map(|_| Event::new(&device)).collect();
            all.map_err(failure)
        };
        let mut this = Self {
            copies: Stream::new(&device).map_err(failure)?,
            copied: events()?,
            graphs: Vec::new(),
            events: events()?,
            steps,
            results,
            forward,
            batch: Batch::default(),
            slots: Slots::new(options.max_num_seqs),
            limits: ExecutorLimits {
                num_blocks,
                block_size: BLOCK_SIZE,
                max_num_seqs: options.max_num_seqs,
                max_num_batched_tokens: options.max_num_batched_tokens,
                max_model_len: options.max_model_len,
                vocab_size: spec.vocab_size,
                overlap: true,
            },
            bounds: Bounds {
                max_num_seqs: options.max_num_seqs,
                max_num_batched_tokens: options.max_num_batched_tokens,
                max_model_len: options.max_model_len,
                vocab_size: spec.vocab_size,
                num_blocks,
            },
            budget: MemoryBudget {
                weights: weight_bytes,
                activations: buffer_bytes,
                kv_cache: kv_bytes,
                kv_tokens: num_blocks * BLOCK_SIZE,
                max_model_len: options.max_model_len,
            },
            in_flight: VecDeque::new(),
            submitted: 0,
            failed: false,
            stream,
            _memory: [weight_memory, buffer_memory, kv_memory],
            _module: module,
        };
        if options.graphs {
            this.record_graphs()?;
        }
        this.stream.synchronize().map_err(failure)?;
        Ok(this)
    }

    /// Bytes of the parts, and how many tokens fit.
    pub fn memory_budget(&self) -> MemoryBudget {
        self.budget
    }

    /// The GPU's name.
    pub fn device_name(&self) -> &str {
        &self.stream.device.name
    }

    pub(crate) fn device(&self) -> &std::sync::Arc<Device> {
        &self.stream.device
    }

    /// Milliseconds of `times` replays of the first graph.
    pub(crate) fn replay(
        &self,
        before: &Event,
        after: &Event,
        times: usize,
    ) -> Result<f32, DriverError> {
        self.stream.record(before)?;
        for _ in 0..times {
            if let Some(first) = self.graphs.first() {
                self.stream.run(&first.graph)?;
            }
        }
        self.stream.record(after)?;
        after.wait()?;
        after.since(before)
    }

    pub(crate) fn forward_mut(&mut self) -> &mut Forward {
        &mut self.forward
    }

    /// Records the graphs of all sizes, anew where they exist.
    pub(crate) fn record_graphs(&mut self) -> Result<(), EngineError> {
        let most = self
            .bounds
            .max_num_seqs
            .min(self.bounds.max_num_batched_tokens);
        let sizes = graph_sizes(most);
        self.record_sizes(&sizes)
    }

    pub(crate) fn record_sizes(&mut self, sizes: &[usize]) -> Result<(), EngineError> {
        self.stream.device.make_current().map_err(failure)?;
        // Those there are may still be on their way to the GPU.
        self.stream.synchronize().map_err(failure)?;
        self.graphs.clear();
        for &sequences in sizes {
            let size = StepSize {
                tokens: sequences,
                decoding: sequences,
                rows: sequences,
                tiles: 0,
                all_sampled: true,
            };
            let graph = self
                .stream
                .capture(|| self.forward.launch(&self.stream, size).map_err(Fault));
            self.graphs.push(Recorded {
                sequences,
                graph: graph.map_err(|fault| fault.0)?,
            });
        }
        Ok(())
    }

    fn begin(&mut self, step: &Step) -> Result<(), EngineError> {
        let place = self.submitted as usize % RING;
        let layout = self.forward.layout;
        let filled = self.batch.fill(step, &self.slots, &self.bounds, &layout);
        let mut size = filled.map_err(EngineError::Executor)?;
        self.stream.device.make_current().map_err(failure)?;
        // From here on slots change: what fails now fails for good.
        self.failed = true;
        for &slot in &step.released {
            self.slots.release(slot);
        }
        for sequence in &step.sequences {
            let Some(admission) = &sequence.admission else {
                continue;
            };
            let vocab = self.bounds.vocab_size;
            if let Some(counts) = self.slots.admit(sequence.slot, admission, vocab) {
                let to = self.forward.buffers.counts + (sequence.slot * vocab * 2) as u64;
                self.stream.upload(to, bytes_of(&counts)).map_err(failure)?;
                self.stream.synchronize().map_err(failure)?;
            }
        }
        let only_decoding = size.all_sampled && size.tiles == 0 && size.tokens > 0;
        // The first that is large enough; smaller ones come first.
        let mut recorded = self.graphs.iter();
        let graph = recorded
            .position(|graph| graph.sequences >= size.tokens)
            .filter(|_| only_decoding);
        let bytes = self.steps.slice(place * layout.bytes, layout.bytes);
        if let Some(index) = graph {
            self.batch
                .pad(self.graphs[index].sequences, self.bounds.num_blocks);
        }
        let written = self.batch.write(&size, bytes);
        let packed = self.forward.buffers.packed + (place * layout.bytes) as u64;
        self.copies
            .upload(packed, &bytes[..written])
            .and_then(|()| self.copies.record(&self.copied[place]))
            .and_then(|()| self.stream.wait_for(&self.copied[place]))
            .map_err(failure)?;
        match graph {
            Some(index) => self
                .stream
                .run(&self.graphs[index].graph)
                .map_err(failure)?,
            None => {
                // A step of nothing still moves the ring on.
                if size.tokens == 0 {
                    size = StepSize::default();
                }
                self.forward.launch(&self.stream, size)?;
            }
        }
        self.stream.record(&self.events[place]).map_err(failure)?;
        let samples = self.batch.samples.iter().map(|&(slot, row)| {
            let logprobs = self.slots.logprobs(slot);
            (slot, row, logprobs)
        });
        let samples: Vec<_> = samples.collect();
        for (slot, _, _) in &samples {
            self.slots.sampling(*slot);
        }
        self.submitted += 1;
        self.in_flight.push_back(InFlight {
            number: self.submitted,
            place,
            samples,
        });
        self.failed = false;
        Ok(())
    }

    /// How long the GPU computed a step that has ended: since the later of its arrival there and the end
    /// of the step before, by events that are recorded anyway.
    fn busy(&self, step: &InFlight) -> Result<Duration, DriverError> {
        let end = &self.events[step.place];
        let mut milliseconds = end.since(&self.copied[step.place])?;
        if step.number > 1 {
            let before = &self.events[(step.place + RING - 1) % RING];
            milliseconds = milliseconds.min(end.since(before)?);
        }
        Ok(Duration::from_secs_f32(milliseconds.max(0.0) / 1e3))
    }
}

/// An engine's error that a capture may also have from the driver.
struct Fault(EngineError);

impl From<DriverError> for Fault {
    fn from(error: DriverError) -> Self {
        Fault(failure(error))
    }
}

impl Executor for CudaExecutor {
    fn limits(&self) -> &ExecutorLimits {
        &self.limits
    }

    fn submit(&mut self, step: Step) -> Result<PendingStep, EngineError> {
        if self.failed {
            let reason = "a step before this one failed halfway".to_owned();
            return Err(EngineError::Executor(reason));
        }
        if self.in_flight.len() >= 2 {
            let reason = "two steps are in flight already".to_owned();
            return Err(EngineError::Executor(reason));
        }
        self.begin(&step)?;
        Ok(PendingStep(self.submitted))
    }

    fn collect(&mut self, pending: PendingStep) -> Result<StepOutput, EngineError> {
        let step = match self.in_flight.pop_front() {
            Some(step) if step.number == pending.0 => step,
            _ => {
                return Err(EngineError::Executor(format!(
                    "step {} is not the oldest one in flight",
                    pending.0
                )));
            }
        };
        if let Err(error) = self.events[step.place].wait() {
            self.failed = true;
            return Err(failure(error));
        }
        let busy = self.busy(&step).map_err(failure)?;
        let stride = self.forward.results_stride;
        let bytes = self.results.slice(step.place * stride, stride);
        let samples = step.samples.iter().map(|&(slot, row, logprobs)| {
            let result = read_result(bytes, row);
            let logprobs = logprobs.map(|count| TokenLogprobs {
                logprob: result.logprob,
                top: (0..count)
                    .map(|i| (result.top_tokens[i] as u32, result.top_logprobs[i]))
                    .collect(),
            });
            let token = result.token as u32;
            (slot, TokenOutput { token, logprobs })
        });
        Ok(StepOutput {
            samples: samples.collect(),
            busy,
        })
    }
}

fn read_result(bytes: &[u8], row: usize) -> RowResult {
    let size = size_of::<RowResult>();
    let bytes = &bytes[row * size..(row + 1) * size];
    // SAFETY: the slice is as long as the structure, of which any bytes are a value.
    unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphs_lie_close_together() {
        let sizes = graph_sizes(300);
        assert_eq!(&sizes[..6], &[1, 2, 4, 8, 16, 24]);
        assert_eq!(sizes.last(), Some(&300));
        let near = |pair: &[usize]| pair[1] - pair[0] <= pair[0].max(8);
        assert!(sizes.windows(2).all(near));
        assert_eq!(graph_sizes(1), [1]);
        assert_eq!(graph_sizes(50).last(), Some(&50));
    }
}
