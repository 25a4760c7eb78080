#!/usr/bin/env python3
"""Serve one model with and without speculation, ask the same of each server, compare speed and answers.

    python3 benches/speculation.py --model FILE.gguf [--powerband target/release/powerband]
        [--clients 1,4,16] [--rounds 5] [--max-tokens 128]

The servers stay up beside one another and take turns, so that a machine that changes speed changes it for
all; an idle one takes no CPU time. A round is one greedy answer to each client for each prompt. Rates are
output tokens over the round's whole time, prompts included, medians over the rounds. Beside them stands
the CPU time of the server for each output token, which other programs on the machine change less. Prints
Markdown. Linux.
Python 3.9 or later, standard library only.
"""

import argparse
import concurrent.futures
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OFF = "off"
CONFIGS = {
    OFF: None,
    "4 drafts, lookup 2 to 4": {"num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2},
    "4 drafts, lookup 3 to 4": {"num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 3},
    "8 drafts, lookup 3 to 4": {"num_speculative_tokens": 8, "prompt_lookup_max": 4, "prompt_lookup_min": 3},
}
TEXT = (
    "The old lighthouse keeper climbed the ninety-nine steps every evening, lit the lamp and wrote the weather "
    "into his book. Ships from far away harbours passed in the night, and none of their captains ever knew his "
    "name. On Sundays his sister came over the causeway with bread, apples and the letters of the week."
)
CODE = """class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if len(self.items) == 0:
            return None
        return self.items.pop()
"""
PROMPTS = {
    "repeat a text": [
        f"Repeat the following text word by word, and nothing else:\n\n{text}"
        for text in (TEXT, TEXT.replace("Sundays", "Mondays"), TEXT.replace("lighthouse", "castle"))
    ],
    "change some code": [
        f"Rewrite this Python class with {what}. Keep everything else as it is.\n\n{CODE}"
        for what in ("type hints", "a docstring", "the name Pile")
    ],
    "ordinary answers": [
        "Explain in a few paragraphs why the sky is blue and sunsets are red.",
        "Write a short story about a robot that learns to paint.",
        "Give advice to somebody who wants to learn to play the piano as an adult.",
        "What are the main differences between cats and dogs as pets?",
    ],
}


class Server:
    """A server with one setting, until the process ends."""

    def __init__(self, args, config):
        command = [args.powerband, "serve", args.model, "--port", "0", "--device", "cpu"]
        if config:
            command += ["--speculative-config", json.dumps({"method": "ngram", **config})]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        log = []
        for line in self.process.stderr:
            log.append(line)
            ready = re.search(r"ready: .*(http://[0-9.:]+)", line)
            if ready:
                self.url = ready.group(1)
                break
        else:
            sys.exit("".join(log))
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def ask(self, prompt, max_tokens):
        """Number of tokens and text of a greedy answer."""
        body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": max_tokens}
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as reply:
            answer = json.load(reply)
        return answer["usage"]["completion_tokens"], answer["choices"][0]["message"]["content"]

    def cpu_seconds(self):
        """CPU time of all its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def drafts(self):
        """Drafted and accepted tokens so far."""
        page = urllib.request.urlopen(f"{self.url}/metrics").read().decode()
        found = (re.search(rf"^vllm:spec_decode_num_{name}_tokens_total\S* (\S+)", page, re.M) for name in ("draft", "accepted"))
        return [float(match.group(1)) if match else 0.0 for match in found]


def measure(server, clients, prompts, max_tokens):
    """Output tokens a second, CPU seconds a token, and the answers."""

    def client(number):
        # Each client's prompts are its own, so that one's keys and values are of no use to another.
        mine = [prompt if clients == 1 else f"{number}. {prompt}" for prompt in prompts]
        return [server.ask(prompt, max_tokens) for prompt in mine]

    begun, cpu = time.perf_counter(), server.cpu_seconds()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        answers = [answer for own in pool.map(client, range(clients)) for answer in own]
    seconds = time.perf_counter() - begun
    tokens = sum(count for count, _ in answers)
    return tokens / seconds, (server.cpu_seconds() - cpu) / tokens, answers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--powerband", default=ROOT / "target/release/powerband")
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=128)
    args = parser.parse_args()
    servers = {name: Server(args, config) for name, config in CONFIGS.items()}
    try:
        print("| prompts | clients | drafts | tok/s (least to most) | against off | CPU ms a token | against off | accepted of drafted | answers that differ |")
        print("|---|---|---|---|---|---|---|---|---|")
        for kind, prompts in PROMPTS.items():
            for clients in map(int, args.clients.split(",")):
                before = {name: server.drafts() for name, server in servers.items()}
                rates, costs = ({name: [] for name in servers} for _ in range(2))
                differ = dict.fromkeys(servers, 0)
                for number in range(args.rounds + 1):
                    wanted = None
                    for name, server in servers.items():
                        rate, cost, answers = measure(server, clients, prompts, args.max_tokens)
                        wanted = wanted or answers
                        differ[name] += sum(one != other for one, other in zip(answers, wanted))
                        # The first round warms up.
                        if number:
                            rates[name].append(rate)
                            costs[name].append(cost)
                plain, plain_cost = statistics.median(rates[OFF]), statistics.median(costs[OFF])
                for name, server in servers.items():
                    rate, cost = statistics.median(rates[name]), statistics.median(costs[name])
                    drafted, accepted = (now - then for now, then in zip(server.drafts(), before[name]))
                    share = f"{accepted / drafted:.0%}" if drafted else ""
                    spread = f"{min(rates[name]):.0f} to {max(rates[name]):.0f}"
                    print(f"| {kind} | {clients} | {name} | {rate:.1f} ({spread}) | {rate / plain:.2f} "
                          f"| {cost * 1e3:.2f} | {cost / plain_cost:.2f} | {share} | {differ[name]} |", flush=True)
        print(f"\nload average after it: {os.getloadavg()[1]:.1f}")
    finally:
        for server in servers.values():
            server.process.terminate()


if __name__ == "__main__":
    main()
