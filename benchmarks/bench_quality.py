"""What a reduced precision does to the logits: the same tokens, the same steps, two precisions.

    python benchmarks/bench_quality.py --model tiny --precision float16 bfloat16 int8 int4

A text is spoken in float32. Then every stage goes through those very tokens again, in float32 and
in each precision, and the two distributions of each step are compared. Nothing that one step gets
wrong is carried to the next one but what the cache holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from common import (
    add_options,
    checkpoint,
    close,
    machine_card,
    max_duration_s,
    one_line,
    parse,
    positive,
    print_card,
)
from torch import Tensor, nn

import minibark
from minibark.coarse import generate_coarse
from minibark.cpu.byte_sums import ByteCache
from minibark.decoding import CachedDecoder, MakeDecoder
from minibark.precision import FLOATS, PRECISIONS
from minibark.sampling import Sampling
from minibark.semantic import generate_semantic, semantic_prompt
from minibark.voice import Voice

STAGES = ("semantic", "coarse", "fine")
TEXTS = """\
The quick brown fox jumps over the lazy dog.
She sells sea shells by the sea shore.
I will be there at seven, if the train is on time.
Nobody knows what the new house will cost.
The weather was cold and the road was long.
Two men walked along the river in the morning.
Please write your name at the top of the page.
One, two, three, four, five, six.""".splitlines()


class Forced:
    """Records a layer's logits and puts the wanted token in their place, step after step."""

    def __init__(self, layer: nn.Module, wanted: Sequence[int]) -> None:
        self.logits: list[Tensor] = []
        self.wanted = iter(wanted)
        self.hook = layer.register_forward_hook(self)

    def __call__(self, layer: nn.Module, given: Any, logits: Tensor) -> Tensor:
        """Torch's hook: logits (1, V) become a certainty."""
        self.logits.append(logits[0].float())
        certain = torch.zeros_like(logits)
        certain[0, next(self.wanted)] = 1
        return certain

    def stop(self) -> Tensor:
        """All logits (steps, V)."""
        self.hook.remove()
        return torch.stack(self.logits)


def decoder_of(bark: minibark.Bark) -> MakeDecoder:
    """What decodes in a precision, with the cache that models of the released widths have."""
    if bark.device.type != "cpu" or bark.precision in FLOATS:
        return CachedDecoder
    return partial(CachedDecoder, new_cache=ByteCache)


def semantic_logits(bark: minibark.Bark, text: str, voice: Voice | None, said: Voice) -> Tensor:
    """(S + 1, V): after each token of what was said, and before the first."""
    g = bark.config.generation
    ids = torch.tensor(bark.tokenizer.encode(text))
    prompt = semantic_prompt(ids, voice.semantic if voice else None, g)
    model = bark.model("semantic")
    forced = Forced(model.lm_head, [*said.semantic.tolist(), g.semantic_pad_token])
    generate_semantic(
        model, [prompt], g, Sampling(0), [None], min_eos_p=None, decoder=decoder_of(bark)
    )
    return forced.stop()


def coarse_logits(bark: minibark.Bark, text: str, voice: Voice | None, said: Voice) -> Tensor:
    """(2 T, codebook_size)."""
    model = bark.model("coarse")
    forced = Forced(model.lm_head, said.coarse.T.flatten().tolist())
    g, decoder = bark.config.generation, decoder_of(bark)
    generate_coarse(model, [said.semantic], [voice], g, Sampling(0), [None], decoder=decoder)
    return forced.stop()


@torch.inference_mode()
def fine_logits(bark: minibark.Bark, text: str, voice: Voice | None, said: Voice) -> Tensor:
    """(6 T, codebook_size) of the first buffer, without a voice."""
    g = bark.config.generation
    n_frames = min(said.fine.shape[1], g.max_fine_input_length)
    found = []
    model = bark.model("fine")
    for codebook in range(g.n_coarse_codebooks, g.n_fine_codebooks):
        codes = torch.full((1, g.max_fine_input_length, g.n_fine_codebooks), g.codebook_size)
        codes[0, :n_frames, :codebook] = said.fine[:codebook, :n_frames].T
        found.append(model(codes, codebook)[0, :n_frames, : g.codebook_size])
    return torch.cat(found)


def compare(exact: Tensor, reduced: Tensor) -> dict[str, float]:
    """Sums over steps: Kullback-Leibler divergence in nats, equal likeliest tokens, steps."""
    log_p, log_q = exact.double().log_softmax(-1), reduced.double().log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum()
    equal = (exact.argmax(-1) == reduced.argmax(-1)).sum()
    return {"kl": float(divergence), "top1": float(equal), "steps": float(len(exact))}


def measure(model: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Mean divergence and agreement of each precision and stage."""
    exact = minibark.Bark.from_pretrained(model, device="cpu", precision="float32")
    voice = exact.load_voice(args.voice)
    limit_s = max_duration_s(args.semantic_tokens, exact.config.generation.semantic_rate_hz)
    streams = {"semantic": semantic_logits, "coarse": coarse_logits, "fine": fine_logits}
    texts = TEXTS[: args.texts]
    said = []
    for seed, text in enumerate(texts):
        said.append(exact.generate_voice(text, voice, seed=seed, max_duration_s=limit_s))
        print(f"text {seed + 1} of {len(texts)} spoken", file=sys.stderr)
    results = []
    wanted = {
        (stage, text): streams[stage](exact, text, voice, spoken)
        for stage in STAGES
        for text, spoken in zip(texts, said, strict=True)
    }
    for precision in args.precision:
        bark = minibark.Bark.from_pretrained(model, device="cpu", precision=precision)
        stages = {}
        for stage in STAGES:
            sums = {"kl": 0.0, "top1": 0.0, "steps": 0.0}
            for text, spoken in zip(texts, said, strict=True):
                got = streams[stage](bark, text, voice, spoken)
                for name, value in compare(wanted[stage, text], got).items():
                    sums[name] += value
            n = int(sums["steps"])
            stages[stage] = {"kl_nats": sums["kl"] / n, "top1": sums["top1"] / n, "steps": n}
        results.append({"precision": precision, "path": bark.describe(), "stages": stages})
        print(f"{precision} done", file=sys.stderr)
    return results


def print_results(results: list[dict[str, Any]]) -> None:
    """A line for each precision and stage."""
    row = "{:<9} {:<9} {:>7} {:>12} {:>16}"
    print(row.format("precision", "stage", "steps", "KL, nats", "same top token"))
    for result in results:
        for stage, found in result["stages"].items():
            kl, top1 = f"{found['kl_nats']:.2e}", f"{found['top1']:.2%}"
            print(row.format(result["precision"], stage, found["steps"], kl, top1))
    for result in results:
        print(f"{result['precision']}: {result['path']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare the logits of reduced precisions with float32's on the same tokens.",
        epilog="KL: mean Kullback-Leibler divergence from float32's distribution, at temperature "
        "1. Same top token: share of steps whose likeliest token is the same. The last line is "
        "JSON.",
    )
    precision = {"choices": PRECISIONS[1:], "default": list(PRECISIONS[1:])}
    names = "model precision semantic-tokens voice threads seed json"
    add_options(parser, names, model="tiny", precision=precision, semantic_tokens=400)
    parser.add_argument("--texts", type=positive, default=len(TEXTS), metavar="N", help="at most")
    args = parse(parser)
    with one_line("bench_quality"), checkpoint(args.model, args.seed) as model:
        results = measure(model, args)
    card = machine_card(torch.device("cpu"))
    print_card(card)
    print(f"{args.model}, voice {args.voice or 'none'}, {args.texts} texts")
    print_results(results)
    close("quality", args, card=card, results=results)


if __name__ == "__main__":
    main()
