"""The parts of `gpu_report.py`, one a process: `report_parts.py PART RESULT SETTINGS`.

A part keeps what it finds, as it finds it, in the RESULT file; SETTINGS is JSON, as made by
`gpu_report.run`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from card import machine_card, print_card
from checkpoints import write_random
from measure import TEXT, max_duration_s, spread, timed
from replays import copy_bandwidth, product_rate, seconds_per_call
from torch import Tensor

import minibark
from minibark.checkpoint.presets import preset
from minibark.coarse import generate_coarse
from minibark.config import GenerationConfig
from minibark.decoding import CachedDecoder, Decoder, RandomStreams
from minibark.fine import generate_fine
from minibark.gpu.backend import choose_backend, describe_backend, why_no_triton
from minibark.gpu.decoder import GraphDecoder, GraphFine
from minibark.model import GPT, FineGPT, KVCache
from minibark.precision import BACKENDS
from minibark.sampling import Sampling
from minibark.semantic import generate_semantic, semantic_prompt
from minibark.voice import Voice

HERE = Path(__file__).parent
CLIP_TOKENS = 250  # semantic: 751 coarse ids, 375 frames, 5 s
VOICE_TOKENS = 400
# Files, and beginnings of names of tests in them; what begins otherwise runs together.
TESTS = {
    "test_kernels.py": ("test_decode_attention", "test_attention"),
    "test_linear_kernels.py": (
        "test_norm_linear",
        "test_norm_qkv",
        "test_linear_residual",
        "test_combine_residual",
        "test_decode_layer",
        "test_compute_sanitizer",  # it has a part of its own here
    ),
    "test_step_kernels.py": (),
    "test_graph.py": (),
}
PYTEST_DONE = {0, 5}  # all passed or skipped; none of that name
WINDOW = 887  # positions that a coarse window with a full voice starts with
GREEDY = Sampling(temperature=0)


class Part:
    """What a part is told, and what it finds."""

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        self.file, self.settings = file, settings
        self.device = torch.device(settings["device"])
        self.on_cpu = self.device.type == "cpu"
        self.quick: bool = settings["quick"]
        self.out = Path(settings["out"])
        self.found: dict[str, Any] = {}
        # The interpreter takes a second for a step.
        self.n_tokens = (2 if self.on_cpu else 20) if self.quick else CLIP_TOKENS
        self.precision = "float32" if self.on_cpu else "bfloat16"
        self.backends = [
            name for name in BACKENDS[::-1] if name == "torch" or not why_no_triton(self.device)
        ]

    def keep(self, **values: Any) -> None:
        """Keep results, on disk too."""
        self.found |= values
        self.file.write_text(json.dumps(self.found), encoding="utf-8")

    def sizes(self) -> list[str]:
        """The random models there are, the largest first."""
        return [size for size in ("large", "small") if size in self.settings["models"]]

    def open(self, size: str, precision: str) -> minibark.Bark:
        """A model of a size."""
        name = self.settings["models"].get(size, size)
        return minibark.Bark.from_pretrained(
            name, device=self.device, precision=precision, backend=self.backends[0]
        )

    def voice(self, bark: minibark.Bark) -> Voice:
        """The voice for a model."""
        loaded = bark.load_voice("male" if "male" in bark.voices else self.settings["voice"])
        assert loaded is not None
        return loaded

    def run_script(self, words: Sequence[str], **env: str) -> int:
        """Run another script, print what it prints but its closing JSON; its exit status."""
        child = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | env
        )
        assert child.stdout is not None
        for line in child.stdout:
            if not line.startswith('{"benchmark"'):
                print(line, end="", flush=True)
        return child.wait()

    def plot(self, name: str) -> list[str]:
        """The option that draws a plot, if that can be done."""
        if importlib.util.find_spec("matplotlib") is None:
            print("no plot: matplotlib is not installed; pip install matplotlib")
            return []
        return ["--plot", str(self.out / name)]


# ---- the parts


def models(part: Part) -> None:
    """Write random models and a random voice."""
    if not part.settings["own_voice"]:
        rng = np.random.default_rng(0)
        n_frames = round(VOICE_TOKENS * 75 / 49.9)
        codes = rng.integers(0, 1024, (8, n_frames))
        semantic = torch.from_numpy(rng.integers(0, 10_000, VOICE_TOKENS))
        Voice(semantic, torch.from_numpy(codes[:2]), torch.from_numpy(codes)).save(
            part.settings["voice"]
        )
    for size, folder in part.settings["models"].items():
        unfinished = Path(f"{folder}.part")
        unfinished.mkdir()
        write_random(preset("random" if part.quick else size), unfinished, 0)
        unfinished.rename(folder)


def card(part: Part) -> None:
    """The machine, and which path runs."""
    values = machine_card(part.device)
    print_card(values)
    backend = choose_backend(None, part.device)
    part.keep(card=values, backend=backend, path=describe_backend(backend, part.device))
    if not part.on_cpu:
        capability = torch.cuda.get_device_capability(part.device)
        part.keep(capability=capability, driver=_driver())
    if "triton" in part.backends:
        from minibark.kernels.launch import dependent_launch

        part.keep(dependent_launch=bool(dependent_launch(part.device)["PDL"]))
    part.keep(why_no_triton=why_no_triton(part.device))
    part.keep(copy_bytes_per_s=copy_bandwidth(part.device))
    for name in ("path", "capability", "driver", "dependent_launch", "why_no_triton"):
        print(f"{name.replace('_', ' ')}: {part.found.get(name)}")
    print(f"copy bandwidth, read and written: {part.found['copy_bytes_per_s'] / 1e9:.0f} GB/s")


def _driver() -> str | None:
    words = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.sm,clocks.mem",
        "--format=csv,noheader",
    ]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None


def tests(part: Part) -> None:
    """The tests that need a GPU, in processes side by side: most of their time is compilation.

    What they print is in `tests-N.txt`, and here if one fails.
    """
    root = HERE.parent
    groups = []
    for name, keys in TESTS.items():
        if (root / "tests" / name).exists():
            rest = " and ".join(f"not {key}" for key in keys)
            groups += [(name, key) for key in (*keys, rest) if key != "test_compute_sanitizer"]
    if part.on_cpu:
        groups = groups[-1:]  # all are skipped
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short", "--maxfail=10"]
    words += ["--rootdir", str(root), "-p", "no:cacheprovider"]
    children = []
    for n, (name, key) in enumerate(groups):
        log = part.out / f"tests-{n}.txt"
        with log.open("w", encoding="utf-8") as file:
            child = subprocess.Popen(
                [*words, "-k", key, f"tests/{name}"],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=root,
            )
        children.append((child, log))
    statuses = []
    counts: Counter[str] = Counter()
    for (child, log), (name, key) in zip(children, groups, strict=True):
        statuses.append(child.wait())
        lines = log.read_text(encoding="utf-8").splitlines()
        if statuses[-1] not in PYTEST_DONE:
            print("\n".join(lines))
        last = lines[-1] if lines else ""
        print(f"{name}, {key or 'all'}: {last.strip('= ')}", flush=True)
        for number, word in re.findall(r"(\d+) (\w+)", last.split(" in ")[0]):
            counts[word] += int(number)
        part.keep(counts=dict(counts), statuses=statuses)
    if not set(statuses) <= PYTEST_DONE:
        raise SystemExit("tests failed")


def tokens(part: Part) -> None:
    """Greedy tokens of a clip: step by step against both backends."""
    if part.quick:
        plan = [("large", part.precision)]
    else:
        plan = [(name, p) for p in ("float32", "bfloat16") for name in ("tiny", "small")]
        plan.append(("large", "bfloat16"))
    compared = []
    for name, precision in plan:
        bark = part.open(name, precision)
        for stage, found in _compare_stages(part, bark):
            compared.append({"model": name, "precision": precision, "stage": stage, **found})
            print(_comparison(compared[-1]), flush=True)
            part.keep(compared=compared)
        del bark
    exact = [
        there["equal"] or there["near_tie"]
        for found in compared
        if found["precision"] == "float32"
        for there in found["backends"].values()
    ]
    part.keep(float32_equal_but_for_ties=all(exact))
    print(
        f"float32: tokens equal, but for ties within the rounding: {'yes' if all(exact) else 'NO'}"
    )
    if not all(exact):
        raise SystemExit("the backends do not give the loop's tokens")


class Noted(CachedDecoder):
    """Notes how far each step's likeliest logit is ahead of the next, and what came first."""

    def __init__(self, model: GPT, n_merged: int) -> None:
        super().__init__(model, n_merged)
        self.leads: list[Tensor] = []
        self.first: tuple[Sequence[Tensor], slice] | None = None

    def prefill(self, prompts: Sequence[Tensor], head: slice) -> Tensor:
        self.first = self.first or (prompts, head)
        return self._note(super().prefill(prompts, head))

    def decode_one(self, tokens: Tensor, head: slice) -> Tensor:
        return self._note(super().decode_one(tokens, head))

    def _note(self, logits: Tensor) -> Tensor:
        two = logits[0].topk(2).values
        self.leads.append(two[0] - two[1])
        return logits


@torch.inference_mode()
def _compare_stages(part: Part, bark: minibark.Bark) -> Iterator[tuple[str, dict[str, Any]]]:
    g, voice = bark.config.generation, part.voice(bark)
    limit_s = max_duration_s(part.n_tokens, g.semantic_rate_hz)
    prompt = semantic_prompt(_text_ids(bark), voice.semantic, g)

    def speak(model: GPT, decoder: Decoder) -> Tensor:
        (made,) = generate_semantic(
            *(model, [prompt], g, GREEDY, [None]),
            max_duration_s=limit_s,
            allow_early_stop=False,
            decoder=lambda model, n_merged: decoder,
        )
        return made

    with contextlib.nullcontext(bark.model("semantic")) as model:
        semantic, found = _compare(part, model, g.max_input_semantic_length, partial(speak, model))
        yield "semantic", found

    def voices(model: GPT, decoder: Decoder) -> Tensor:
        (made,) = generate_coarse(
            *(model, [semantic], [voice], g, GREEDY, [None]),
            decoder=lambda model, n_merged: decoder,
        )
        return made.T.flatten()  # in the order in which they are made

    with contextlib.nullcontext(bark.model("coarse")) as model:
        yield "coarse", _compare(part, model, 0, partial(voices, model))[1]


def _text_ids(bark: minibark.Bark) -> Tensor:
    ids = list(bark.tokenizer.encode(TEXT))[: bark.config.generation.max_input_semantic_length]
    return torch.tensor(ids, dtype=torch.int64)


def _compare(
    part: Part, model: GPT, n_merged: int, generate: Callable[[Decoder], Tensor]
) -> tuple[Tensor, dict[str, Any]]:
    """The tokens of the loop step by step, and where each backend leaves them."""
    noted = Noted(model, n_merged)
    seconds, wanted = timed(lambda: generate(noted), part.device)
    there: dict[str, Any] = {}
    for backend in part.backends:
        decoder = GraphDecoder(model, n_merged, backend=backend)
        made = generate(decoder)
        different = (made != wanted).nonzero().flatten().tolist()
        first = different[0] if different else None
        lead = None if first is None else float(noted.leads[first])
        rounding = _rounding(model, n_merged, decoder, noted, 2 if part.on_cpu else 8)
        there[backend] = {
            "equal": first is None,
            "first_difference": first,
            "lead": lead,  # of the likeliest logit there
            "rounding": rounding,  # largest difference of two logits
            "near_tie": lead is not None and lead <= 2 * rounding,
        }
    return wanted, {"n_tokens": wanted.numel(), "loop_seconds": seconds, "backends": there}


def _rounding(
    model: GPT, n_merged: int, decoder: GraphDecoder, noted: Noted, n_steps: int
) -> float:
    """The largest difference of the logits of a decoder from the loop's, over a few steps."""
    assert noted.first is not None
    prompts, head = noted.first
    plain = CachedDecoder(model, n_merged)
    expected, made = plain.prefill(prompts, head), decoder.prefill(prompts, head)
    worst = 0.0
    for _ in range(n_steps):
        token = expected.argmax(-1) + head.start
        expected, made = plain.decode_one(token, head), decoder.decode_one(token, head)
        worst = max(worst, float((made - expected).abs().max()))
    return worst


def _comparison(found: dict[str, Any]) -> str:
    words = []
    for backend, there in found["backends"].items():
        if there["equal"]:
            words.append(f"{backend} equal (rounding {there['rounding']:.1e})")
        else:
            tie = "a tie within the rounding" if there["near_tie"] else "NO TIE"
            words.append(
                f"{backend} differs first at step {there['first_difference']}, where the likeliest "
                f"logit leads by {there['lead']:.1e}, rounding {there['rounding']:.1e}: {tie}"
            )
    where = f"{found['model']} {found['precision']} {found['stage']}, {found['n_tokens']} tokens"
    return f"{where}: {'; '.join(words)}"


def pipeline(part: Part, size: str) -> None:
    """A clip of 5 s with a voice, on every side."""
    file = part.out / f"pipeline-{size}.json"
    sides = "minibark,transformers,suno"
    if size == "small" or part.quick:
        sides += ",transformers-static"
    words = [
        sys.executable,
        str(HERE / "bench_upstream.py"),
        "--model",
        part.settings["models"][size],
    ]
    words += ["--device", part.settings["device"], "--precision", part.precision]
    words += ["--voice", part.settings["voice"], "--semantic-tokens", str(part.n_tokens)]
    words += ["--sides", sides, "--backend", *part.backends]
    words += ["--check-tokens", "2" if part.on_cpu else "8"]
    words += ["--warmup", "0" if part.on_cpu else "1", "--repeats", "1" if part.quick else "3"]
    words += ["--warmup-tokens", str(min(60, part.n_tokens))]  # a quarter: the peers are slow
    words += ["--limit-s", str(0.6 * part.settings["limit_s"]), "--json", str(file)]
    status = part.run_script([*words, *part.plot(f"pipeline-{size}.png")])
    if status:
        raise SystemExit(f"bench_upstream ended with status {status}")
    document = json.loads(file.read_text(encoding="utf-8"))
    results = {result["label"]: result for result in document["results"]}
    ours = next(result for result in document["results"] if result["side"] == "minibark")
    theirs = [
        result["total_ratio_to_minibark"]["of_medians"]
        for result in document["results"]
        if result["side"].startswith("transformers")
    ]
    part.keep(
        audio_s=document["audio_s"],
        check=document["check"],
        absent=document["absent"],
        results=results,
        rtf=ours["rtf"]["median"],
        # By the faster of its caches, where both were measured.
        times_transformers=min(theirs) if theirs else None,
    )


def step(part: Part) -> None:
    """One decode step: time, and share of the copy bandwidth."""
    copy_bytes_per_s = copy_bandwidth(part.device)
    part.keep(copy_bytes_per_s=copy_bytes_per_s, steps=[])
    print(f"copy bandwidth, read and written: {copy_bytes_per_s / 1e9:.0f} GB/s")
    row = "{:<6} {:<9} {:<9} {:<7} {:>9} {:>16} {:>9} {:>7} {:>8}"
    heads = ("size", "stage", "weights", "backend", "us", "(min-max)", "MB read", "GB/s", "of copy")
    print(row.format(*heads))
    for size in part.sizes():
        for precision in (part.precision,) if part.on_cpu else (part.precision, "int8"):
            bark = part.open(size, precision)
            for stage, backend in itertools.product(("coarse", "semantic"), part.backends):
                if precision == "int8" and backend == "torch":
                    continue  # it expands the weights at every step
                if part.on_cpu and stage == "semantic":
                    continue
                with contextlib.nullcontext(bark.model(stage)) as model:
                    found = _time_step(part, model, stage, bark.config.generation, backend)
                share = found["bytes_per_s"] / copy_bytes_per_s
                found |= {"size": size, "stage": stage, "precision": precision}
                found |= {"backend": backend, "share_of_copy": share}
                part.keep(steps=[*part.found["steps"], found])
                us = {key: f"{value * 1e6:.1f}" for key, value in found["seconds"].items()}
                print(
                    row.format(
                        *(size, stage, precision, backend, us["median"]),
                        f"({us['min']}-{us['max']})",
                        f"{found['n_bytes'] / 1e6:.1f}",
                        f"{found['bytes_per_s'] / 1e9:.0f}",
                        f"{share:.0%}",
                    ),
                    flush=True,
                )
                first = ("large", "coarse", part.backends[0], part.precision)
                if (size, stage, backend, precision) == first:
                    part.keep(large_share_of_copy=share)
                    for kernel in (found["kernels"] or [])[:8]:
                        taken, count = kernel["us_per_step"], kernel["count_per_step"]
                        print(f"    {taken:8.1f} us in {count:6.1f} launches: {kernel['name']}")
            del bark


@torch.inference_mode()
def _time_step(
    part: Part, model: GPT, stage: str, g: GenerationConfig, backend: str
) -> dict[str, Any]:
    """A step's seconds, sampling included, and the bytes that it must read."""
    n_merged = g.max_input_semantic_length if stage == "semantic" else 0
    length = WINDOW if stage == "coarse" else 257 + CLIP_TOKENS // 2
    n = 2 if part.on_cpu else 60 if stage == "coarse" else 16
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, 10_000, (length + n_merged,), generator=generator).to(part.device)
    if stage == "coarse":
        firsts = [g.semantic_vocab_size + k * g.codebook_size for k in range(2)]
        heads = [slice(firsts[i % 2], firsts[i % 2] + g.codebook_size) for i in range(n)]
    else:
        heads = [slice(0, g.semantic_vocab_size)] * n
    decoder = GraphDecoder(model, n_merged, backend=backend)
    streams = RandomStreams([torch.Generator(part.device).manual_seed(0)], part.device)
    active = [[True]] * n

    def start() -> Callable[[], object]:
        first = decoder.prefill([prompt], heads[0]).argmax(-1) + heads[0].start
        return partial(decoder.take_steps, first, heads, Sampling(), streams, active)

    def window() -> float:
        return timed(start(), part.device)[0] / n

    if not part.on_cpu:
        for _ in range(2):
            window()  # records, then warms
    seconds = spread([window() for _ in range(1 if part.on_cpu else 10)])
    n_bytes = _step_bytes(model, heads[0], length + n / 2)
    found = {
        "seconds": seconds,
        "positions": length,
        "n_bytes": n_bytes,
        "bytes_per_s": n_bytes / seconds["median"],
        "kernels": None,
    }
    if not part.on_cpu:
        try:
            found["kernels"] = _kernels(start(), n)
        except Exception:  # a profiler that does not work here costs only its own result
            traceback.print_exc()
    return found


def _step_bytes(model: GPT, head: slice, length: float) -> float:
    """Weights of the layers and the head's rows, and the cache up to a length."""
    layers = itertools.chain(model.transformer.h.parameters(), model.transformer.h.buffers())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in layers)
    rows = model.lm_head.weight[head]
    element_size = model.transformer.wpe.weight.element_size()
    cache = 2 * model.config.n_layer * model.config.n_embd * length * element_size
    return weights + rows.numel() * rows.element_size() + cache


def _kernels(take_steps: Callable[[], object], n: int) -> list[dict[str, Any]]:
    """The kernels of n steps that take longest, by the profiler: microseconds and count a step."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        take_steps()
        torch.cuda.synchronize()
    events = [e for e in record.key_averages() if getattr(e, "self_device_time_total", 0) > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    return [
        {
            "name": event.key[:80],
            "us_per_step": event.self_device_time_total / n,
            "count_per_step": event.count / n,
        }
        for event in events[:12]
    ]


def kernels(part: Part) -> None:
    """Each kernel."""
    if "triton" not in part.backends:
        raise SystemExit(why_no_triton(part.device))
    file = part.out / "kernels.json"
    words = [sys.executable, str(HERE / "bench_kernels.py"), "--device", part.settings["device"]]
    words += ["--quick", "--json", str(file), *part.plot("kernels.png")]
    if part.on_cpu:
        words += ["--kernel", "decode_attention", "norm_linear"]
    status = part.run_script(words)
    document = json.loads(file.read_text(encoding="utf-8"))
    results = document["results"]
    split = [
        found["times_torch"]
        for found in results
        if (found["kernel"], found["n_rows"], found["n_keys"]) == ("decode_attention", 1, 900)
        and found["size"] in ("large", "random")
    ]
    part.keep(
        copy_bytes_per_s=document["copy_bytes_per_s"],
        dependent_launch=document["dependent_launch"],
        results=results,
        split_attention=split[0] if split else None,
    )
    if status:
        raise SystemExit("kernels give wrong results")


@torch.inference_mode()
def batch(part: Part) -> None:
    """16 utterances at once, large model."""
    n_rows = 2 if part.on_cpu else 16
    bark = part.open("large", part.precision)
    g, voice, backend = bark.config.generation, part.voice(bark), part.backends[0]
    limit_s = max_duration_s(part.n_tokens, g.semantic_rate_hz)
    prompts = [semantic_prompt(_text_ids(bark), voice.semantic, g)] * n_rows
    voices = [voice] * n_rows
    decoders: dict[int, GraphDecoder] = {}

    def kept(model: GPT, n_merged: int) -> GraphDecoder:
        if n_merged not in decoders:
            decoders[n_merged] = GraphDecoder(model, n_merged, backend=backend)
        return decoders[n_merged]

    with (
        contextlib.nullcontext(bark.model("semantic")) as semantic_model,
        contextlib.nullcontext(bark.model("coarse")) as coarse_model,
        contextlib.nullcontext(bark.model("fine")) as fine_model,
        contextlib.nullcontext(bark.model("codec")) as codec,
        torch.backends.cudnn.flags(allow_tf32=False),
    ):
        recorded = GraphFine(fine_model, backend=backend)

        def utterances() -> tuple[dict[str, float], float]:
            """Seconds of each stage, and of audio."""
            seconds = {}
            generators = [torch.Generator(part.device).manual_seed(i) for i in range(n_rows)]
            seconds["semantic"], semantics = timed(
                lambda: generate_semantic(
                    *(semantic_model, prompts, g, Sampling(), generators),
                    max_duration_s=limit_s,
                    allow_early_stop=False,
                    decoder=kept,
                ),
                part.device,
            )
            seconds["coarse"], coarses = timed(
                lambda: generate_coarse(
                    *(coarse_model, semantics, voices, g, Sampling(), generators), decoder=kept
                ),
                part.device,
            )
            seconds["fine"], fines = timed(
                lambda: generate_fine(
                    *(fine_model, coarses, voices, g, Sampling(0.5), generators), forward=recorded
                ),
                part.device,
            )
            seconds["codec"], audio = timed(
                lambda: codec(torch.stack(fines).to(part.device)).cpu(), part.device
            )
            return seconds, audio.numel() / bark.config.codec.sampling_rate

        if not part.on_cpu:
            utterances()
        rounds = []
        for _ in range(1 if part.quick else 3):
            rounds.append(utterances())
            audio_s = rounds[-1][1]
            seconds = {
                stage: statistics.median(made[stage] for made, _ in rounds)
                for stage in rounds[0][0]
            }
            total_s = statistics.median(sum(made.values()) for made, _ in rounds)
            part.keep(
                n_rows=n_rows,
                backend=backend,
                seconds=seconds,
                total_s=total_s,
                audio_s=audio_s,
                audio_per_s=audio_s / total_s,
            )
    words = ", ".join(f"{stage} {s:.2f}" for stage, s in part.found["seconds"].items())
    print(f"{n_rows} rows, {backend}: {audio_s:.1f} s of audio in {total_s:.2f} s ({words})")
    print(f"{audio_s / total_s:.1f} seconds of audio a second")


@torch.inference_mode()
def passes(part: Part) -> None:
    """Prompts and fine passes."""
    rate = product_rate(part.device)
    part.keep(product_flop_per_s=rate, passes=[])
    print(f"product of two large matrices, bfloat16: {rate / 1e12:.3g} TFLOP/s")
    batches = (1, 2) if part.on_cpu else (1, 16)
    for size in part.sizes():
        bark = part.open(size, part.precision)
        with (
            contextlib.nullcontext(bark.model("coarse")) as coarse_model,
            contextlib.nullcontext(bark.model("fine")) as fine_model,
        ):
            for n_rows in batches:
                _time_passes(part, size, coarse_model, fine_model, n_rows, rate)
        del bark


def _time_passes(
    part: Part, size: str, coarse_model: GPT, fine_model: FineGPT, n_rows: int, rate: float
) -> None:
    """One window's prompt, its end alone, and one fine pass, with either attention."""
    length, frames = (40, 40) if part.on_cpu else (WINDOW, 1024)
    cache = KVCache(coarse_model, n_rows)
    ids = torch.randint(1000, (n_rows, length), device=part.device)
    codes = torch.randint(1000, (n_rows, frames, 8), device=part.device)
    head = slice(0, 1024)
    what: dict[str, tuple[Callable[[], Tensor], float]] = {
        "prompt": (
            lambda: coarse_model.prefill(ids, cache, 0, ids=head),
            n_rows * _flop(coarse_model, length, length, 1, causal=True),
        ),
        "fine pass": (
            lambda: fine_model(codes, 7, frames // 2),
            n_rows * _flop(fine_model, frames, frames, frames - frames // 2, causal=False),
        ),
    }
    for name, (call, n_flop) in what.items():
        found: dict[str, Any] = {"size": size, "pass": name, "n_rows": n_rows, "seconds": {}}
        for by in ("torch", "triton") if "triton" in part.backends else ("torch",):
            with _attention_by(by, coarse_model, fine_model):
                seconds = statistics.median(seconds_per_call([call], part.device, 5, 2))
            found["seconds"][by] = seconds
            found["share_of_product_rate"] = n_flop / min(found["seconds"].values()) / rate
        part.keep(passes=[*part.found["passes"], found])
        times = ", ".join(
            f"attention by {by} {s * 1e3:.3f} ms" for by, s in found["seconds"].items()
        )
        share = f"{found['share_of_product_rate']:.0%} of the product's rate"
        print(f"{size}, {n_rows} rows, {name}: {times}; {share}", flush=True)


@contextlib.contextmanager
def _attention_by(by: str, *models: GPT | FineGPT) -> Iterator[None]:
    """Have every pass use torch's attention or ours."""
    if by == "torch":
        yield
        return
    from minibark.gpu import fused

    for model in models:
        fused.use_attention(model)
    with patch.dict(fused.LEAST_QUERIES, {True: 2, False: 2}):
        yield


def _flop(
    model: GPT | FineGPT, n_queries: int, n_keys: int, n_wanted: int, *, causal: bool
) -> float:
    """Of the blocks, for one row; the last is computed where it is wanted."""
    width, n_layer = model.config.n_embd, model.config.n_layer
    pairs = n_queries * n_keys - (n_queries * (n_queries - 1) / 2 if causal else 0)
    whole = 24 * width**2 * n_queries + 4 * width * pairs
    return (n_layer - 1) * whole + width**2 * (6 * n_queries + 18 * n_wanted)


def sanitizer(part: Part) -> None:
    """compute-sanitizer over the kernels."""
    binary = shutil.which("compute-sanitizer")
    part.keep(installed=binary is not None)
    if binary is None or part.on_cpu:
        print("not installed" if binary is None else "it needs a GPU")
        return
    words = [binary, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9"]
    words += [sys.executable, str(HERE / "bench_kernels.py"), "--quick", "--errors-only"]
    words += ["--kernel", "decode_layer", "decode_attention"]
    # Blocks of their own, so that what is read beyond one is seen.
    status = part.run_script(words, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    part.keep(status=status)
    if status:
        raise SystemExit(f"compute-sanitizer ended with status {status}")


def tilings(part: Part) -> None:
    """The kernels for one row, cut up in other ways."""
    file = part.out / "tilings.json"
    words = [sys.executable, str(HERE / "bench_kernels.py"), "--device", part.settings["device"]]
    words += ["--quick", "--tilings", "--repeats", "10", "--json", str(file)]
    if part.on_cpu:
        words += ["--kernel", "linear_residual"]
    status = part.run_script(words)
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    part.keep(results=results)
    if status:
        raise SystemExit("kernels give wrong results")


PARTS: dict[str, Callable[[Part], None]] = {
    "models": models,
    "card": card,
    "tests": tests,
    "tokens": tokens,
    "large": partial(pipeline, size="large"),
    "step": step,
    "kernels": kernels,
    "batch": batch,
    "small": partial(pipeline, size="small"),
    "passes": passes,
    "sanitizer": sanitizer,
    "tilings": tilings,
}


def main() -> None:
    name, file, settings = sys.argv[1:]
    try:
        PARTS[name](Part(Path(file), json.loads(settings)))
    except Exception:  # told where the rest of the report is read, not on another stream
        traceback.print_exc(file=sys.stdout)
        sys.exit(1)


if __name__ == "__main__":
    main()
