//! The body of a POST, after a byte that says to which route, through the whole handler and an engine
//! without a model.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use powerband_engine::executor::ExecutorLimits;
use powerband_engine::sim::{SimExecutor, SimTiming};
use powerband_engine::{Engine, EngineConfig, SchedulingPolicy};
use powerband_model::ChatTemplate;
use powerband_server::ModelContext;
use powerband_server::fuzzing::Handlers;

const ROUTES: [&str; 4] = [
    "/v1/completions",
    "/v1/chat/completions",
    "/tokenize",
    "/detokenize",
];
const VOCAB: usize = 260;
const CONTEXT: usize = 64;

fn handlers() -> Handlers {
    let executor = SimExecutor::new(
        ExecutorLimits {
            num_blocks: 1024,
            block_size: 16,
            max_num_seqs: 128,
            max_num_batched_tokens: 512,
            max_model_len: CONTEXT,
            vocab_size: VOCAB,
            overlap: false,
        },
        SimTiming::default(),
    );
    let config = EngineConfig {
        max_num_seqs: 128,
        max_num_batched_tokens: 512,
        max_model_len: CONTEXT,
        max_queue: 256,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        policy: SchedulingPolicy::Fcfs,
        overlap: false,
        seed: 0,
        speculation: None,
    };
    let engine = Engine::start(Box::new(executor), config).expect("the engine starts");
    let template = ChatTemplate::new("{{ messages }}{{ tools }}", "", "").expect("a template");
    let model = ModelContext {
        served_names: vec!["m".to_owned()],
        root: "m".to_owned(),
        vocab_size: VOCAB,
        eos_tokens: vec![256],
        tokenizer: Some(std::sync::Arc::new(powerband_fuzz::byte_tokenizer())),
        chat_template: Some(std::sync::Arc::new(template)),
        gpus: None,
    };
    Handlers::new(engine, model).expect("the server's state")
}

fuzz_target!(|bytes: &[u8]| {
    static HANDLERS: OnceLock<(Handlers, tokio::runtime::Runtime)> = OnceLock::new();
    let (handlers, runtime) = HANDLERS.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        (handlers(), runtime.expect("a runtime"))
    });
    let Some((route, body)) = bytes.split_first() else {
        return;
    };
    let route = ROUTES[usize::from(*route) % ROUTES.len()];
    let (status, answer) = runtime.block_on(handlers.post(route, body));
    // A panic in the handler ends the run by itself; one on another thread is answered as this.
    assert_ne!(status, 500, "{}", String::from_utf8_lossy(&answer));
});
