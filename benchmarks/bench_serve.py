"""`minibark serve` under 1, 4 and 16 listeners: time to the first sound, seconds of sound a second.

python benchmarks/bench_serve.py --model tiny
python benchmarks/bench_serve.py --model small --precision int8
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import common
import numpy as np
import torch

TEXTS = (
    "Hello.",
    "The old house has a door.",
    "Nobody went in before the morning came. Then they all did.",
    "The train is late. We may as well sit down and wait for it. Tea would be welcome.",
)


@contextlib.contextmanager
def server(model: str, precision: str, args: argparse.Namespace) -> Iterator[int]:
    """The port of a server in a process of its own."""
    options = ["--port", "0", "--max-batch", str(args.max_batch), "--queue", "1000"]
    options += ["--device", args.device, "--precision", precision, f"--processes={args.processes}"]
    options += ["--threads", str(args.threads)] if args.threads else []
    command = [sys.executable, "-m", "minibark", "serve", "--model", model, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = ""
        for line in process.stderr or ():
            said += line
            if found := re.search(r"listens on http://\S+:(\d+)/", line):
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield int(found[1])
                return
        raise ValueError(f"the server did not start: {said.strip()}")
    finally:
        process.terminate()
        process.wait()


def listen(port: int, body: dict[str, Any]) -> tuple[float, float]:
    """Seconds until the first sound came, and how much came."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with contextlib.closing(connection):
        begin = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/audio/speech", json.dumps(body), headers)
        answer = connection.getresponse()
        n_bytes = len(answer.read(1))
        first_s = time.perf_counter() - begin
        rate = int(answer.headers.get("x-sample-rate", 0))
        n_bytes += len(answer.read())
        if answer.status != 200:
            raise ValueError(f"the server answered with {answer.status}")
    return first_s, n_bytes / 2 / rate  # of 16 bits


def measure(port: int, listeners: int, args: argparse.Namespace) -> dict[str, Any]:
    """The same texts, each with its seed, whoever of the listeners takes which; once a round."""
    todo: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for seed in range(args.texts * args.repeats):
        body = {"input": TEXTS[seed % len(TEXTS)], "seed": seed, "response_format": "pcm"}
        if args.model in common.RANDOM_MODELS:
            body |= {"max_duration_s": args.longest_s, "allow_early_stop": False, "retries": 0}
        todo.put(body)
    heard: list[tuple[float, float]] = []
    failed: list[Exception] = []

    def take_turns() -> None:
        try:
            while not failed:
                heard.append(listen(port, todo.get_nowait()))
        except queue.Empty:
            pass
        except (OSError, ValueError) as error:
            failed.append(error)

    threads = [threading.Thread(target=take_turns) for _ in range(listeners)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s = time.perf_counter() - begin
    if failed:
        raise failed[0]
    firsts, sound = zip(*heard, strict=True)
    percentiles = map(float, np.percentile(firsts, [50, 99]))
    return {
        "listeners": listeners,
        "requests": len(heard),
        "first_sound_s": dict(zip(("median", "p99"), percentiles, strict=True)),
        "audio_s": sum(sound),
        "wall_s": wall_s,
        "audio_per_s": sum(sound) / wall_s,
    }


def take_picture(port: int, file: str) -> None:
    """Keep how the page looks in a headless Chromium, if there is one."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("absent: a picture of the page: no chromium; `apt-get install chromium` brings one")
        return
    options = ["--headless", "--no-sandbox", "--window-size=900,1200", f"--screenshot={file}"]
    command = [browser, *options, f"http://127.0.0.1:{port}/"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time a server of its own under several numbers of listeners.",
        epilog="x first: seconds of sound a second over those of the first number of listeners. "
        "The last line is JSON.",
    )
    names = "model precision device threads repeats warmup seed json"
    common.add_options(parser, names, model="tiny", repeats=1)
    add, count = parser.add_argument, {"type": common.positive, "metavar": "N"}
    add("--listeners", **count, nargs="+", default=[1, 4, 16], help="at once (1 4 16)")
    counts = ("--texts", 32, "requests"), ("--max-batch", 8, "rows"), ("--processes", 1, "of it")
    for name, default, what in counts:
        add(name, **count, default=default, help=f"{what} ({default})")
    add("--longest-s", type=float, default=2.0, metavar="S", help="of pieces of random weights (2)")
    add("--screenshot", metavar="FILE.png", help="keep a picture of the page")
    args = common.parse(parser)
    card = common.machine_card(torch.device(args.device))
    common.print_card(card)
    heads = f"{'sound':>9}{'seconds':>9}{'first':>9}{'99 %':>9}{'sound/s':>9}{'x first':>9}"
    print(f"{'precision':<9} {'listeners':>9}{heads}")
    results: list[dict[str, Any]] = []
    with common.one_line("bench_serve"), common.checkpoint(args.model, args.seed) as model:
        for precision in args.precision:
            with server(model, precision, args) as port:
                for _ in range(args.warmup):
                    measure(port, 1, argparse.Namespace(**{**vars(args), "texts": 1, "repeats": 1}))
                if args.screenshot:
                    take_picture(port, args.screenshot)
                rows = [measure(port, n, args) for n in args.listeners]
            for row in rows:
                gain = row["audio_per_s"] / rows[0]["audio_per_s"]
                results.append({"precision": precision, **row, "times_first": gain})
                first = row["first_sound_s"]
                numbers = row["wall_s"], first["median"], first["p99"], row["audio_per_s"], gain
                begin = f"{precision:<9} {row['listeners']:>9}{row['audio_s']:>9.1f}"
                print(begin + "".join(f"{number:>9.2f}" for number in numbers))
    common.close("serve", args, card=card, results=results)


if __name__ == "__main__":
    main()
