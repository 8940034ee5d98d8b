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

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = ("bench_generate.py", "bench_load.py", "bench_upstream.py")
YARDSTICK = ("transformers", "float32")
STAGES = ["semantic", "coarse", "fine", "codec"]
TINY = ("--model", "random", "--repeats", "1")
HAS_TRITON = importlib.util.find_spec("triton") is not None
COUNTS = {"semantic": 4, "coarse": 12, "fine": 6, "codec": 6}

pytestmark = pytest.mark.slow


def run(
    script: str, *options: object, path: Path | None = None, **variables: str
) -> subprocess.CompletedProcess:
    env = os.environ | {"OMP_NUM_THREADS": "1"} | variables
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


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_the_options_and_the_json_line(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in ("--model", "--repeats", "--json", "JSON"))


@pytest.mark.parametrize("script", ["bench_kernels.py", "gpu_report.py"])
def test_help_of_the_scripts_for_a_gpu(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in ("--device", "--quick", "--json", "JSON"))


def test_generate_measures_each_stage_at_each_precision(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    options = ("--semantic-tokens", 4, "--threads", 1, "--precision", "float32", "bfloat16")
    document = closing_json(run("bench_generate.py", *TINY, *options, "--json", file))
    assert json.loads(file.read_text()) == document
    assert_card(document["card"])
    assert document["card"]["threads"] == 1
    assert [result["precision"] for result in document["results"]] == ["float32", "bfloat16"]
    for result in document["results"]:
        assert {name: figures["tokens"] for name, figures in result["stages"].items()} == COUNTS
        for figures in result["stages"].values():
            assert_spread(figures["seconds"])
            assert figures["tokens_per_s"] > 0
        assert sum(figures["share"] for figures in result["stages"].values()) == pytest.approx(1)
        assert_spread(result["total_s"])
        assert result["audio_s"] == pytest.approx(6 / 75)
        assert result["rtf"]["median"] == pytest.approx(result["total_s"]["median"] * 75 / 6)
        assert result["peak_rss_bytes"] > 1e7
        assert result["peak_gpu_bytes"] is None


def test_upstream_gives_all_sides_the_same_weights_and_lengths(voice: Path) -> None:
    options = ("--semantic-tokens", 4, "--warmup", 0, "--threads", 1, "--voice", voice)
    document = closing_json(run("bench_upstream.py", *TINY, *options))
    assert_card(document["card"])
    results = document["results"]
    there = [result["side"] for result in results]
    missing = [absent["side"] for absent in document["absent"]]
    assert sorted(there + missing) == ["minibark", "suno", "transformers"]
    assert document["same_weights"] is (True if len(there) > 1 else None)
    assert list(document["check"]) == STAGES
    for result in results:
        assert {name: figures["tokens"] for name, figures in result["stages"].items()} == COUNTS
        for figures in result["stages"].values():
            assert_spread(figures["seconds"])
            assert figures["ratio_to_minibark"]["of_medians"] > 0
        assert_spread(result["total_s"])
        assert result["rtf"]["median"] == pytest.approx(result["total_s"]["median"] * 75 / 6)
    assert results[0]["side"] == "minibark"
    assert results[0]["total_ratio_to_minibark"]["of_medians"] == 1


def test_upstream_measures_every_precision_by_transformers_float32() -> None:
    options = ("--semantic-tokens", 4, "--warmup", 0, "--threads", 1, "--stages", "semantic")
    precisions = ("--precision", "float32", "int8", "--peer-precision", "float32")
    document = closing_json(run("bench_upstream.py", *TINY, *options, *precisions))
    results = {(r["side"], r["precision"]): r for r in document["results"]}
    assert {("minibark", "float32"), ("minibark", "int8")} <= set(results)
    assert all(p == "float32" for side, p in results if side != "minibark")
    assert "int8" in results["minibark", "int8"]["path"]
    if YARDSTICK not in results:
        pytest.skip("transformers is not installed")
    assert results[YARDSTICK]["speedup"]["of_medians"] == 1
    for result in results.values():
        expected = results[YARDSTICK]["total_s"]["median"] / result["total_s"]["median"]
        assert result["speedup"]["of_medians"] == pytest.approx(expected)


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


def test_upstream_names_a_side_that_is_not_installed(tmp_path: Path) -> None:
    broken = tmp_path / "bark" / "__init__.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('no such package')\n")
    options = ("--semantic-tokens", 4, "--sides", "minibark,suno", "--stages", "semantic")
    document = closing_json(run("bench_upstream.py", *TINY, *options, path=tmp_path))
    assert [result["side"] for result in document["results"]] == ["minibark"]
    assert [absent["side"] for absent in document["absent"]] == ["suno"]
    assert document["results"][0]["rtf"] is None


def test_load_measures_seconds_and_memory() -> None:
    options = ("--import-repeats", 1, "--precision", "float32", "int4")
    document = closing_json(run("bench_load.py", *TINY, *options))
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


def test_generate_and_upstream_decode_with_the_backend_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.png"
    options = ("--semantic-tokens", 4, "--warmup", 0, "--backend", "torch", "--plot", plot)
    document = closing_json(run("bench_generate.py", *TINY, *options))
    assert document["decoding"] == "plain torch"
    assert plot.read_bytes().startswith(b"\x89PNG")
    plot.unlink()
    document = closing_json(run("bench_upstream.py", *TINY, *options, "--sides", "minibark"))
    assert [result["label"] for result in document["results"]] == ["minibark torch float32"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_upstream_warms_up_shortly_and_begins_no_round_beyond_its_limit() -> None:
    options = ("--semantic-tokens", 4, "--warmup-tokens", 2, "--limit-s", 0.001, "--repeats", 3)
    done = run("bench_upstream.py", "--model", "random", *options, "--sides", "minibark")
    (result,) = closing_json(done)["results"]
    assert result["stages"]["coarse"]["tokens"] == 12
    assert "no time for more than 1 rounds" in done.stderr


# ---- for a GPU, tried out on a CPU


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_kernels_are_compared_with_their_references(tmp_path: Path) -> None:
    options = ("--device", "cpu", "--quick", "--kernel", "norm_linear", "linear_residual")
    plot = tmp_path / "plot.png" if importlib.util.find_spec("matplotlib") else None
    options += ("--plot", plot) if plot else ()
    done = run("bench_kernels.py", *options, TRITON_INTERPRET="1")
    document = closing_json(done)
    assert "TIMES MEAN NOTHING" in done.stdout.upper()
    assert not document["times_mean_something"]
    found = {(r["kernel"], r["precision"]): r for r in document["results"]}
    kinds = [(name, p) for name in ("norm_linear", "linear_residual") for p in ("float16", "int8")]
    assert list(found) == kinds
    for result in found.values():
        assert 0 <= result["error"] <= result["tolerance"] and result["right"]
        assert result["seconds"]["median"] > 0 and result["times_ref"] > 0
    assert found["norm_linear", "float16"]["times_torch"] > 0
    assert plot is None or plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_kernels_are_timed_cut_up_in_other_ways() -> None:
    options = ("--device", "cpu", "--quick", "--tilings", "--kernel", "decode_attention")
    done = run("bench_kernels.py", *options, "linear_residual", TRITON_INTERPRET="1")
    results = closing_json(done)["results"]
    assert {found["kernel"] for found in results} == {
        "linear_residual"
    }  # attention alone has one tiling
    cases = {found["case"] for found in results}
    assert len(cases) == 2 and len({found["tiling"] for found in results}) == 12
    for case in cases:
        these = [found for found in results if found["case"] == case]
        assert sum(found["used"] for found in these) == 1
        (fastest,) = (found for found in these if found["fastest"])
        assert fastest["seconds"]["median"] == min(found["seconds"]["median"] for found in these)
        assert all(found["right"] for found in these)


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_kernels_on_a_cpu_want_the_interpreter() -> None:
    done = run("bench_kernels.py", "--device", "cpu", TRITON_INTERPRET="0")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("need each other")
    assert "Traceback" not in done.stderr


def test_kernels_without_triton_say_how_to_install_it(tmp_path: Path) -> None:
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


def test_report_runs_its_parts_and_lists_the_figures(tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "report.json"
    options = ("--quick", "--device", "cpu", "--only", "card", "step", "--json", file)
    document = closing_json(run("gpu_report.py", "--out", out, *options))
    assert not document["times_mean_something"]
    assert document["failed"] == {}
    assert len(document["figures"]) == 6
    measured = [row["figure"] for row in document["figures"] if row["measured"] is not None]
    assert len(measured) == 1 and "decode step" in measured[0]
    report = json.loads(file.read_text())
    assert report == json.loads((out / "report.json").read_text())
    assert report["figures"] == document["figures"]
    assert_card(report["parts"]["card"]["card"])
    steps = report["parts"]["step"]["steps"]
    assert steps and all(0 < s["share_of_copy"] and s["n_bytes"] > 0 for s in steps)
    assert ("triton" in [s["backend"] for s in steps]) == HAS_TRITON


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_report_times_passes(tmp_path: Path) -> None:
    options = ("--quick", "--device", "cpu", "--only", "passes")
    done = run("gpu_report.py", "--out", tmp_path, *options)
    closing_json(done)
    found = json.loads((tmp_path / "report.json").read_text())["parts"]["passes"]
    passes = [(one["pass"], one["n_rows"]) for one in found["passes"]]
    assert passes == [(name, n) for n in (1, 2) for name in ("prompt", "fine pass")]
    for one in found["passes"]:
        assert one["seconds"].keys() == {"torch", "triton"}
        assert one["share_of_product_rate"] > 0


def test_report_goes_on_after_a_part_that_fails(tmp_path: Path) -> None:
    voice = tmp_path / "voice.npz"
    voice.write_bytes(b"no voice")
    options = ("--device", "cpu", "--quick", "--only", "tokens", "sanitizer", "--voice", voice)
    done = run("gpu_report.py", "--out", tmp_path / "out", *options)
    assert done.returncode == 1
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["failed"] == {"tokens": "exit status 1"}
    assert "VoiceError" in done.stdout
    assert "---- sanitizer" in done.stdout


@pytest.mark.parametrize("script", ["bench_generate.py", "bench_upstream.py"])
def test_a_length_the_model_cannot_make_is_refused(script: str) -> None:
    done = run(script, *TINY, "--semantic-tokens", 769)
    assert done.returncode == 1
    assert "at most 768" in done.stderr
    assert "Traceback" not in done.stderr
