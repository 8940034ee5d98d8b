"""A live server against 5,000 odd bodies and 200 connections that are dropped at random moments.

    python tests/torture/serve.py [--bodies N] [--drops N] [--processes N]

No body may bring anything but sound or a named error; afterwards no request runs, no file
descriptor is left and memory is within 5 % of what it was once long texts had been heard to their
end: what a server in use holds, since allocator and operators keep what the longest rows took.
Prints the figures, and memory on the way, where a slow leak would show.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import Server, serving

SENTENCE = "I go on and on, whatever you may say to me. "
NAMES = (
    *("input", "voice", "response_format", "speed", "stream_format", "speaker", "temperature"),
    *("seed", "top_k", "top_p", "min_eos_p", "history", "silence_s", "retries", "language"),
    *("model", "instructions", "normalize", "max_duration_s", "goal", "sliding_window_len"),
)
VALUES = (
    *(None, True, False, 0, -1, 1, 2**63, -(2**70), 0.5, 1e308, "", " ", "x", "\x00", "\ud800"),
    *("\u202e", "mp3", "aac", "sse", "/etc/passwd", "..", [], {}, [[]], {"id": 1}, {"": ""}),
    *({"id": "female"}, {"Ann": "male"}, "[pause:1s]", "[pause:1000s]", "\n", "{}", "none"),
)


def odd_bodies(source, n):
    """Bodies that are no JSON, lack words or have a bad value; a changed byte may make words."""
    for _ in range(n):
        body = {source.choice(NAMES): source.choice(VALUES) for _ in range(source.randint(0, 5))}
        kind = source.randrange(5)
        if kind == 0:  # an unknown key
            body[source.choice(("inputs", "Voice", "", "seed ", "__class__"))] = 1
        elif kind == 1:  # words, and a value that no field has
            body |= {"input": "Hi.", source.choice(NAMES[1:]): [["bad"]]}
        else:
            body["input"] = source.choice((None, "", "  ", 3, [], "\ud800", "[pause:1s]", "..."))
        content = json.dumps(body).encode()
        if kind == 2:
            content = content[: source.randrange(len(content))]
        elif kind == 3:
            place = source.randrange(len(content))
            content = content[:place] + bytes([source.randrange(256)]) + content[place + 1 :]
            if b"input" in content and b'"input": "' in content:
                content += b"}"
        yield content


def status_of(server: Server, body: bytes) -> int:
    """The status of an answer; what is not sound must be an error object with a message."""
    status, _, content = server.speak(body)
    if status != 200:
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"}, (body, error)
        assert error["message"].isprintable(), (body, error)
    assert status in (200, 400, 404, 422), (body, status)
    return status


def is_idle(stats: dict) -> bool:
    """Whether no request and no row of one is left."""
    return not any(stats["queue"][name] for name in ("running", "waiting", "rows", "rows_waiting"))


def figures(server: Server) -> tuple[int, float]:
    """Open files, and resident memory in MB, of the server and its processes."""
    own = server.process.pid
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    for thread in Path(f"/proc/{own}/task").iterdir():  # whichever thread began them
        children += (thread / "children").read_text().split()
    n_files = pages = 0
    for number in {str(own), *children}:
        n_files += len(os.listdir(f"/proc/{number}/fd"))
        pages += int(Path(f"/proc/{number}/statm").read_text().split()[1])
    return n_files, pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def drop(server: Server, source: random.Random) -> None:
    """Ask for a long text, hear some of it, and go."""
    text = SENTENCE * source.randint(1, 8)
    asked = {"input": text, "voice": "female", "response_format": source.choice(("pcm", "mp3"))}
    with server.open(json.dumps(asked).encode()) as connection:
        connection.settimeout(source.uniform(0.01, 1.5))
        try:
            while connection.recv(65536):
                if source.random() < 0.2:
                    break
        except TimeoutError:
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bodies", type=int, default=5000)
    parser.add_argument("--drops", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    source = random.Random(0)
    with serving("--queue", "4", "--processes", str(args.processes)) as server:
        for audio_format in ("pcm", "mp3", "opus", "flac") * args.processes:
            whole = {"input": SENTENCE * 8, "voice": "female", "response_format": audio_format}
            assert server.speak(whole)[0] == 200
        for _ in range(20):
            drop(server, source)
        idle = server.until(is_idle)
        files, memory = figures(server)
        statuses: Counter[int] = Counter()
        for body in odd_bodies(source, args.bodies):
            statuses[status_of(server, body)] += 1
        print(f"{args.bodies} odd bodies: {dict(statuses)}")
        on_the_way = []
        for number in range(args.drops):
            drop(server, source)
            if number % 40 == 39:
                on_the_way.append(round(figures(server)[1]))
        begin = time.monotonic()
        idle = server.until(is_idle)
        waited_s = time.monotonic() - begin
        time.sleep(1)
        files_after, memory_after = figures(server)
        print(f"{args.drops} dropped: {idle['requests']}; idle after {waited_s:.2f} s")
        print(f"files {files} -> {files_after}, memory {memory:.0f} -> {memory_after:.0f} MB")
        print(f"memory after every 40 drops: {on_the_way}")
        assert files_after <= files
        assert memory_after <= 1.05 * memory
        assert server.end() == 0


if __name__ == "__main__":
    main()
