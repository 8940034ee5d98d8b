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
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from common import (
    RANDOM_MODELS,
    add_options,
    checkpoint,
    close,
    machine_card,
    one_line,
    parse,
    positive,
    print_card,
)

TEXTS = (
    "Hello.",
    "The old house has a door.",
    "Nobody went in before the morning came. Then they all did.",
    "The train is late. We may as well sit down and wait for it. Tea would be welcome.",
)
SAMPLE_BYTES = 2


@contextlib.contextmanager
def server(model: str, precision: str, args: argparse.Namespace) -> Iterator[int]:
    """The port of a server in a process of its own."""
    options = ["--port", "0", "--max-batch", str(args.max_batch), "--queue", "1000"]
    options += ["--device", args.device, "--precision", precision]
    options += ["--threads", str(args.threads)] if args.threads else []
    command = [sys.executable, "-m", "minibark", "serve", "--model", model, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = ""
        for line in process.stderr:
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
    return first_s, n_bytes / SAMPLE_BYTES / rate


def measure(port: int, listeners: int, args: argparse.Namespace) -> dict[str, Any]:
    """The same texts, each with its seed, whoever of the listeners takes which; once a round."""
    todo: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for seed in range(args.texts * args.repeats):
        body = {"input": TEXTS[seed % len(TEXTS)], "seed": seed, "response_format": "pcm"}
        if args.model in RANDOM_MODELS:
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
    median, p99 = np.percentile(firsts, [50, 99])
    return {
        "listeners": listeners,
        "requests": len(heard),
        "first_sound_s": {"median": float(median), "p99": float(p99)},
        "audio_s": sum(sound),
        "wall_s": wall_s,
        "audio_per_s": sum(sound) / wall_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time a server of its own under several numbers of listeners.",
        epilog="x first: seconds of sound a second over those of the first number of listeners. "
        "The last line is JSON.",
    )
    names = "model precision device threads repeats warmup seed json"
    add_options(parser, names, model="tiny", repeats=1)
    counts = {"type": positive, "nargs": "+", "default": [1, 4, 16], "metavar": "N"}
    parser.add_argument("--listeners", **counts, help="at once (1 4 16)")
    parser.add_argument("--texts", type=positive, default=32, metavar="N", help="requests (32)")
    parser.add_argument("--max-batch", type=positive, default=8, metavar="N", help="rows (8)")
    longest = {"type": float, "default": 2.0, "metavar": "S"}
    parser.add_argument("--longest-s", **longest, help="of pieces of random weights (2)")
    args = parse(parser)
    card = machine_card(torch.device(args.device))
    print_card(card)
    heads = f"{'sound':>9}{'seconds':>9}{'first':>9}{'99 %':>9}{'sound/s':>9}{'x first':>9}"
    print(f"{'precision':<9} {'listeners':>9}{heads}")
    results: list[dict[str, Any]] = []
    with one_line("bench_serve"), checkpoint(args.model, args.seed) as model:
        for precision in args.precision:
            with server(model, precision, args) as port:
                for _ in range(args.warmup):
                    measure(port, 1, argparse.Namespace(**{**vars(args), "texts": 1, "repeats": 1}))
                rows = [measure(port, n, args) for n in args.listeners]
            for row in rows:
                gain = row["audio_per_s"] / rows[0]["audio_per_s"]
                results.append({"precision": precision, **row, "times_first": gain})
                first = row["first_sound_s"]
                print(
                    f"{precision:<9} {row['listeners']:>9}{row['audio_s']:>9.1f}"
                    f"{row['wall_s']:>9.2f}{first['median']:>9.2f}{first['p99']:>9.2f}"
                    f"{row['audio_per_s']:>9.2f}{gain:>9.2f}"
                )
    close("serve", args, card=card, results=results)


if __name__ == "__main__":
    main()
