#!/usr/bin/env python3
"""How exact, how fast and how small the load generator is, against a server of known timing.

    cargo build --release -p powerband-bench --examples
    python3 benches/load_generator.py [--guidellm PATH] [--repeats 3] [--only NAME,NAME]

The server is crates/bench/examples/mock.rs. It sends tokens on a schedule, notes the kernel's time of each
request's arrival and its own time of each token's sending, and tells the differences in the answer's
`usage`: each tool's own result file then holds the true TTFT of every request beside the measured one, and
the true time from first to last token.
Client and server share the cores of one machine over loopback. Numbers are medians over the repeats; with
--guidellm the same cases are run with GuideLLM in turn, and the ratios are printed. `other` is what
all other programs took of the machine meanwhile, in cores; a run with more than 0.1 is tried again.
Writes <date>-load-generator.md and .json into --out. Python 3.9 or later, standard library only, Linux.
"""

import argparse
import datetime
import json
import os
import platform
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/examples"
OURS, THEIRS = "powerband", "guidellm"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
RUN_LIMIT_S = 600
# Cores that other programs may take during a run; with more it is measured again.
QUIET_CORES = 0.1

# What is run: the server's times, the load, and whether the result file is read (a list of 200,000 requests
# is not). `theirs`: requests for GuideLLM, which is slower; None where it has nothing to compare.
TIMED, AT_ONCE = ("--ttft-ms", 100, "--itl-ms", 10), ("--ttft-ms", 0, "--itl-ms", 0)
CASES = {
    "exact-100": dict(mock=TIMED, streams=100, requests=1000, theirs=500),
    "exact-1000": dict(mock=TIMED, streams=1000, requests=6000, theirs=2000),
    "requests": dict(mock=AT_ONCE, streams=64, requests=60000, tokens=4, theirs=3000),
    "tokens": dict(mock=AT_ONCE, streams=64, requests=30000, theirs=3000),
    "many": dict(mock=AT_ONCE, streams=1000, requests=200000, tokens=8, theirs=None, read=False),
    "start": dict(mock=AT_ONCE, streams=1, requests=4, theirs=4),
    "constant-200": dict(mock=TIMED, rate=200, requests=2000, theirs=1000),
    "constant-1000": dict(mock=TIMED, rate=1000, requests=5000, theirs=None),
}

# What is reported: (title, case, number, unit, target or None, is more better?).
FIGURES = [
    ("TTFT error at 100 streams, p50", "exact-100", "ttft_error_p50_ms", "ms", 0.5, False),
    ("TTFT error at 100 streams, p99", "exact-100", "ttft_error_p99_ms", "ms", 3, False),
    ("TTFT error at 1,000 streams, p50", "exact-1000", "ttft_error_p50_ms", "ms", 3, False),
    ("TTFT error at 1,000 streams, p99", "exact-1000", "ttft_error_p99_ms", "ms", 10, False),
    ("ITL error at 1,000 streams, p50", "exact-1000", "itl_error_p50_us", "us", None, False),
    ("ITL error at 1,000 streams, p99", "exact-1000", "itl_error_p99_us", "us", None, False),
    ("streams delivered of 1,000 asked for (64 tokens at 10 ms)", "exact-1000", "delivered", "", 930, True),
    ("client's cores meanwhile", "exact-1000", "client_cores", "cores", 1, False),
    ("peak memory at 1,000 streams", "exact-1000", "peak_mib", "MiB", 50e6 / 2**20, False),
    ("the same, 200,000 requests", "many", "peak_mib", "MiB", 50e6 / 2**20, False),
    ("requests from a zero-delay server (4 tokens each)", "requests", "requests_per_s", "/s", 20e3, True),
    ("tokens from a zero-delay server (64 a request)", "tokens", "tokens_per_s", "/s", 1e6, True),
    ("command to first measured request", "start", "start_ms", "ms", 50, False),
    ("constant 200/s, sd of sent - intended", "constant-200", "dispatch_sd_ms", "ms", 0.5, False),
    ("constant 1,000/s, sd of sent - intended", "constant-1000", "dispatch_sd_ms", "ms", 0.5, False),
]


def log_line(text):
    print(text, file=sys.stderr, flush=True)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", type=Path, default=EXAMPLES / "load",
                        help="crates/bench/examples/load.rs, or `powerband` itself [default: %(default)s]")
    parser.add_argument("--mock", type=Path, default=EXAMPLES / "mock", help="[default: %(default)s]")
    parser.add_argument("--guidellm", type=Path, help="GuideLLM's command, to be measured in the same run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--guidellm-repeats", type=int, default=1)
    parser.add_argument("--tries", type=int, default=3, help="most tries of a run that other programs disturb")
    parser.add_argument("--only", default=",".join(CASES), help="some of the cases [default: %(default)s]")
    parser.add_argument("--label", default="load-generator", help="the results' name after the date")
    parser.add_argument("--out", type=Path, default=ROOT / "benches/results")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := [name for name in args.only if name not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}")
    needed = [path for path in (args.client, args.mock, args.guidellm) if path]
    if missing := [str(path) for path in needed if not path.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}\n"
                     "hint: cargo build --release -p powerband-bench --examples")
    return args


class Mock:
    """The server as a context."""

    def __init__(self, args, case):
        flags = [str(flag) for flag in case["mock"]]
        self.command = [str(args.mock), *flags, *(["--tell-times"] if case["mock"] is TIMED else [])]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True,
                                        stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            # Where that is allowed, its session comes somewhat before others, so that it keeps its times beside a
            # client that takes every core. The client pays for it: at -10, with 0.7 cores taken by other
            # programs, its TTFT error (p99) at 1,000 streams was 40 to 48 ms; at -3 0.01 to 8 ms, at 0 0.02 ms
            # from a server that was itself 20 to 150 ms late. On a quiet machine -10 gave 0.01 to 9 ms.
            Path(f"/proc/{self.process.pid}/autogroup").write_text("-3")
        except OSError:
            pass
        self.url = self.process.stdout.readline().strip()
        return self

    def seen(self):
        with urllib.request.urlopen(f"{self.url}/mock", timeout=5) as answer:
            return json.load(answer)

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def our_command(args, case, url, folder):
    load = ["--rate", case["rate"]] if "rate" in case else ["--concurrency", case["streams"]]
    shape = ["--profile", "constant"] if "rate" in case and args.client.name == "powerband" else []
    return [args.client, *(["bench"] if args.client.name == "powerband" else []), "--target", url, *shape, *load,
            "--max-requests", case["requests"], "--output-tokens", case.get("tokens", 64), "--output-dir", folder]


def their_command(args, case, url, folder):
    words, choose = "time year people way day man thing woman life child world school state".split(), random.Random(1)
    prompts = [json.dumps({"prompt": " ".join(choose.choices(words, k=127)), "output_tokens_count": case.get("tokens", 64)})
               for _ in range(max(1000, case["theirs"]))]
    (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
    load = f"kind=constant,rate={case['rate']}" if "rate" in case else f"kind=concurrent,streams={case['streams']}"
    return [args.guidellm, "run", "--backend", f"kind=openai_http,target={url},request_format=/v1/completions,model=mock",
            "--profile", load, "--constraint", f"kind=max_requests,count={case['theirs']}",
            "--data", f"kind=json_file,path={folder}/prompts.jsonl", "--output", f"kind=json,path={folder}/report.json",
            "--disable-console"]


class Watch(threading.Thread):
    """Follows a command and its children: CPU seconds by time, and the largest memory together."""

    def __init__(self, leader):
        super().__init__(daemon=True)
        self.leader, self.samples, self.peak_kib, self.done = leader, [], 0, threading.Event()

    def members(self):
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == self.leader:  # its session
                yield folder, (int(fields[11]) + int(fields[12])) * TICK_S

    def run(self):
        leader, rounds = Path(f"/proc/{self.leader}"), 0
        while not self.done.wait(0.05):
            # Its own high-water mark. What wait4 tells includes this script's memory, from before the exec.
            self.peak_kib = max(self.peak_kib, kib(leader / "status", "VmHWM"))
            if rounds % 2 == 0:
                members = list(self.members())
                self.samples.append((time.time(), sum(cpu for _, cpu in members)))
            if rounds % 10 == 0:
                # Pages shared with others are divided among them.
                together = sum(kib(folder / "smaps_rollup", "Pss") for folder, _ in members)
                self.peak_kib = max(self.peak_kib, together)
            rounds += 1

    def cores(self, start, end):
        """Cores between two times, by the samples next to them; None where there are not two."""
        inside = [sample for sample in self.samples if start - 0.1 <= sample[0] <= end + 0.1]
        if len(inside) < 2 or inside[-1][0] - inside[0][0] < 0.5:
            return None
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


def kib(file, name):
    """A number of kB in one of /proc's files; 0 if the process is gone."""
    try:
        return int(re.search(rf"^{name}:\s+(\d+)", file.read_text(), re.MULTILINE)[1])
    except (OSError, TypeError):
        return 0


def machine_busy_s():
    """CPU seconds of all programs since boot."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return sum(ticks[:3] + ticks[5:8]) * TICK_S


def run_case(args, tool, name):
    """One run of one tool: its numbers."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder, Mock(args, case) as mock:
        folder = Path(folder)
        command = (our_command if tool == OURS else their_command)(args, case, mock.url, folder)
        with (folder / "log").open("w+") as log:
            busy, own, started_unix, started = machine_busy_s(), time.process_time(), time.time(), time.monotonic()
            client = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, cwd=folder,
                                      stdin=subprocess.DEVNULL, start_new_session=True)
            watch = Watch(client.pid)
            watch.start()
            killer = threading.Timer(RUN_LIMIT_S, os.killpg, (client.pid, signal.SIGKILL))
            killer.start()
            try:
                _, status, usage = os.wait4(client.pid, 0)
                client.returncode = os.waitstatus_to_exitcode(status)
            finally:
                killer.cancel()
                watch.done.set()
            wall = time.monotonic() - started
            busy, own = machine_busy_s() - busy, time.process_time() - own
            watch.join()
            if client.returncode != 0:
                log.seek(0)
                raise RuntimeError(f"{tool}, {name}: status {client.returncode}\n{log.read()[-2000:]}")
        server_cpu = sum(process_cpu_s(mock.process.pid))
        client_cpu = max([usage.ru_utime + usage.ru_stime] + [cpu for _, cpu in watch.samples])
        seen = mock.seen()
        if seen["requests"] < case["theirs" if tool == THEIRS else "requests"]:
            raise RuntimeError(f"{tool}, {name}: only {seen['requests']} requests reached the server")
        numbers = {
            "served": seen["requests"], "wall_s": wall, "client_cpu_s": client_cpu, "mock_cpu_s": server_cpu,
            # In less time than this, CPU time is too coarse to tell.
            "other": max(0.0, (busy - client_cpu - server_cpu - own) / wall) if wall > 0.5 else 0.0,
            "peak_mib": watch.peak_kib / 1024,
            "start_ms": seen["first_unix_ns"] / 1e6 - started_unix * 1e3,
            "mock_late_p50_ms": seen["late_p50_ms"], "mock_late_p99_ms": seen["late_p99_ms"],
        }
        if case.get("read", True):
            report = max(folder.rglob("*.json"), key=lambda path: path.stat().st_size)
            numbers.update(read_report(json.loads(report.read_text()), watch, told=case["mock"] is TIMED))
        return numbers


def run_quietly(args, tool, name):
    """The least disturbed of a few tries."""
    tries = []
    while len(tries) < args.tries and not (tries and tries[-1]["other"] <= QUIET_CORES):
        tries.append(run_case(args, tool, name))
    return min(tries, key=lambda run: run["other"])


def process_cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) * TICK_S, int(fields[12]) * TICK_S


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def read_report(report, watch, told):
    """Numbers from the requests of a result file, the same way for both tools: both write this format."""
    requests = report["benchmarks"][0]["requests"]
    good = requests["successful"]
    times = [(r["info"]["timings"]["request_start"], r["info"]["timings"]["request_end"]) for r in good]
    start, end = min(t[0] for t in times), max(t[1] for t in times)
    late = [(r["info"]["timings"]["request_start"] - r["info"]["timings"]["targeted_start"]) * 1e3 for r in good]
    numbers = {
        "succeeded": len(good), "failed": len(requests["errored"]) + len(requests["incomplete"]), "level_s": end - start,
        "delivered": sum(t[1] - t[0] for t in times) / (end - start),
        "requests_per_s": len(good) / (end - start),
        "tokens_per_s": sum(r["output_metrics"]["text_tokens"] for r in good) / (end - start),
        "client_cores": watch.cores(start, end),
        "dispatch_mean_ms": statistics.fmean(late), "dispatch_sd_ms": statistics.pstdev(late),
        "dispatch_p99_ms": percentile(late, 0.99),
    }
    if told:
        ttft_ms = [abs(r["time_to_first_token_ms"] - r["input_metrics"]["text_tokens"] / 1e3) for r in good]
        itl_us = [abs(r["inter_token_latency_ms"] * 1e3 - r["input_metrics"]["cached_tokens"]
                      / (r["output_metrics"]["text_tokens"] - 1)) for r in good]
        for p in (50, 99, 100):
            numbers[f"ttft_error_p{p}_ms"] = percentile(ttft_ms, p / 100)
            numbers[f"itl_error_p{p}_us"] = percentile(itl_us, p / 100)
    health = report["benchmarks"][0].get("powerband", {}).get("client")
    return {**numbers, **({"health": health} if health else {})}


def median(runs, key):
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.median(values) if values else None


def output_of(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT).stdout.strip()


def machine():
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu[1] if cpu else platform.machine(), "cores": os.cpu_count(),
            "memory_gib": round(memory / 2**30, 1), "kernel": platform.release()}


def number(value):
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3
    return f"{value:,.{digits}f}"


def summarise(runs):
    rows = []
    for title, case, key, unit, target, more in FIGURES:
        ours, theirs = (median([run for run in runs if (run["tool"], run["case"]) == (tool, case)], key)
                        for tool in (OURS, THEIRS))
        if ours is None and theirs is None:
            continue
        ratio = (ours / theirs if more else theirs / ours) if ours and theirs else None
        met = None if None in (ours, target) else ours >= target if more else ours <= target
        rows.append({"title": title, "case": case, "key": key, "unit": unit, "target": target, "more_is_better": more,
                     OURS: ours, THEIRS: theirs, "times_better": ratio, "met": met})
    return rows


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def markdown(result):
    host = result["machine"]
    figures = [[row["title"], "-" if row["target"] is None else
                ("at least " if row["more_is_better"] else "at most ") + number(row["target"]),
                f"{number(row[OURS])} {row['unit']}".strip(), {True: "yes", False: "**no**", None: "-"}[row["met"]],
                number(row[THEIRS]), number(row["times_better"])] for row in result["summary"]]
    cases = []
    for run in result["runs"]:
        cases.append([run["tool"], run["case"]] + [number(run.get(key)) for key in (
            "succeeded", "failed", "level_s", "client_cpu_s", "mock_cpu_s", "mock_late_p50_ms", "mock_late_p99_ms", "other")])
    return "\n\n".join([
        f"# The load generator measured, {result['date']}",
        f"{host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB, Linux {host['kernel']}; client and server on the "
        f"same machine, over loopback. Powerband at commit {result['commit']}, client `{result['client']}`"
        + (f"; GuideLLM {result['guidellm']}" if result["guidellm"] else "") + f". Medians of {result['repeats']}.",
        table(["", "target", "ours", "met", "GuideLLM", "times better"], figures),
        "Each run. The server's lateness is how long after it was due a token left: what the client is measured "
        "against is when tokens really left.",
        table(["tool", "case", "ok", "failed", "level, s", "client CPU, s", "server CPU, s", "server late p50, ms",
               "p99, ms", "other, cores"], cases),
        "    " + result["command"]]) + "\n"


def main():
    args = parse_args()
    # 1,000 streams need as many open files, here, in the server and in every client.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    runs = []
    for name in args.only:
        tools = [OURS] * args.repeats
        if args.guidellm and CASES[name]["theirs"]:
            tools += [THEIRS] * args.guidellm_repeats
        for tool in tools:
            try:
                run = run_quietly(args, tool, name)
            except RuntimeError as error:
                sys.exit(f"error: {error}")
            runs.append({"tool": tool, "case": name, **run})
            shown = {key: number(run[key]) for _, case, key, *_ in FIGURES if case == name and run.get(key) is not None}
            log_line(f"{name}, {tool}: {shown} | server late p99 {run['mock_late_p99_ms']} ms, other {run['other']:.2f}")
    flags = [re.sub(r"[^ =]*/", "", part) for part in sys.argv[1:]]  # without this machine's folders
    guidellm = output_of(args.guidellm.resolve(), "--version").split()[-1] if args.guidellm else None
    result = {"date": datetime.date.today().isoformat(), "machine": machine(),
              "commit": output_of("git", "rev-parse", "--short", "HEAD"), "client": args.client.name,
              "guidellm": guidellm, "repeats": args.repeats,
              "command": " ".join(["benches/load_generator.py", *flags]), "summary": summarise(runs), "runs": runs}
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"{result['date']}-{args.label}"
    Path(f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    Path(f"{stem}.md").write_text(text := markdown(result))
    print(text)


if __name__ == "__main__":
    main()
