"""Every benchmark as a user runs it, on a tiny model and a few tokens."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_bark import random_gpt

from minibark.config import GPTConfig
from minibark.decoding import CachedDecoder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = [*sorted(path.name for path in BENCHMARKS.glob("bench_*.py")), "gpu_report.py"]
YARDSTICK = ("transformers", "float32")
STAGES = ["semantic", "coarse", "fine", "codec"]
RANDOM = ("--model", "random", "--repeats", "1")
HAS_TRITON = importlib.util.find_spec("triton") is not None
COUNTS = {"semantic": 4, "coarse": 12, "fine": 6, "codec": 6}
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")

pytestmark = pytest.mark.slow


def run(
    script: str, *options: object, path: Path | None = None, **variables: str
) -> subprocess.CompletedProcess:
    env = os.environ | variables
    if path:
        env["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [env.get("PYTHONPATH")])])
    words = [sys.executable, str(BENCHMARKS / script), *map(str, options)]
    return subprocess.run(words, capture_output=True, text=True, env=env, timeout=300)


def closing_json(done: subprocess.CompletedProcess) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_spread(values: dict[str, float]) -> None:
    assert 0 < values["min"] <= values["median"] <= values["max"]


def assert_card(card: dict[str, Any]) -> None:
    assert card["cpu"] and card["threads"] >= 1 and card["ram_bytes"] > 0
    assert card["packages"]["torch"] and card["packages"]["minibark"]


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "voice.npz"
    np.savez(
        path,
        semantic_prompt=rng.integers(0, 10_000, 40),
        coarse_prompt=(fine := rng.integers(0, 1024, (8, 60)))[:2],
        fine_prompt=fine,
    )
    return path


def test_there_are_at_most_fourteen_files() -> None:
    files = list(BENCHMARKS.glob("*.py"))
    assert len(files) <= 14
    assert sum(len(path.read_text().splitlines()) for path in files) <= 3500


@pytest.mark.thinned
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_the_options_and_the_json_line(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout and "JSON" in done.stdout


@pytest.mark.torture
def test_speed_gives_all_sides_the_same_weights_and_lengths(voice: Path) -> None:
    options = ("--semantic-tokens", 4, "--warmup", 0, "--threads", 1, "--voice", voice)
    precisions = ("--precision", "float32", "int8", "--peer-precision", "float32")
    file = voice.parent / "out.json"
    document = closing_json(
        run("bench_speed.py", *RANDOM, *options, *precisions, "--memory", "--json", file)
    )
    assert json.loads(file.read_text()) == document
    assert_card(document["card"])
    assert document["card"]["threads"] == 1
    results = {(r["side"], r["precision"]): r for r in document["results"]}
    missing = {(a["side"], a["precision"]) for a in document["absent"]}
    expected = {(side, "float32") for side in ("minibark", "suno", "transformers")}
    assert set(results) | missing == expected | {("minibark", "int8")}
    assert document["same_weights"] is (True if len(results) > 2 else None)
    assert list(document["check"]) == STAGES
    for result in results.values():
        assert {name: figures["tokens"] for name, figures in result["stages"].items()} == COUNTS
        for figures in result["stages"].values():
            assert_spread(figures["seconds"])
            assert figures["tokens_per_s"] > 0
        assert_spread(result["total_s"])
        assert result["rtf"]["median"] == pytest.approx(result["total_s"]["median"] * 75 / 6)
        assert result["peak_rss_bytes"] > 1e8 and result["peak_gpu_bytes"] is None
    ours = results["minibark", "float32"]
    assert ours["total_ratio_to_minibark"]["of_medians"] == 1
    assert "int8" in results["minibark", "int8"]["path"]
    if YARDSTICK in results:
        theirs = results[YARDSTICK]["total_s"]["median"]
        for result in results.values():
            times = theirs / result["total_s"]["median"]
            assert result["speedup"]["of_medians"] == pytest.approx(times)


def test_speed_names_a_side_that_cannot_take_part(tmp_path: Path) -> None:
    broken = tmp_path / "bark" / "__init__.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('no such package')\n")
    sides = ("--sides", "minibark,suno,minibark-compile", "--backend", "torch")
    options = ("--semantic-tokens", 4, "--stages", "semantic", *sides)
    document = closing_json(run("bench_speed.py", *RANDOM, *options, path=tmp_path))
    assert [result["label"] for result in document["results"]] == ["minibark torch float32"]
    reasons = {absent["side"]: absent["reason"] for absent in document["absent"]}
    assert "no such package" in reasons["suno"] and "needs a GPU" in reasons["minibark-compile"]
    assert document["results"][0]["rtf"] is None


def test_speed_warms_up_shortly_and_begins_no_round_beyond_its_limit() -> None:
    options = ("--semantic-tokens", 4, "--warmup-tokens", 2, "--limit-s", 0.001, "--repeats", 3)
    done = run("bench_speed.py", "--model", "random", *options, "--sides", "minibark")
    (result,) = closing_json(done)["results"]
    assert result["stages"]["coarse"]["tokens"] == 12
    assert "no time for more than 1 rounds" in done.stderr


@pytest.mark.parametrize("script", ["bench_speed.py", "bench_batch.py"])
def test_a_length_the_model_cannot_make_is_refused(script: str) -> None:
    done = run(script, *RANDOM, "--semantic-tokens", 769)
    assert done.returncode == 1
    assert "at most 768" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.torture
def test_quality_compares_each_stage_with_float32() -> None:
    options = ("--texts", 2, "--threads", 1, "--voice", "male", "--semantic-tokens", 60)
    document = closing_json(
        run("bench_quality.py", *options, "--precision", "float16", "int8", "int4")
    )
    assert_card(document["card"])
    kl = {}
    for result in document["results"]:
        for stage, found in result["stages"].items():
            assert found["steps"] > 60
            assert 0.8 < found["top1"] <= 1
            kl[result["precision"], stage] = found["kl_nats"]
    for stage in ("semantic", "coarse"):
        assert 0 < kl["float16", stage] < kl["int8", stage] < kl["int4", stage] < 0.1
    assert 0 < kl["float16", "fine"] < kl["int8", "fine"] < 0.01


@pytest.mark.torture
def test_load_measures_seconds_and_memory() -> None:
    options = ("--import-repeats", 1, "--precision", "float32", "int4")
    document = closing_json(run("bench_load.py", *RANDOM, *options))
    assert_card(document["card"])
    for name in ("import_torch_s", "import_minibark_s"):
        assert_spread(document[name])
    full, small = document["results"]
    assert (full["precision"], small["precision"]) == ("float32", "int4")
    for result in (full, small):
        assert_spread(result["load_s"])
        assert_spread(result["read_s"])
        assert result["peak_rss_bytes"] > result["growth_bytes"] > 1e6
    assert full["file_bytes"] > max(1e7, 3 * small["file_bytes"])
    assert full["growth_over_first"] == 1


def test_batch_speaks_rows_together() -> None:
    options = ("--semantic-tokens", 4, "--warmup", 0, "--rows", 1, 3)
    document = closing_json(run("bench_batch.py", *RANDOM, *options))
    one, three = document["results"]
    assert (one["n_rows"], three["n_rows"]) == (1, 3)
    assert one["audio_s"] == pytest.approx(6 / 75)
    assert three["audio_s"] == pytest.approx(3 * one["audio_s"])
    for result in (one, three):
        assert list(result["seconds"]) == STAGES
        assert result["total_s"] == pytest.approx(sum(result["seconds"].values()))
        assert result["audio_per_s"] == pytest.approx(result["audio_s"] / result["total_s"])
        assert result["clips_per_s"] == pytest.approx(result["n_rows"] / result["total_s"])
        assert 0 < result["prefill_share"] < 1 and 0 < result["fine_share"] < 1
        assert result["prefill_share"] + result["fine_share"] < 1
    assert three["times_one_row"] == pytest.approx(three["total_s"] / one["total_s"])
    assert one["step_gain"] == {"semantic": 1, "coarse": 1}
    for stage, gain in three["step_gain"].items():
        assert gain == pytest.approx(three["tokens_per_s"][stage] / one["tokens_per_s"][stage])


def test_bulk_times_whole_jobs() -> None:
    options = ("--texts", 5, "--longest-s", 0.1, "--warmup", 0, "--rows", 3)
    document = closing_json(run("bench_bulk.py", *RANDOM, *options))
    one, closed, joined = document["results"]
    ways = [(result["rows"], result["how"]) for result in document["results"]]
    assert ways == [(1, "alone"), (3, "closed"), (3, "joined")]
    assert one["clips"] == closed["clips"] == joined["clips"] == 5
    assert 5 * 0.09 < one["audio_s"] < 5 * 0.13
    assert one["audio_s"] == joined["audio_s"] == pytest.approx(closed["audio_s"])
    for result in (one, closed, joined):
        assert_spread(result["seconds"])
        seconds = result["seconds"]["median"]
        assert result["clips_per_s"] == pytest.approx(5 / seconds)
        assert result["rtf"] == pytest.approx(seconds / result["audio_s"])
    faster = one["seconds"]["median"] / joined["seconds"]["median"]
    assert joined["times_faster"] == pytest.approx(faster)


def test_serve_times_listeners() -> None:
    options = ("--texts", 4, "--longest-s", 0.1, "--warmup", 0, "--listeners", 1, 3)
    document = closing_json(run("bench_serve.py", *RANDOM, *options))
    one, three = document["results"]
    assert (one["listeners"], three["listeners"]) == (1, 3)
    assert one["requests"] == three["requests"] == 4
    assert one["audio_s"] == pytest.approx(three["audio_s"])
    assert 4 * 0.09 < one["audio_s"]
    for result in (one, three):
        assert 0 < result["first_sound_s"]["median"] <= result["first_sound_s"]["p99"]
        assert result["audio_per_s"] == pytest.approx(result["audio_s"] / result["wall_s"])
    assert three["times_first"] == pytest.approx(three["audio_per_s"] / one["audio_per_s"])


def test_decode_times_steps_and_passes_against_limits() -> None:
    options = ("--steps", 2, "--precision", "float32", "int8", "--rows", 1, 2)
    document = closing_json(run("bench_decode.py", *RANDOM, *options))
    memory = document["memory_bytes_per_s"]
    assert memory > 1e8
    steps = [r for r in document["results"] if "n_bytes" in r]
    passes = [r for r in document["results"] if "n_bytes" not in r]
    assert [(s["precision"], s["what"], s["n_rows"]) for s in steps] == [
        (precision, stage, n_rows)
        for precision in ("float32", "int8")
        for stage in ("coarse", "semantic")
        for n_rows in (1, 2)
    ]
    for step in steps:
        assert_spread(step["seconds"])
        read = step["n_bytes"] / step["seconds"]["median"]
        assert step["share_of_limit"] == pytest.approx(read / memory)
        assert step["times_first"] == 1 or step["n_rows"] == 2
    assert steps[0]["n_bytes"] == 4 * steps[4]["n_bytes"]
    names = [(p["what"], p["n_rows"]) for p in passes[:4]]
    assert names == [("prompt", 1), ("fine pass", 1), ("prompt", 2), ("fine pass", 2)]
    assert all(p["share_of_limit"] > 0 and p["product_flop_per_s"] > 1e8 for p in passes)


def test_a_compiled_step_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from peers import CompiledDecoder

    shape = {"block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 32}
    model = random_gpt(GPTConfig(input_vocab_size=90, output_vocab_size=90, **shape))
    plain, compiled = CachedDecoder(model), CompiledDecoder(model, backend="eager")
    with torch.inference_mode():
        for lengths in ((7, 12), (30, 2)):
            prompts = [torch.randint(90, (n,)) for n in lengths]
            ids = slice(0, 90)
            torch.testing.assert_close(compiled.prefill(prompts, ids), plain.prefill(prompts, ids))
            for step in range(4):
                tokens, ids = torch.randint(90, (2,)), slice(10 * (step % 2), 60)
                torch.testing.assert_close(
                    compiled.decode_one(tokens, ids),
                    plain.decode_one(tokens, ids),
                    atol=1e-4,
                    rtol=1e-4,
                )


# ---- for a GPU, tried out on a CPU


@needs_triton
def test_kernels_are_compared_with_their_references() -> None:
    options = ("--device", "cpu", "--quick", "--kernel", "norm_linear", "decode_attention")
    done = run("bench_kernels.py", *options, TRITON_INTERPRET="1")
    document = closing_json(done)
    assert "TIMES MEAN NOTHING" in done.stdout.upper()
    assert not document["times_mean_something"]
    found = {(r["kernel"], r["precision"]): r for r in document["results"]}
    kinds = [("decode_attention", "float16"), ("norm_linear", "float16"), ("norm_linear", "int8")]
    assert list(found) == kinds
    for result in found.values():
        assert 0 <= result["error"] <= result["tolerance"] and result["right"]
        assert result["seconds"]["median"] > 0
    assert found["decode_attention", "float16"]["times_torch"] > 0


@needs_triton
def test_kernels_are_timed_cut_up_in_other_ways() -> None:
    options = ("--device", "cpu", "--quick", "--tilings", "--kernel", "decode_attention")
    done = run("bench_kernels.py", *options, "linear_residual", TRITON_INTERPRET="1")
    results = closing_json(done)["results"]
    # attention alone has one tiling
    assert {found["kernel"] for found in results} == {"linear_residual"}
    cases = {found["case"] for found in results}
    assert len(cases) == 2 and len({found["tiling"] for found in results}) == 12
    for case in cases:
        these = [found for found in results if found["case"] == case]
        assert sum(found["used"] for found in these) == 1
        (fastest,) = (found for found in these if found["fastest"])
        assert fastest["seconds"]["median"] == min(found["seconds"]["median"] for found in these)
        assert all(found["right"] for found in these)


@needs_triton
def test_kernels_on_a_cpu_want_the_interpreter() -> None:
    done = run("bench_kernels.py", "--device", "cpu", TRITON_INTERPRET="0")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("need each other")
    assert "Traceback" not in done.stderr


def test_kernels_without_triton_say_how_to_install_it() -> None:
    code = (
        "import importlib.util as u, runpy, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *args: None if name == 'triton' else find(name, *args)\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r}); sys.argv = ['bench_kernels.py']\n"
        f"runpy.run_path({str(BENCHMARKS / 'bench_kernels.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "bench_kernels: triton is not installed; pip install 'minibark[gpu]' (Linux)\n"
    )


def test_detect_compares_features_and_times_every_side() -> None:
    options = ("--small", "--seconds", 1, "--repeats", 2, "--warmup", 0, "--threads", 1)
    document = closing_json(run("bench_detect.py", *options))
    assert_card(document["card"])
    assert list(document["results"]) == ["minibark", "transformers", "transformers-6"]
    for values in document["results"].values():
        assert_spread(values)


def test_report_runs_its_parts_and_goes_on_after_one_that_fails(tmp_path: Path) -> None:
    voice = tmp_path / "voice.npz"
    voice.write_bytes(b"no voice")
    out, file = tmp_path / "out", tmp_path / "closing.json"
    options = ("--quick", "--device", "cpu", "--only", "batch", "decode", "--voice", voice)
    done = run("gpu_report.py", "--out", out, *options, "--json", file)
    assert done.returncode == 1
    document = json.loads(done.stdout.splitlines()[-1])
    assert document == json.loads(file.read_text())
    assert not document["times_mean_something"]
    assert document["failed"] == {"batch": "exit status 1"}
    report = json.loads((out / "report.json").read_text())
    assert_card(report["card"])
    assert "not a readable voice" in (out / "batch.txt").read_text()
    steps = report["parts"]["decode"]["figures"]["results"]
    assert steps and "limit" in (out / "decode.txt").read_text()


@pytest.mark.torture
def test_word_times_are_as_good_as_the_docs_say() -> None:
    document = closing_json(run("bench_alignment.py", "--sentences", 20, "--threads", 1))
    found = document["results"]["study against pocketsphinx"]["both"]
    assert found["n"] > 300 and found["p50"] <= 50 and found["p90"] <= 120
    assert set(document["heads"]["best"]) == {"layer 1 head 0"}
