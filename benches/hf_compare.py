#!/usr/bin/env python3
"""Powerband beside Hugging Face transformers, both on this machine: greedy tokens and their log-probabilities.

    pip install torch transformers accelerate            # and gguf, for a GGUF file
    python3 benches/hf_compare.py target/release/powerband [--device cuda] [--tiny] [MODEL ...] [--out FILE.json]

--tiny makes random models of several families in bfloat16 and compares those; MODEL is a folder in Hugging Face's
format or a GGUF file. The reference is transformers in float32 over the same weights. Transformers' own bfloat16 on
the same tokens is the bound: a log-probability of Powerband's may be off by no more than the worst of those is
(or by 0.02). Powerband is asked over HTTP, for all prompts at once and for one after the other.

Tokens must be equal. Of random prompts those are taken whose greedy path stays farthest from a tie, so that this is a
question of arithmetic and not of the last bit. A real model gets texts; where transformers' own two best are closer
than the bound its path may part from Powerband's, and that is said.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers as t

t.logging.set_verbosity_error()
t.logging.disable_progress_bar()

LEAST_BOUND, TOP, PORT = 0.02, 20, 18741
# Random prompts: of so many of each length some are kept, with so many tokens after each.
LENGTHS, DRAWN, KEPT, TOKENS = (3, 17, 60, 200), 256, 6, 16
TEXTS = ["Gravity is", "def fibonacci(n):\n    ", "The capital of France is",
         "Once upon a time, in a small village by the sea, there lived",
         "Water boils at a temperature of", "The three primary colours are", "Q: What is 7 times 8?\nA:",
         "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"]
TOKENS_OF_TEXTS = 32


def tiny_models(folder: Path):
    """Random models; what sets them apart decides which kernels compute them."""
    common = dict(vocab_size=1000, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    llama3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=64)
    plain = dict(rope_type="default", rope_theta=10000.0)
    heads = dict(num_attention_heads=8, num_key_value_heads=2)
    for name, config in {
        "llama, 6 layers": t.LlamaConfig(**common, **heads, hidden_size=512, intermediate_size=1280, head_dim=64,
                                         num_hidden_layers=6, rope_parameters=llama3, tie_word_embeddings=True),
        "llama, 2 layers": t.LlamaConfig(**common, hidden_size=192, intermediate_size=520, num_attention_heads=6,
                                         num_key_value_heads=3, head_dim=32, num_hidden_layers=2,
                                         rope_parameters=plain, tie_word_embeddings=False),
        "mistral": t.MistralConfig(**common, **heads, hidden_size=256, intermediate_size=640, head_dim=128,
                                   num_hidden_layers=5, sliding_window=48, rope_parameters=plain,
                                   tie_word_embeddings=False),
        "qwen2": t.Qwen2Config(**common, hidden_size=448, intermediate_size=1216, num_attention_heads=7,
                               num_key_value_heads=1, num_hidden_layers=6, rope_parameters=plain,
                               tie_word_embeddings=True),
        "qwen3": t.Qwen3Config(**common, **heads, hidden_size=256, intermediate_size=768, head_dim=128,
                               num_hidden_layers=4, rope_parameters=plain, tie_word_embeddings=True),
    }.items():
        model = t.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        generator = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.dim() == 1:
                    parameter.copy_((1.0 if "norm" in key else 0.0) + 0.3 * noise)
                else:
                    # Logits as far apart as a trained model's.
                    embeds = "embed" in key and config.tie_word_embeddings
                    last = embeds or "lm_head" in key
                    parameter.copy_(noise * (2.5 if last else 1.0) / parameter.shape[1] ** 0.5)
        path = folder / name.replace(", ", "-").replace(" ", "-")
        model.to(torch.bfloat16).save_pretrained(path)
        yield name, path


def load(path: Path, device: str, dtype):
    where = {"pretrained_model_name_or_path": path}
    if path.is_file():
        where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = t.AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, attn_implementation="eager")
    return model.eval().to(device), where


@torch.inference_mode()
def after(model, rows, count):
    """Log-probabilities of the next token after each of the last `count` tokens of rows of one length."""
    logits = model(torch.tensor(rows, device=model.device), use_cache=False).logits[:, -count:]
    return torch.log_softmax(logits.float(), -1).cpu()


def greedy(model, prompts, tokens):
    """Greedy continuations of prompts of one length, and how near each came to a tie. The plain way: all anew."""
    rows, gaps = [list(p) for p in prompts], [float("inf")] * len(prompts)
    for _ in range(tokens):
        for i, last in enumerate(after(model, rows, 1)[:, 0]):
            (best, second), ids = torch.topk(last, 2)
            gaps[i] = min(gaps[i], float(best - second))
            rows[i].append(int(ids[0]))
    return [row[len(prompts[0]):] for row in rows], gaps


def reference(path: Path, device: str):
    """For each prompt: ids, the continuation, the float32 log-probabilities along it, and bfloat16's error there;
    and may a path come near a tie?"""
    model, where = load(path, device, torch.float32)
    if path.is_file() or (path / "tokenizer.json").exists():
        tokenizer = t.AutoTokenizer.from_pretrained(**where)
        groups = [[tokenizer(text)["input_ids"]] for text in TEXTS]
        kept, tokens = 1, TOKENS_OF_TEXTS
    else:
        generator = torch.Generator().manual_seed(1)
        groups = [torch.randint(3, model.config.vocab_size, (DRAWN, n), generator=generator).tolist() for n in LENGTHS]
        kept, tokens = KEPT, TOKENS
    chosen = []
    for prompts in groups:
        outputs, gaps = greedy(model, prompts, tokens)
        order = sorted(range(len(prompts)), key=lambda i: -gaps[i])[:kept]
        chosen += [dict(ids=prompts[i], output=outputs[i], gap=gaps[i]) for i in order]
    for case in chosen:
        case["exact"] = after(model, [(case["ids"] + case["output"])[:-1]], tokens)[0]
    del model
    rounded, _ = load(path, device, torch.bfloat16)
    for case in chosen:
        found = after(rounded, [(case["ids"] + case["output"])[:-1]], tokens)[0]
        top = torch.topk(found, TOP).indices
        case["bf16_error"] = float((found - case["exact"]).gather(1, top).abs().max())
    return chosen, kept == 1


def ask(case):
    body = dict(prompt=case["ids"], max_tokens=len(case["output"]), temperature=0, logprobs=TOP, ignore_eos=True,
                return_tokens_as_token_ids=True)
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    logprobs = json.loads(urllib.request.urlopen(request, timeout=120).read())["choices"][0]["logprobs"]
    number = lambda text: int(text.removeprefix("token_id:"))
    return [(number(token), {number(k): v for k, v in top.items()})
            for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"])]


def compare(case, answer, bound, ties):
    """How many tokens are equal, the largest error of a log-probability up to there, and whether that will do."""
    error = 0.0
    for place, (token, top) in enumerate(answer):
        exact = case["exact"][place]
        error = max([error] + [abs(value - float(exact[i])) for i, value in top.items()])
        if token != case["output"][place]:
            tie = float(exact.max() - exact[token])
            return dict(equal=place, error=error, tie=tie, ok=ties and max(error, tie) <= bound)
    complete = len(answer) == len(case["output"])
    return dict(equal=len(answer), error=error, tie=None, ok=error <= bound and complete)


def served(binary, path, args, cases):
    command = [binary, "serve", str(path), "--device", args.device, "--port", str(PORT), "--max-model-len", "512",
               "--no-enable-prefix-caching", "--kv-cache-memory-bytes", "1GiB", *args.serve]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5).read()
                break
            except OSError:
                if server.poll() is not None:
                    sys.exit(f"{' '.join(command)} ended:\n{server.stderr.read()}")
                time.sleep(0.1)
        with ThreadPoolExecutor(len(cases)) as pool:
            together = list(pool.map(ask, cases))
        return {"together": together, "alone": [ask(case) for case in cases]}
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda", help="Powerband's; transformers takes the same")
    parser.add_argument("--serve", action="append", default=[], help="another argument for `powerband serve`")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    device = args.device
    print(f"torch {torch.__version__}, transformers {t.__version__}, "
          f"{torch.cuda.get_device_name() if device == 'cuda' else device}")
    print(f"{'model':<34}{'asked':<10}{'prompts':>8}{'equal tokens':>16}{'error':>10}{'HF bfloat16':>12}")
    results, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        models = list(tiny_models(Path(folder))) if args.tiny else []
        for name, path in models + [(path.name, path) for path in args.models]:
            cases, ties = reference(path, device)
            bound = max([LEAST_BOUND] + [case["bf16_error"] for case in cases])
            wanted = sum(len(case["output"]) for case in cases)
            for how, answers in served(args.binary, path, args, cases).items():
                rows = [compare(case, answer, bound, ties) for case, answer in zip(cases, answers)]
                error, equal = max(r["error"] for r in rows), sum(r["equal"] for r in rows)
                ok = all(r["ok"] for r in rows)
                failed |= not ok
                print(f"{name:<34}{how:<10}{len(rows):>8}{f'{equal}/{wanted}':>16}{error:>10.4f}"
                      f"{bound:>12.4f}  {'ok' if ok else 'FAILED'}", flush=True)
                for case, row in zip(cases, rows):
                    if row["tie"] is not None:
                        print(f"    prompt of {len(case['ids'])}: parts after {row['equal']} tokens, where "
                              f"transformers' two are {row['tie']:.4f} apart")
                nearest = min(case["gap"] for case in cases)
                results.append(dict(model=name, asked=how, ok=ok, error=error, bound=bound, nearest_tie=nearest,
                                    prompts=rows))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
