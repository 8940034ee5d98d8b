"""A pipeline over several processes: real ones, which are spoken to, killed and left."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from checkpoints import TINY, random_voice
from serving import serving

from minibark import Bark, Options
from minibark.pipeline import Row
from minibark.speech import processes
from minibark.speech.child import LostError
from minibark.speech.processes import ProcessPipeline
from minibark.speech.shared import ClosedError

VOICE = random_voice(TINY.generation, 8, seed=1)
SHORT = Options(max_duration_s=0.2, allow_early_stop=False)


@pytest.fixture(scope="module")
def bark():
    return Bark(TINY, device="cpu", seed=3)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def others():
    """The processes that other tests' fixtures have begun and keep."""
    return set(children())


@pytest.fixture(scope="module")
def pipeline(bark, told, others):
    with ProcessPipeline(bark, 2, 4, told.append) as pipeline:
        yield pipeline


def row(seed, voice=None):
    ids = torch.tensor(Random(seed).choices(range(150), k=5))
    return Row(ids, voice, torch.Generator().manual_seed(seed))


def assert_same(one, other):
    for part in ("semantic", "coarse", "fine"):
        assert torch.equal(getattr(one, part), getattr(other, part)), part


def children(parent=None):
    """Numbers of the processes that another has begun, and that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, _, rest = path.read_text().partition(" (")
            state, of = rest.rpartition(") ")[2].split()[:2]
            if int(of) == (parent or os.getpid()) and state != "Z":
                found.append(int(number))
    return found


def test_many_threads_get_what_each_gets_alone(bark, pipeline):
    rows = [lambda seed=seed: row(seed, VOICE if seed % 3 else None) for seed in range(12)]
    expected = [bark.pipeline.speak([make()], SHORT)[0] for make in rows]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda make: pipeline.speak([make()], SHORT)[0], rows))
    for one, other in zip(made, expected, strict=True):
        assert_same(one, other)
        assert np.array_equal(pipeline.decode(one.fine), bark.pipeline.decode(other.fine))
    assert pipeline.n_live == 0


@pytest.mark.parametrize("whose", ["one for both", "torch's own"])
def test_streams_go_on_where_they_would(bark, pipeline, whose):
    def rows(generator):
        return [Row(row(seed).ids, None, generator) for seed in (1, 2)]

    left = []
    for one in (bark.pipeline, pipeline):
        torch.manual_seed(5)
        generator = torch.Generator().manual_seed(4) if whose == "one for both" else None
        # One after the other, as a batch has them whose rows share a stream.
        made = [one.speak([each], SHORT)[0] for each in rows(generator)]
        left.append((made, (generator or torch.default_generator).get_state()))
    for made, expected in zip(left[1][0], left[0][0], strict=True):
        assert_same(made, expected)
    assert torch.equal(left[0][1], left[1][1])


def test_calls_that_share_a_stream_follow_one_another(pipeline):
    ids = row(1).ids
    for generator in (None, torch.Generator().manual_seed(2)):
        barrier = threading.Barrier(4)

        def speak(_, generator=generator, barrier=barrier):
            barrier.wait()
            return pipeline.speak([Row(ids, None, generator)], SHORT)[0].fine.numpy().tobytes()

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(speak, range(4)))) == 4


def test_who_listens_is_told_and_may_leave(pipeline):
    told = []
    pipeline.speak([row(1)], SHORT, lambda *step: told.append(step))
    assert {stage for stage, _, _ in told} == {"semantic", "coarse", "fine"}

    def leave(*step):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        pipeline.speak([row(2)], SHORT, leave)
    assert pipeline.n_live == 0
    pipeline.speak([row(3)], SHORT)


def test_errors_are_those_of_the_model(pipeline):
    with pytest.raises(ValueError, match="sliding_window_len"):
        pipeline.speak([row(1)], Options(sliding_window_len=10**6))
    with pytest.raises(ValueError, match="codes must be in") as told:
        pipeline.decode(torch.full((TINY.codec.n_codebooks, 4), 10**6))
    assert "In a process of the model" in told.value.__notes__[0] and "_latent" in str(
        told.value.__notes__
    )
    with pytest.raises(TypeError):  # what cannot be handed over at all
        pipeline._ask("speak", 1, (threading.Lock(),), None)
    assert pipeline.n_live == 0


def test_a_process_that_is_killed_loses_its_rows_and_is_replaced(pipeline, told, others):
    before, begun = set(children()) - others, threading.Event()
    long = Options(max_duration_s=0.3, allow_early_stop=False)

    def speak(seed):
        with contextlib.suppress(LostError):
            while not begun.is_set():
                pipeline.speak([row(seed)], long, lambda *step: None)
            return True
        return False

    victims = [child for child in before if "spawn_main" in command(child)]
    assert len(victims) == 2
    with ThreadPoolExecutor(4) as pool:
        spoken = [pool.submit(speak, seed) for seed in range(4)]
        time.sleep(0.3)
        os.kill(victims[0], signal.SIGKILL)
        while not told:
            time.sleep(0.01)
        begun.set()
        assert False in [one.result(30) for one in spoken]
    deadline = time.monotonic() + 60
    while len(pipeline._workers) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    alive = set(children()) - others
    assert len([child for child in alive if "spawn_main" in command(child)]) == 2
    assert told == ["a process of the model has ended (killed, or out of memory); another begins"]
    told.clear()
    pipeline.speak([row(1)], SHORT), pipeline.speak([row(2)], SHORT)


class Fickle(Bark):
    """Cannot be opened for a time: where a file of that name is."""

    place = ""

    def __getstate__(self):
        return super().__getstate__() | {"place": self.place}

    def __setstate__(self, state):
        if os.path.exists(state.pop("place")):
            raise ValueError("not now")
        super().__setstate__(state)


def test_a_process_that_cannot_begin_again_is_tried_again(tmp_path, monkeypatch):
    bark, told = Fickle(TINY, device="cpu", seed=3), []
    bark.place = str(tmp_path / "flag")
    monkeypatch.setattr(processes, "_PAUSE_S", 0.2)
    before = set(children())
    with ProcessPipeline(bark, 1, 2, told.append) as pipeline:
        Path(bark.place).touch()
        (victim,) = [one for one in set(children()) - before if "spawn_main" in command(one)]
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while len(told) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert told[1] == "a process of the model could not begin: not now; it is tried again"
        assert not pipeline.is_able
        with pytest.raises(LostError, match=r"tried again|ended"):
            pipeline.speak([row(1)], SHORT)
        Path(bark.place).unlink()
        while not pipeline.is_able:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(pipeline.speak([row(1)], SHORT)) == 1


def test_a_process_that_ends_as_it_begins_takes_no_rows(bark, monkeypatch):
    real, started = processes._check, []

    class Recorded(processes.Child):
        def __init__(self, *args):
            super().__init__(*args)
            started.append(self)

    def check(error):
        for child in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child._process.pid, signal.SIGKILL)
            while not child.is_over:
                time.sleep(0.01)
        real(error)

    monkeypatch.setattr(processes, "Child", Recorded)
    monkeypatch.setattr(processes, "_check", check)
    with pytest.raises(RuntimeError, match="ended at once"):
        ProcessPipeline(bark, 1, 1)
    assert started[0]._process.exitcode == -signal.SIGKILL


def test_a_process_that_is_stopped_is_ended_too(bark, monkeypatch):
    monkeypatch.setattr(processes, "END_S", 0.5)
    before = set(children())
    pipeline = ProcessPipeline(bark, 1, 2)
    (child,) = [one for one in set(children()) - before if "spawn_main" in command(one)]
    os.kill(child, signal.SIGSTOP)
    codes = torch.zeros(TINY.codec.n_codebooks, 20_000, dtype=torch.int64)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(pipeline.decode, codes) for _ in range(3)]
        time.sleep(0.5)
        pipeline.close(finish=False)
        for one in waiting:
            with pytest.raises(ClosedError, match="has been closed"):
                one.result(20)
    assert not command(child)


def test_a_process_too_many_ends_those_before_it(bark, monkeypatch):
    real, started = processes.Child, []

    def child(*args):
        if started:
            raise OSError(11, "no room")
        started.append(real(*args))
        return started[0]

    before = set(children())
    monkeypatch.setattr(processes, "Child", child)
    with pytest.raises(OSError, match="no room"):
        ProcessPipeline(bark, 2, 2)
    assert not [one for one in set(children()) - before if "spawn_main" in command(one)]


SCRIPT = """
import sys
from minibark import Bark, Options
from minibark.speech.processes import ProcessPipeline
if __name__ == "__main__":
    bark = Bark.from_pretrained("tiny", device="cpu")
    pipeline = ProcessPipeline(bark, 2, 2, print)
    print("begun")
"""


def test_a_script_that_forgets_to_close_ends_quietly(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "begun\n", "")


def test_a_script_without_a_guard_is_told_where_to_look(tmp_path):
    script = SCRIPT.replace('if __name__ == "__main__":', "if True:")
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "Safe importing of main module" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.endswith("it ended with status 1; what it wrote is above"), last


def command(process):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""


def test_after_its_end_nothing_is_taken_and_nobody_is_left(bark):
    before = set(children())
    pipeline = ProcessPipeline(bark, 1, 2)
    assert len([child for child in set(children()) - before if "spawn_main" in command(child)]) == 1
    with ThreadPoolExecutor(1) as pool:
        spoken = pool.submit(pipeline.speak, [row(1)], SHORT)
        while not pipeline.n_live and not spoken.done():
            time.sleep(0.001)
        pipeline.close()
        assert len(spoken.result(30)) == 1
    with pytest.raises(ClosedError):
        pipeline.speak([row(1)], SHORT)
    assert not [child for child in set(children()) - before if "spawn_main" in command(child)]
    pipeline.close()


class Shy(Bark):
    """Cannot be opened again."""

    def __setstate__(self, state):
        raise ValueError("not here")


class OddError(Exception):
    """Cannot be made again of what it says."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


class Odd(Bark):
    def __setstate__(self, state):
        raise OddError("this", "that")


class Closed(Bark):
    def __getstate__(self):
        raise TypeError("cannot be handed over")


class Dying(Bark):
    def __setstate__(self, state):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.thinned
@pytest.mark.parametrize(
    ("kind", "why"),
    [(Odd, "this and that"), (Closed, "cannot be handed over"), (Dying, "it was killed")],
)
def test_whatever_goes_wrong_is_told(kind, why):
    with pytest.raises(RuntimeError, match=f"a process of the model could not begin: .*{why}"):
        ProcessPipeline(kind(TINY, device="cpu"), 2, 1)
    assert not [child for child in children() if kind.__name__ in command(child)]


def test_what_cannot_begin_says_why(bark):
    with pytest.raises(RuntimeError, match=r"could not begin: .*not here"):
        ProcessPipeline(Shy(TINY, device="cpu"), 1, 1)
    for n, most in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be a positive whole number"):
            ProcessPipeline(bark, n, most)
    with pytest.raises(ValueError, match="for a CPU, not for meta"):
        ProcessPipeline(Bark(TINY, device="meta"), 2, 1)


def test_a_bark_with_processes_can_be_pickled_still(bark, pipeline):
    other = pickle.loads(pickle.dumps(bark))
    other.pipeline = pipeline
    assert pickle.loads(pickle.dumps(other)).config == bark.config


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_group_s_signal_lets_a_server_finish(end):
    """As a terminal or a service manager sends it: to the server and its processes."""
    body = {"input": "Hello there, my good old friend.", "seed": 3, "response_format": "pcm"}
    with serving("--processes", "2") as server, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(server.speak, body) for _ in range(3)]
        server.until(lambda stats: stats["queue"]["rows"] == 3)
        for one in [*children(server.process.pid), server.process.pid]:
            os.kill(one, end)
        assert [one.result(60)[0] for one in asked] == [200] * 3
        assert server.process.wait(60) == 0
    assert not any("has ended" in line for line in server.said)


@pytest.mark.thinned
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_server_of_two_processes(end):
    body = {"input": "Hello there.", "seed": 3, "max_duration_s": 0.3, "response_format": "pcm"}
    with serving("--processes", "2") as server:
        expected = Bark.from_pretrained("tiny", device="cpu").generate(
            body["input"], seed=3, max_duration_s=0.3
        )
        expected = np.rint(np.clip(expected, -1, 1).astype(np.float64) * 32767).astype("<i2")
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(server.speak, [body] * 4))
        assert all(status == 200 for status, _, _ in answers)
        assert all(np.array_equal(np.frombuffer(one, "<i2"), expected) for _, _, one in answers)
        assert server.stats()["queue"]["rows"] == 0
        parts = children(server.process.pid)
        assert len([part for part in parts if "spawn_main" in command(part)]) == 2
        server.process.send_signal(end)
        assert server.process.wait(60) == (-signal.SIGKILL if end == signal.SIGKILL else 0)
        deadline = time.monotonic() + 20
        while left := [part for part in parts if command(part)]:
            assert time.monotonic() < deadline, list(map(command, left))
            time.sleep(0.05)
