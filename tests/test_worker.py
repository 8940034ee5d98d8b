"""A worker of a cluster by itself, without Ray: what it is handed, writes and tells."""

import dataclasses
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import killed_jobs
import pytest

import minibark
from minibark.commands.main import main
from minibark.speech.bulk import Job, run
from minibark.speech.folder import FolderError
from minibark.speech.roll import Roll
from minibark.speech.worker import Orders, Worker, orders_of

SHORT = {"max_duration_s": 0.1}
LINES = {
    "one": {"text": "a hut", "seed": 1, "voice": "made"},
    "two": {"text": "on the hill", "temperature": 1.3, "top_k": 7, **SHORT},
    "six": {"text": "on the hill", "min_eos_p": None, "allow_early_stop": False, **SHORT},
    "long": {"text": "A hut on the hill. No one was in it.", "retries": 0, "silence_s": 0.3},
}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return killed_jobs.save_model(tmp_path_factory.mktemp("worker"))


@pytest.fixture(scope="module")
def bark(model):
    return minibark.Bark.from_pretrained(model, device="cpu")


@pytest.fixture
def job(bark, tmp_path):
    """A job that nobody works at yet, a roll in its folder, and the orders of its workers."""
    lines = [json.dumps({"id": name, **line}) for name, line in LINES.items()]
    (tmp_path / "m").write_text("\n".join(lines))
    with Job(bark, tmp_path / "m", tmp_path / "out") as job:
        roll = Roll(tmp_path / "out")
        opened = partial(minibark.Bark.from_pretrained, bark.checkpoint().name, device="cpu")
        checksum = bark.checkpoint().checksum()
        job.orders = Orders(opened, tmp_path / "out", roll.name, ".wav", checksum, "float32")
        yield job
        roll.close()


def told(worker, chunk):
    """What a worker tells of a chunk, and that it is little."""
    rows = [row for some in worker({"chunk": [chunk]}) for row in some["told"]]
    assert all(len(row) < 4000 for row in rows)
    return [json.loads(row) for row in rows]


def test_a_worker_makes_what_one_machine_makes(job, bark, tmp_path):
    run(bark, tmp_path / "m", tmp_path / "alone")
    found = told(Worker(job.orders), orders_of(job._tasks, {}))
    records = {one["record"]["id"]: one["record"] for one in found}
    assert set(records) == set(LINES)
    for name, (_, record, _, sound) in killed_jobs.clips(tmp_path / "out").items():
        alone = json.loads((tmp_path / "alone" / f"{name}.json").read_text())
        assert json.loads(record) == records[name] == {**alone, "wall_s": records[name]["wall_s"]}
        assert sound == (tmp_path / "alone" / f"{name}.wav").read_bytes()


def test_what_a_lost_worker_has_made_is_told_and_not_made_again(job, tmp_path):
    worker = Worker(job.orders)
    first = told(worker, orders_of(job._tasks[:2], {}))
    before = killed_jobs.clips(tmp_path / "out")
    # Not of these orders, as after a change with --again: that one is made.
    path = tmp_path / "out" / "two.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "text": "other"}))
    again = told(Worker(job.orders), orders_of(job._tasks[:3], {}))
    after = killed_jobs.clips(tmp_path / "out")
    assert before["one"] == after["one"] and set(after) == {"one", "two", "six"}
    assert json.loads(after["two"][1])["text"] == "on the hill"
    kept = [one for one in first if one["record"]["id"] == "one"]
    assert kept[0] in again and len(again) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "9"}, "and 9 where the job began"),
        ({"checksum": "0" * 64}, "the model's checksum is"),
        ({"precision": "bfloat16"}, "the precision is float32, and bfloat16"),
        ({"roll": ".workers-0.part"}, "all machines must see the same one under this path"),
        ({"opened": partial(minibark.Bark.from_pretrained, "./gone")}, "no model './gone'"),
    ],
)
def test_a_machine_that_is_not_like_the_first_says_so(job, change, words):
    worker = Worker(dataclasses.replace(job.orders, **change))
    (one,) = told(worker, orders_of(job._tasks, {}))
    assert words in one["trouble"] and one["worker"].endswith(f":{os.getpid()}")
    assert not list(job.orders.folder.glob("*.wav"))


def test_a_voice_that_is_another_there_is_no_clip_s(job, bark, tmp_path):
    voice = bark.load_voice("made")
    minibark.Voice(voice.semantic, voice.coarse, voice.fine.flip(1)).save(tmp_path / "v.npz")
    (one,) = told(Worker(job.orders), orders_of(job._tasks[:1], {"made": str(tmp_path / "v.npz")}))
    assert "v.npz' is" in one["trouble"]


def test_a_folder_that_cannot_be_written_is_told(job):
    worker = Worker(job.orders)
    place = job.orders.folder / "one.wav"
    place.mkdir()
    (place / "x").touch()
    (one,) = told(worker, orders_of(job._tasks[:1], {}))
    assert "cannot be written" in one["trouble"] and "what is done is kept" in one["trouble"]


def test_a_roll_is_waited_for_until_its_last_worker_is_killed(tmp_path):
    roll = Roll(tmp_path)
    begin = time.monotonic()
    roll.wait(30)
    code = (
        "import sys, time; from pathlib import Path; from minibark.speech.roll import Roll\n"
        "file = Roll.sign(Path(sys.argv[1]), sys.argv[2]); print(1, flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", code, tmp_path, roll.name]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as worker:
        worker.stdout.readline()
        now = time.monotonic()
        roll.wait(0.3)
        assert time.monotonic() - now >= 0.3
        worker.send_signal(signal.SIGKILL)
        roll.wait(30)
    assert time.monotonic() - begin < 30
    roll.close()
    assert not os.listdir(tmp_path)
    with pytest.raises(FolderError, match="must see the same one"):
        Roll.sign(tmp_path, roll.name)


# ---- addresses


def free_port():
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (None, "nothing answers at 127.0.0.1:"),
        ("no.such.host.invalid:6379", "nothing answers at no.such.host.invalid:6379"),
        ("ray://127.0.0.1:10001", "over which Ray Data does not work"),
        ("cluster", "--ray takes local, auto or HOST:PORT"),
        ("127.0.0.1:99999", "--ray takes local, auto or HOST:PORT"),
        ("", "--ray takes local, auto or HOST:PORT"),
    ],
)
def test_an_address_at_which_nobody_is_is_one_line_and_soon(address, words, tmp_path, capsys):
    (tmp_path / "m").write_text('{"id": "a", "text": "a"}')
    address = f"127.0.0.1:{free_port()}" if address is None else address
    begin = time.monotonic()
    out = tmp_path / "out"
    assert main(["batch", str(tmp_path / "m"), str(out), "--model", "tiny", "--ray", address]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minibark: ") and words in line
    assert time.monotonic() - begin < 15 and not out.exists()


def test_the_address_in_the_environment_is_auto_s_alone(monkeypatch, model, tmp_path, capsys):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    (tmp_path / "m").write_text('{"id": "a", "text": "a", "max_duration_s": 0.1}')
    words = ["batch", str(tmp_path / "m"), str(tmp_path / "out"), "--model", str(model), "-q"]
    assert main([*words, "--ray", "auto"]) == 1
    assert "nothing answers at 127.0.0.1:" in capsys.readouterr().err
    assert main(words) == 0 and (tmp_path / "out" / "a.wav").exists()


@pytest.mark.skipif(bool(importlib.util.find_spec("ray")), reason="ray is installed")
def test_without_ray_one_line_says_what_to_install(tmp_path, capsys):
    (tmp_path / "m").write_text('{"id": "a", "text": "a"}')
    words = ["batch", str(tmp_path / "m"), str(tmp_path / "out"), "--model", "tiny"]
    assert main([*words, "--ray", "local"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "minibark: --ray needs the package ray; pip install 'minibark[cluster]'"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--workers", "2"], "go with --ray"),
        (["--ray", "local", "--threads", "2"], "leave --threads out"),
        (["--ray", "local", "--workers", "0"], "not in [1, 4096]"),
    ],
)
def test_wrong_usage_exits_2(words, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["batch", "m", "out", *words])
    assert stop.value.code == 2 and expected in capsys.readouterr().err
