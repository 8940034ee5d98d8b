"""`minibark batch --ray` on a Ray of two workers on this machine: the clips of one machine.

`make test-cluster` runs these.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import killed_jobs
import pytest

import minibark
from minibark.speech.bulk import run
from minibark.speech.cluster import Crew, connected, crew, leave, ray_package
from minibark.speech.cluster_job import ClusterJob

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::UserWarning")]
WORDS = "a hut on the hill and no one in it".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return killed_jobs.save_model(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def bark(model):
    return minibark.Bark.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def address():
    """Where a Ray with room for two workers is, while tests run."""
    if not importlib.util.find_spec("ray"):
        pytest.skip("ray is not installed; make test-cluster installs it")
    with connected("local", 2, 1):
        import ray

        yield ray.get_runtime_context().gcs_address


def write(path, n, *more):
    """A manifest of n lines, and others as they are."""
    lines = [{"id": f"c{i}", "text": " ".join(WORDS[: 1 + i % 8])} for i in range(n)]
    lines[0] |= {"voice": "made", "seed": 5}
    lines[1] |= {"temperature": 1.2, "top_k": 9}
    lines[2] |= {"text": "A hut on the hill. No one was in it. We went in slowly."}
    path.write_text("".join(f"{line}\n" for line in [*map(json.dumps, lines), *more]))
    return path


def cluster_job(bark, manifest, out, **settings):
    opened = partial(minibark.Bark.from_pretrained, bark.checkpoint().name, device="cpu")
    return ClusterJob(bark, manifest, out, crew=Crew(2, 1, False), opened=opened, **settings)


def assert_same(out, alone):
    """The same files, to the byte but for the wall time of a record."""
    assert set(os.listdir(out)) == set(os.listdir(alone))
    for path in Path(alone).iterdir():
        found, expected = (out / path.name).read_bytes(), path.read_bytes()
        if path.suffix == ".json":
            found, expected = json.loads(found), json.loads(expected)
            found.pop("wall_s"), expected.pop("wall_s")
        assert found == expected, path.name


def batch(address, *words):
    """The command, in a process of its own that joins the cluster as people do."""
    return subprocess.Popen(
        [sys.executable, "-m", "minibark", "batch", *map(str, words), "--ray", address],
        env=os.environ | {"RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_crew_has_room(address):
    assert crew(None, None, 1) == Crew(2, 1, False)
    assert crew("cpu", None, None) == Crew(1, 2, False)
    assert crew("cpu", 2, None) == Crew(2, 1, False)
    assert crew("cpu", 9, 2) == Crew(9, 2, False)
    for device, cores, words in (("cpu", 3, "3 cores"), ("cuda", 1, "1 core and a GPU")):
        with pytest.raises(ValueError, match=f"has room for a worker of {words}"):
            crew(device, None, cores)


def test_the_command_makes_what_one_machine_makes_and_then_nothing(address, bark, model, tmp_path):
    manifest = write(tmp_path / "m", 24, "bad", '{"id": "x/y", "text": "a"}')
    alone, out = tmp_path / "alone", tmp_path / "out"
    summary = run(bark, manifest, alone, model=str(model), shard=(1, 2))
    words = [manifest, out, "--model", model, "--cores-per-worker", 1, "--shard", "1/2"]
    for n_made in (summary.n_made, 0):
        before = killed_jobs.clips(out) if not n_made else {}
        with batch(address, *words) as process:
            said, told = process.communicate()
        lines = told.splitlines()
        assert process.returncode == 1 and said == ""
        assert lines[-1].startswith(f"minibark: {summary.n_bad} line")
        assert lines[-2].startswith(f"{out}: {n_made} clips made")
        assert all("clips/s" in line for line in lines[:-2] if line), told
        assert_same(out, alone)
        assert before.items() <= killed_jobs.clips(out).items()


def processes_of_workers():
    """Numbers of the processes that have an actor of a job."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_the_lines_of_a_killed_worker_are_made_again(address, bark, tmp_path):
    manifest = write(tmp_path / "m", 64)
    run(bark, manifest, tmp_path / "alone", rows=2)
    out, told, killed = tmp_path / "out", [], 0
    with cluster_job(bark, manifest, out, rows=2) as job:
        for made in job.run():
            told.append(made["id"])
            if len(told) == 5:
                killed = processes_of_workers()[0]
                os.kill(killed, signal.SIGKILL)
        assert job.summary.n_made == 64 == len(set(told)) == len(told)
        assert job.summary.n_bad == 0 and killed
    assert_same(out, tmp_path / "alone")
    killed_jobs.assert_complete(out, told)


def opened_with_poison(model, ids):
    """A Bark that ends its process when it is to say some text."""
    bark = minibark.Bark.from_pretrained(model, device="cpu")
    speak = bark.pipeline.speak

    def deadly(rows, *others):
        if any(row.ids.tolist() == ids for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        return speak(rows, *others)

    bark.pipeline.speak = deadly
    return bark


@pytest.mark.torture
def test_a_line_that_ends_every_worker_is_told_and_costs_no_other(address, bark, tmp_path):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    manifest = write(tmp_path / "m", 12, '{"id": "bad", "text": "quay"}')
    opened = partial(opened_with_poison, bark.checkpoint().name, bark.tokenizer.encode("quay"))
    out = tmp_path / "out"
    with ClusterJob(bark, manifest, out, crew=Crew(2, 1, False), opened=opened) as job:
        made = list(job.run())
    assert job.summary.n_made == 12 and len(made) == 13
    (told,) = map(json.loads, (out / "errors.jsonl").read_text().splitlines())
    assert (told["line"], told["id"]) == (13, "bad")
    assert told["reason"].startswith("its workers were lost again and again (killed")
    run(bark, manifest, tmp_path / "alone")
    for path in out.glob("*.wav"):
        assert path.read_bytes() == (tmp_path / "alone" / path.name).read_bytes()


def test_ctrl_c_tells_how_far_it_came_and_leaves_nothing(address, model, tmp_path):
    manifest, out = write(tmp_path / "m", 400), tmp_path / "out"
    words = [manifest, out, "--model", model, "--cores-per-worker", 1, "--rows", 1]
    with batch(address, *words) as process:
        deadline = time.monotonic() + 60
        while not list(out.glob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    made = killed_jobs.clips(out)
    assert process.returncode == 1 and 1 <= len(made) < 400
    assert f"interrupted; {len(made)} clip" in told.splitlines()[-1] and "Traceback" not in told
    assert not list(out.glob(".*.part")) and len(list(out.glob("*.wav"))) == len(made)


def test_a_worker_that_cannot_open_the_model_ends_the_job(address, bark, tmp_path):
    manifest = write(tmp_path / "m", 4)
    gone = partial(minibark.Bark.from_pretrained, "./gone", device="cpu")
    job = ClusterJob(bark, manifest, tmp_path / "out", crew=Crew(1, 1, False), opened=gone)
    with job, pytest.raises(ValueError, match=r"cannot make clips: no model './gone'"):
        list(job.run())


def test_threads_of_ray_data_end_before_ray(tmp_path):
    """A thread that asks Ray for something after its end ends this process without a word."""
    ray, rows, begun = ray_package(), [], threading.Event()
    leave()

    def read():
        slow = ray.data.range(2).map_batches(lambda batch: time.sleep(1) or batch, batch_size=1)
        for row in slow.iter_rows():
            rows.append(row)
            begun.set()

    with connected("local", 1, 1):
        thread = threading.Thread(target=read)
        thread.start()
        assert begun.wait(60)
    thread.join(1)
    assert rows == [{"id": 0}, {"id": 1}]
    with pytest.raises(ray.exceptions.RaySystemError):  # rather than that another Ray starts
        ray.put(1)
