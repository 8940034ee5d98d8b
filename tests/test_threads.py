"""One Bark under many threads, in other processes, and copied."""

import copy
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from threading import Barrier

import checkpoints as made
import numpy as np
import pytest
import torch

from minibark import Bark
from minibark.checkpoint.presets import preset
from minibark.checkpoint.voices import Voices

SHORT = {"max_duration_s": 0.4}
WAYS = [{}, {"precision": "int8"}, {"precision": "int8", "offload": True}]


@pytest.fixture(autouse=True)
def one_thread_each():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def opened(**options) -> Bark:
    return Bark.from_pretrained("tiny", device="cpu", **options)


def clip(bark: Bark, seed: int) -> np.ndarray:
    return bark.generate("Hello there.", ("male", "female", None)[seed % 3], seed=seed, **SHORT)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_cold_and_warm_each_clip_is_what_it_is_alone(options):
    own = opened(**options)
    alone = [clip(own, seed) for seed in range(4)]
    for _ in range(1):
        bark, gate = opened(**options), Barrier(4)

        def work(seed: int, bark: Bark = bark, gate: Barrier = gate) -> np.ndarray:
            if seed < 4:
                gate.wait()
            return clip(bark, seed % 4)

        with ThreadPoolExecutor(4) as pool:
            clips = list(pool.map(work, range(8)))
        for seed, audio in enumerate(clips):
            assert np.array_equal(audio, alone[seed % 4]), seed


def test_random_weights_are_those_of_the_seed_whoever_builds_them():
    config = preset("random")
    alone = Bark(config, device="cpu", seed=5)
    expected = {stage: alone.model(stage).state_dict() for stage in ("semantic", "coarse", "fine")}
    shared = Bark(config, device="cpu", seed=5)
    others = [Bark(config, device="cpu", seed=seed) for seed in (6, 7)]
    jobs = [(bark, stage) for stage in expected for bark in (shared, *others)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda job: job[0].model(job[1]), jobs))
    for stage, state in expected.items():
        for name, tensor in state.items():
            assert tensor.equal(shared.model(stage).state_dict()[name])


def test_a_stage_is_built_once(monkeypatch):
    from minibark import fast

    built, build = [], fast.build
    monkeypatch.setattr(fast, "build", lambda *args: built.append(args[0]) or build(*args))
    bark, gate = opened(), Barrier(4)

    def load(_: int) -> int:
        gate.wait()
        return id(bark.model("codec"))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(load, range(4)))) == 1
    assert built == ["codec"]


def test_first_calls_of_suno_functions_open_one_model(tmp_path):
    (tmp_path / "suno").mkdir()
    made.save_suno(tmp_path / "suno" / "bark_v0")
    code = """
import sys, threading, torch
from concurrent.futures import ThreadPoolExecutor
torch.set_num_threads(1)
import minibark.suno as suno
suno.Bark.from_pretrained, opened = None, suno.Bark.from_pretrained
calls = []
suno.Bark.from_pretrained = lambda *a, **k: calls.append(a) or opened(*a, **k)
gate = threading.Barrier(4)
def first(_):
    gate.wait()
    return id(suno.load_codec_model(use_gpu=False))
with ThreadPoolExecutor(4) as pool:
    print(len(set(pool.map(first, range(4)))), len(calls))
"""
    done = made.run_python(
        code, XDG_CACHE_HOME=str(tmp_path), SUNO_USE_SMALL_MODELS="1", HF_HUB_OFFLINE="1"
    )
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_int8_warns_of_nothing_and_leaves_the_filters_alone():
    code = """
import warnings
from minibark import Bark
bark = Bark.from_pretrained("tiny", device="cpu", precision="int8")
bark.model("fine")
before = list(warnings.filters)
bark.generate("Hi.", seed=0, max_duration_s=0.2)
assert warnings.filters == before
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


# ---- in other processes, and copied ----


def test_a_bark_pickles_as_how_it_was_opened():
    bark = opened(precision="int8", offload=True)
    expected = clip(bark, 1)
    data = pickle.dumps(bark)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert (again.precision, again.pipeline.offload, again.normalize) == ("int8", True, "plain")
    assert np.array_equal(clip(again, 1), expected)
    other = copy.deepcopy(bark)
    assert other.pipeline is not bark.pipeline and np.array_equal(clip(other, 1), expected)


def test_a_bark_from_directories_pickles_with_them(tmp_path, monkeypatch):
    hf = made.save_hf(made.tiny_bark(), tmp_path / "hf")
    voices = {"v2/en_speaker_0": made.random_voice(made.TINY.generation)}
    made.save_hf_voices(hf, voices)
    monkeypatch.chdir(tmp_path)
    bark = Bark.from_pretrained("hf", device="cpu", stages={"coarse": "hf"})
    data = pickle.dumps(bark)
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    options = {"seed": 0, "max_coarse_history": 8}
    for one in (bark, again):
        one.load_voice("v2/en_speaker_0")
    ids = [1, 2, 3]
    assert again.text_to_semantic(ids, seed=0).equal(bark.text_to_semantic(ids, seed=0))
    semantic = bark.text_to_semantic(ids, seed=0)
    assert again.semantic_to_coarse(semantic, **options).equal(
        bark.semantic_to_coarse(semantic, **options)
    )


def test_a_bark_with_random_weights_pickles_as_its_seed(tmp_path):
    made.random_voice(made.TINY.generation).save(tmp_path / "a.npz")
    voices = Voices.from_directory(tmp_path)
    bark = Bark(made.TINY, voices=voices, device="cpu", seed=4)
    again = pickle.loads(pickle.dumps(bark))
    assert list(again.voices) == ["a"]
    for stage in ("semantic", "coarse", "fine", "codec"):
        ours, theirs = bark.model(stage).state_dict(), again.model(stage).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def _in_worker(bark: Bark) -> np.ndarray:
    torch.set_num_threads(1)
    return clip(bark, 2)


def test_a_spawned_worker_gets_one():
    bark = opened()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert np.array_equal(pool.submit(_in_worker, bark).result(), clip(bark, 2))
