#!/usr/bin/env python3
"""Golden values from Hugging Face transformers in float32: prompt ids, top logits, greedy ids, text.

    pip install torch transformers gguf
    python3 benches/hf_reference.py MODEL [--chat "What is ...?"] [--prompt "Gravity is"] [--out FILE.json]

MODEL is a GGUF file (dequantised by transformers) or a folder in Hugging Face's format. A check by hand of
the engine's own numbers; no test depends on it.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(path: Path):
    """Model and tokenizer, all weights in float32."""
    where = {"pretrained_model_name_or_path": path}
    if path.is_file():
        where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    return model.eval(), tokenizer


def greedy(model, ids: list[int], steps: int, top: int, stop: set[int]) -> dict:
    """Greedy continuation, with the best logits of each step. Plain: the whole sequence at every step."""
    output, logits = [], []
    for _ in range(steps):
        with torch.inference_mode():
            last = model(torch.tensor([ids + output]), use_cache=False).logits[0, -1]
        best = torch.topk(last, top)
        logits.append([[i, round(v, 4)] for v, i in zip(best.values.tolist(), best.indices.tolist())])
        output.append(logits[-1][0][0])
        if output[-1] in stop:
            break
    return {"prompt_ids": ids, "output_ids": output, "top_logits": logits}


def stop_ids(model, tokenizer) -> set[int]:
    found = model.generation_config.eos_token_id
    ids = found if isinstance(found, list) else [found]
    return {i for i in [*ids, tokenizer.eos_token_id] if i is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", action="append", default=[], help="raw text; may be repeated")
    parser.add_argument("--chat", action="append", default=[], help="a user's message; may be repeated")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write JSON here too")
    args = parser.parse_args()

    model, tokenizer = load(args.model)
    stop = stop_ids(model, tokenizer)
    jobs = [("prompt", text, tokenizer.encode(text)) for text in args.prompt]
    for text in args.chat:
        message = [{"role": "user", "content": text}]
        filled = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        jobs.append(("chat", text, tokenizer.encode(filled, add_special_tokens=False)))
    if not jobs:
        parser.error("nothing to do: give --prompt or --chat")

    results = []
    for kind, text, ids in jobs:
        result = {kind: text, **greedy(model, ids, args.max_tokens, args.top, stop)}
        result["text"] = tokenizer.decode(result["output_ids"])
        results.append(result)
        print(f"{kind}: {text!r}\n  {len(ids)} ids: {ids}\n  top logits: {result['top_logits'][0]}"
              f"\n  greedy ids: {result['output_ids']}\n  text: {result['text']!r}")
    if args.out:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        report = {"model": args.model.name, "dtype": "float32", "versions": versions, "results": results}
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"written: {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
