//! A whole server over a real socket, in front of the real engine, without a model.

pub mod client;
pub mod echo;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use powerband_engine::executor::ExecutorLimits;
use powerband_engine::{Engine, EngineConfig, SchedulingPolicy};
use powerband_model::{ChatTemplate, Tokenizer};
use powerband_server::{GpuReader, ModelContext, ServerConfig, ServerError, bind};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use echo::{EchoExecutor, Lever};

/// One token a byte, then the special ones.
pub const EOS: u32 = 256;
pub const BOS: u32 = 257;
pub const VOCAB: usize = 260;
pub const CONTEXT: usize = 4096;

pub struct Options {
    pub config: ServerConfig,
    pub engine: EngineConfig,
    pub blocks: usize,
    pub tokenizer: bool,
    pub template: Option<&'static str>,
    pub drain: Duration,
    pub gpus: Option<GpuReader>,
}

pub const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}\
    {% if tools %}{{ tools | length }} tools\n{% endif %}{% if add_generation_prompt %}[assistant]{% endif %}";

impl Default for Options {
    fn default() -> Self {
        Self {
            config: ServerConfig {
                port: 0,
                ..ServerConfig::default()
            },
            engine: EngineConfig {
                max_num_seqs: 8,
                max_num_batched_tokens: 512,
                max_model_len: CONTEXT,
                max_queue: 64,
                enable_prefix_caching: true,
                enable_chunked_prefill: true,
                policy: SchedulingPolicy::Fcfs,
                overlap: false,
                speculation: None,
                seed: 0,
            },
            blocks: 1024,
            tokenizer: true,
            template: Some(TEMPLATE),
            drain: Duration::from_secs(5),
            gpus: None,
        }
    }
}

pub struct TestServer {
    pub address: SocketAddr,
    pub engine: Engine,
    pub lever: Lever,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServerError>>,
}

impl TestServer {
    pub async fn start(options: Options) -> Self {
        let lever = Lever::default();
        let limits = ExecutorLimits {
            num_blocks: options.blocks,
            block_size: 16,
            max_num_seqs: options.engine.max_num_seqs,
            max_num_batched_tokens: options.engine.max_num_batched_tokens,
            max_model_len: options.engine.max_model_len,
            vocab_size: VOCAB,
            overlap: false,
        };
        let executor = EchoExecutor::new(limits, lever.clone());
        let engine = Engine::start(Box::new(executor), options.engine).expect("the engine starts");
        let server = bind(&options.config).await.expect("the port is free");
        let address = server.local_addr();
        let model = ModelContext {
            served_names: vec!["echo".to_owned(), "org/echo".to_owned()],
            root: "/models/echo.gguf".to_owned(),
            vocab_size: VOCAB,
            eos_tokens: vec![EOS],
            tokenizer: options.tokenizer.then(|| Arc::new(tokenizer())),
            chat_template: options.template.map(|source| {
                Arc::new(ChatTemplate::new(source, "<s>", "</s>").expect("a template"))
            }),
            gpus: options.gpus,
        };
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(server.serve(engine.clone(), model, shutdown, options.drain));
        Self {
            address,
            engine,
            lever,
            stop: Some(stop),
            task,
        }
    }

    pub async fn plain() -> Self {
        Self::start(Options::default()).await
    }

    /// What a signal does.
    pub fn stop(&mut self) {
        let _ = self.stop.take().expect("stopped once").send(());
    }

    pub async fn ended(mut self) -> Result<(), ServerError> {
        (&mut self.task).await.expect("the server does not panic")
    }

    /// Waits until nothing runs or waits, and checks that every KV block came back.
    pub async fn idle(&self) {
        self.until("idle", |stats| stats.running == 0 && stats.waiting == 0)
            .await;
        self.until("all blocks free", |stats| {
            stats.kv_blocks_free == stats.kv_blocks_total
        })
        .await;
    }

    /// Waits until the engine's statistics are as wished; fails when they never are.
    pub async fn until(
        &self,
        what: &str,
        reached: impl Fn(&powerband_engine::EngineStats) -> bool,
    ) {
        for _ in 0..10_000 {
            if reached(&self.engine.stats()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("never {what}: {:?}", self.engine.stats());
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // A test that fails while the executor is held must not hang.
        self.lever.release();
        self.task.abort();
    }
}

/// A byte-level vocabulary without merges: token ids are bytes, so characters of several bytes come
/// in parts.
pub fn tokenizer() -> Tokenizer {
    let mut spare = 256;
    let vocabulary: serde_json::Map<String, serde_json::Value> = (0..=255u32)
        .map(|byte| {
            let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
            let character = if printable {
                byte
            } else {
                spare += 1;
                spare - 1
            };
            (
                char::from_u32(character).expect("a character").to_string(),
                byte.into(),
            )
        })
        .collect();
    let special = |id: u32, text: &str| {
        serde_json::json!({"id": id, "content": text, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    };
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [special(EOS, "</s>"), special(BOS, "<s>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    Tokenizer::from_json(json.to_string().as_bytes()).expect("a tokenizer")
}
