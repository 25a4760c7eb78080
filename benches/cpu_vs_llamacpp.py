#!/usr/bin/env python3
"""Serve one model with Powerband and with llama.cpp's server or vLLM, load both with one client, compare.

    python3 benches/cpu_vs_llamacpp.py --model FILE.gguf --llama-server PATH \\
        [--powerband target/release/powerband] [--levels 1,10,50,100] [--requests auto] [--repeats 3]
    python3 benches/cpu_vs_llamacpp.py --model FOLDER --vllm PATH ...

The servers run one after the other on the same cores, taking turns at going first, so that a machine that
changes speed changes it for both. Numbers are medians over the repeats. The load: closed loop over HTTP
streaming, 128 prompt tokens and exactly 64 output tokens a request, different prompts. Writes
<date>-cpu-<format>.md and .json into --out. Python 3.9 or later, standard library only.
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64
SLOTS = 50
# A slot of llama.cpp's cache: one request and a margin for prompts that come out a little longer.
SLOT_TOKENS = 256
READY_LIMIT_S, LEVEL_LIMIT_S = 600, 1800
# Cores that other programs may take during a level; with more it is measured again.
QUIET_CORES = 0.1
OURS, LLAMA, VLLM = "powerband", "llama.cpp", "vLLM"


def log_line(text):
    print(text, file=sys.stderr, flush=True)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file; with --vllm a checkpoint's folder")
    peer = parser.add_mutually_exclusive_group(required=True)
    peer.add_argument("--llama-server", type=Path)
    peer.add_argument("--vllm", type=Path, help="the `vllm` of an environment with its build for CPUs")
    parser.add_argument("--powerband", type=Path, default=ROOT / "target/release/powerband")
    parser.add_argument("--levels", default="1,10,50,100", help="clients of each level")
    parser.add_argument("--requests", default="auto", help="requests a level; auto: max(8, 2 x clients)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tries", type=int, default=3, help="most tries of a disturbed level")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--powerband-args", default="", help="more flags for `powerband serve`")
    parser.add_argument("--peer-args", default="", help="more flags for the other server")
    parser.add_argument("--only", choices=["ours", "theirs"], help="measure one of the two")
    parser.add_argument("--label", help="the results' name after the date [default: cpu-<format>]")
    parser.add_argument("--out", type=Path, default=ROOT / "benches/results")
    args = parser.parse_args()
    args.levels = [int(level) for level in args.levels.split(",")]
    args.peer, args.peer_program = (VLLM, args.vllm) if args.vllm else (LLAMA, args.llama_server)
    if missing := [str(p) for p in (args.model, args.peer_program, args.powerband) if not p.exists()]:
        parser.error(f"no such file: {', '.join(missing)}")
    return args


def serve_command(name, args, port):
    if name == OURS:
        command = [args.powerband, "serve", args.model, "--host", "127.0.0.1", "--port", port,
                   "--max-num-seqs", SLOTS, "--threads", args.threads, *args.powerband_args.split()]
    elif name == VLLM:
        command = [args.vllm, "serve", args.model, "--host", "127.0.0.1", "--port", port, "--max-num-seqs", SLOTS,
                   "--dtype", "bfloat16", "--max-model-len", SLOT_TOKENS, *args.peer_args.split()]
    else:
        command = [args.llama_server, "--model", args.model, "--host", "127.0.0.1", "--port", port,
                   "-np", SLOTS, "-c", SLOTS * SLOT_TOKENS, "--threads", args.threads,
                   *args.peer_args.split()]
    return [str(part) for part in command]


class Server:
    """A server as a context: started and ready inside, killed after, whatever happens."""

    def __init__(self, name, args, log):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.name, self.log = name, log
        self.command = serve_command(name, args, self.port)

    def __enter__(self):
        started = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log,
                                        stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            self.wait_until_ready(started)
        except BaseException:
            self.__exit__()
            raise
        self.ready_s = time.monotonic() - started
        return self

    def wait_until_ready(self, started):
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with status {self.process.returncode} at start")
            if time.monotonic() - started > READY_LIMIT_S:
                raise RuntimeError(f"{self.name} is not ready after {READY_LIMIT_S} s")
            time.sleep(0.005)

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def processes(self):
        """(folder in /proc, fields of its `stat` after the name) of each process of the server."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # It has just ended.
                continue
            if int(fields[2]) == self.process.pid:
                yield folder, fields

    def peak_mib(self):
        peaks = (re.search(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text()) for folder, _ in self.processes())
        return sum(int(peak[1]) for peak in peaks if peak) / 1024

    def cpu_s(self):
        return sum(int(f[11]) + int(f[12]) for _, f in self.processes()) / os.sysconf("SC_CLK_TCK")


def machine_busy_s():
    """Seconds taken on all cores since boot: by programs, interrupts, and the host for its other guests."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return sum(ticks[:3] + ticks[5:8]) / os.sysconf("SC_CLK_TCK")


def client_cpu_s():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure_level(server, args, clients):
    """Load the server with so many clients; the numbers of the level."""
    requests = max(8, 2 * clients) if args.requests == "auto" else int(args.requests)
    busy, client, own, started = machine_busy_s(), client_cpu_s(), server.cpu_s(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [args.powerband, "bench", "--target", server.url, "--concurrency", clients,
                   "--max-requests", requests, "--max-seconds", LEVEL_LIMIT_S,
                   "--prompt-tokens", PROMPT_TOKENS, "--output-tokens", OUTPUT_TOKENS, "--output-dir", folder]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"powerband bench on {server.name}: {done.stderr.strip()}")
        report = json.loads((Path(folder) / f"throughput-{clients}.json").read_text())
    wall, own, client = time.monotonic() - started, server.cpu_s() - own, client_cpu_s() - client
    benchmark = report["benchmarks"][0]
    metrics, totals = benchmark["metrics"], benchmark["metrics"]["request_totals"]

    def mean(name):
        return metrics[name]["successful"]["mean"]

    return {
        "clients": clients, "requests": requests, "succeeded": totals["successful"],
        "failed": totals["errored"] + totals["incomplete"], "duration_s": benchmark["duration"],
        "output_tok_s": mean("output_tokens_per_second"),
        "ttft_ms": mean("time_to_first_token_ms"), "itl_ms": mean("inter_token_latency_ms"),
        "prompt_tokens": mean("prompt_token_count"), "output_tokens": mean("output_token_count"),
        "server_cores": own / wall, "client_cores": client / wall,
        "other_cores": max(0.0, (machine_busy_s() - busy - own - client) / wall),
    }


def measure_quietly(server, args, clients):
    """The least disturbed of a few tries: a program that takes a core stops llama.cpp's spinning threads."""
    tries = []
    while len(tries) < args.tries and not (tries and tries[-1]["other_cores"] <= QUIET_CORES):
        tries.append(measure_level(server, args, clients))
    return min(tries, key=lambda level: level["other_cores"])


def measure(name, args, repeat, log):
    with Server(name, args, log) as server:
        log_line(f"repeat {repeat + 1}, {name}: ready in {server.ready_s:.2f} s")
        levels = []
        for clients in args.levels:
            levels.append(level := measure_quietly(server, args, clients))
            log_line(f"  {clients:>4} clients: {level['output_tok_s']:8.1f} tok/s, TTFT {level['ttft_ms']:8.1f} ms, "
                 f"{level['failed']} failed, other programs {level['other_cores']:.2f} cores")
        return {"server": name, "repeat": repeat, "ready_s": server.ready_s,
                "peak_mib": server.peak_mib(), "levels": levels}


def output_of(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    return (done.stdout or done.stderr).strip()


def machine():
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu[1] if cpu else platform.machine(), "cores": os.cpu_count(),
            "memory_gib": round(memory / 2**30, 1), "kernel": platform.release()}


def versions(args):
    peer = output_of(args.peer_program.absolute(), "--version").splitlines()
    peer = [line for line in peer if re.match(r"version: |\d", line)]
    # The commit is the binary's only if it was built after it.
    built, committed = args.powerband.stat().st_mtime, float(output_of("git", "log", "-1", "--format=%ct") or "inf")
    commit = output_of("git", "rev-parse", "--short", "HEAD")
    return {"commit": commit if built > committed else f"unknown (older than {commit})",
            OURS: output_of(args.powerband.resolve(), "--version"),
            args.peer: peer[-1].removeprefix("version: ") if peer else "unknown"}


def summarise(runs, levels, names):
    """Medians a level, and of start and memory."""
    def median_of(name, get):
        values = [get(run) for run in runs if run["server"] == name]
        return statistics.median(values) if values else None

    rows = []
    for index, clients in enumerate(levels):
        row = {"clients": clients, "failed": sum(run["levels"][index]["failed"] for run in runs)}
        for key in ("output_tok_s", "ttft_ms", "itl_ms", "other_cores"):
            for name in names:
                row[f"{key} {name}"] = median_of(name, lambda run: run["levels"][index][key])
        ours, theirs = (row[f"output_tok_s {name}"] for name in names)
        row["ratio"] = ours / theirs if ours and theirs else None
        rows.append(row)
    start = {f"{key} {name}": median_of(name, lambda run: run[key])
             for key in ("ready_s", "peak_mib") for name in names}
    return {"levels": rows, **start}


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def number(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


def markdown(result):
    summary, host, version, peer = result["summary"], result["machine"], result["versions"], result["peer"]
    names = (OURS, peer)
    rows = [[str(row["clients"])] + [number(row[f"output_tok_s {name}"], 1) for name in names]
            + [number(row["ratio"], 2)] + [number(row[f"ttft_ms {name}"]) for name in names]
            + [number(row[f"itl_ms {name}"], 1) for name in names]
            + [str(row["failed"])] + [number(row[f"other_cores {name}"], 2) for name in names]
            for row in summary["levels"]]
    start = [[title] + [number(summary[f"{key} {name}"], digits) for name in names]
             for title, key, digits in (("command to ready, s", "ready_s", 2), ("peak memory (VmHWM), MiB", "peak_mib", 0))]
    return "\n\n".join([
        f"# {result['model']['file']}: Powerband and {peer}'s server, {result['date']}",
        f"{host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB; {result['threads']} threads, {SLOTS} slots. "
        f"Powerband, commit {version['commit']}; {peer} {version[peer]}. "
        f"{PROMPT_TOKENS} prompt and {OUTPUT_TOKENS} output tokens a request, requests a level: {result['requests']}; "
        f"medians of {result['repeats']}.",
        table(["clients", "ours, tok/s", "theirs, tok/s", "ratio", "TTFT mean, ms: ours", "theirs",
               "ITL mean, ms: ours", "theirs", "failed", "cores taken by other programs: ours", "theirs"], rows),
        table(["", "ours", "theirs"], start),
        "    " + result["command"]]) + "\n"


def model_info(path):
    digest, files = hashlib.sha256(), [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    for part in files:
        with part.open("rb") as file:  # Also brings the file into the page cache, for both servers.
            while block := file.read(1 << 20):
                digest.update(block)
    named = re.search(r"\b(I?Q\d\w*|B?F16|F32)\b", path.stem, re.IGNORECASE)
    return {"file": path.name, "sha256": digest.hexdigest(), "bytes": sum(part.stat().st_size for part in files),
            "format": (named[1] if named else path.stem).lower()}


def main():
    # So that the server is also killed when this script is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = parse_args()
    model = model_info(args.model)
    names = [name for name, key in ((OURS, "ours"), (args.peer, "theirs")) if args.only in (None, key)]
    runs = []
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        try:
            for repeat in range(args.repeats):
                order = names if repeat % 2 == 0 else names[::-1]
                runs += [measure(name, args, repeat, log) for name in order]
        except RuntimeError as error:
            log.seek(0)
            log_line("".join(log.readlines()[-15:]))
            sys.exit(f"error: {error}")
    flags = [re.sub(r"[^ =]*/", "", part) for part in sys.argv[1:]]  # without this machine's folders
    result = {"date": datetime.date.today().isoformat(), "model": model, "machine": machine(),
              "versions": versions(args), "peer": args.peer, "threads": args.threads, "requests": args.requests,
              "repeats": args.repeats, "command": " ".join(["benches/cpu_vs_llamacpp.py", *flags]),
              "summary": summarise(runs, args.levels, (OURS, args.peer)), "runs": runs}
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"{result['date']}-{args.label or 'cpu-' + model['format']}"
    Path(f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    Path(f"{stem}.md").write_text(text := markdown(result))
    print(text)


if __name__ == "__main__":
    main()
