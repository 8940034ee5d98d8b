"""Word times told from attention (`minibark.study`), against a recogniser's.

    python benchmarks/bench_alignment.py                       # 60 sentences that tiny has not seen
    python benchmarks/bench_alignment.py --sentences 5 --precision int8

The recogniser is pocketsphinx, told the words. Where espeak-ng is installed its own error is
measured first, on recordings of tiny's teacher, who says when each word begins.
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import add_options, close, machine_card, one_line, parse, positive, print_card
from scipy.signal import resample_poly

import minibark
from minibark.pipeline import Audio
from minibark.precision import PRECISIONS
from minibark.study import trace

SENTENCES = Path(__file__).with_name("alignment_sentences.txt")
RECIPE = Path(__file__).parents[1] / "weights" / "recipe"
TEACHERS = {"male": "en-us+edward", "female": "en-us+f5"}
WORDS_PER_MINUTE = 160
_BEFORE_S, _AFTER_S = 0.2, 0.3  # silence around, without which edge words are lost

Times = list[tuple[float, float]]


class Aligner:
    """pocketsphinx, told what is said; its usual beams now and then lose the last word."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        beams = {"beam": 1e-100, "pbeam": 1e-100, "wbeam": 1e-80, "bestpath": False}
        self._decoder = Decoder(samprate=16_000, lm=None, loglevel="FATAL", **beams)

    def times(self, audio: Audio, words: Sequence[str]) -> Times | None:
        """Start and end in seconds of each word in audio (N,), 24 kHz; None if it finds no way."""
        self._decoder.set_align_text(" ".join(words))
        padded = np.pad(audio, (int(_BEFORE_S * 24_000), int(_AFTER_S * 24_000)))
        samples = (np.clip(resample_poly(padded, 2, 3), -1, 1) * 32_767).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), full_utt=True)
        self._decoder.end_utt()
        if self._decoder.hyp() is None:
            return None
        heard = [s for s in self._decoder.seg() if s.word[0] not in "<["]
        if [s.word.partition("(")[0] for s in heard] != list(words):
            return None
        return [
            (s.start_frame / 100 - _BEFORE_S, (s.end_frame + 1) / 100 - _BEFORE_S) for s in heard
        ]


def plain_words(text: str) -> list[str]:
    """The words of a sentence as the recogniser spells them."""
    return [word for one in text.split() if (word := one.strip(".,?!;:'").lower())]


def teacher_times(teacher: Any, text: str, voice: str) -> tuple[Audio, Times] | None:
    """The teacher's recording, and when it says each word; None where it speaks two as one."""
    said = teacher.say(text, TEACHERS[voice], WORDS_PER_MINUTE)
    starts = said.words.tolist()
    if len(starts) != len(plain_words(text)):
        return None
    found = []
    for start, following in zip(starts, [*starts[1:], said.starts[-1]], strict=True):
        # A word ends where its last phone does; a pause after it is none of it.
        ends = [
            int(end)
            for phone, begin, end in zip(said.phones, said.starts, said.starts[1:], strict=False)
            if start <= begin < following and not phone.startswith("_")
        ]
        found.append((start / 24_000, max(ends, default=following) / 24_000))
    return said.audio.astype(np.float32) / 32_768, found


def of_teacher(aligner: Aligner, texts: Sequence[str]) -> Iterator[tuple[Times, Times]]:
    """The recogniser's times and the teacher's own, of each recording."""
    sys.path.insert(0, str(RECIPE))
    from teacher import Teacher

    teacher = Teacher()
    for text in texts:
        for voice in TEACHERS:
            known = teacher_times(teacher, text, voice)
            heard = aligner.times(known[0], plain_words(text)) if known else None
            if known and heard:
                yield heard, known[1]


def errors(pairs: Sequence[tuple[Times, Times]]) -> dict[str, dict[str, float]]:
    """Of starts, ends and both, in ms: how far the first times are from the second."""
    differences = 1000 * np.array(
        [np.subtract(one, two) for pair in pairs for one, two in zip(*pair, strict=True)]
    )
    found = {}
    for name, some in (("start", differences[:, :1]), ("end", differences[:, 1:])):
        found[name] = _figures(some.ravel())
    return found | {"both": _figures(differences.ravel())}


def _figures(differences: np.ndarray[Any, Any]) -> dict[str, float]:
    sizes = np.abs(differences)
    quantiles = {f"p{q}": float(np.quantile(sizes, q / 100)) for q in (50, 90, 99)}
    return {"n": len(sizes), "bias": float(np.median(differences)), **quantiles}


def print_errors(name: str, found: dict[str, dict[str, float]]) -> None:
    """A line each for starts, ends and both."""
    for kind, one in found.items():
        print(
            f"{name:<36} {kind:<6} {one['n']:>5} {one['bias']:>7.0f} {one['p50']:>7.0f} "
            f"{one['p90']:>7.0f} {one['p99']:>7.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare the word times of minibark.study with a recogniser's.",
        epilog="Errors are in ms: the median of the difference (bias), and what half, 90 and 99 % "
        "of its size are below. The last line is JSON.",
    )
    precision = {"choices": PRECISIONS, "default": "float32", "nargs": None}
    add_options(parser, "precision threads seed json", precision=precision)
    parser.add_argument("--sentences", type=positive, default=60, metavar="N", help="at most")
    args = parse(parser)
    with one_line("bench_alignment"):
        texts = SENTENCES.read_text(encoding="utf-8").splitlines()[: args.sentences]
        aligner, results = Aligner(), {}
        try:
            results["pocketsphinx against espeak-ng"] = errors(list(of_teacher(aligner, texts)))
        except FileNotFoundError as error:
            print(f"the recogniser's own error: left out, {error}", file=sys.stderr)
        bark = minibark.Bark.from_pretrained("tiny", device="cpu", precision=args.precision)
        pairs: dict[str, list[tuple[Times, Times]]] = {voice: [] for voice in TEACHERS}
        best, picked, n_lost = collections.Counter[str](), collections.Counter[str](), 0
        for i, text in enumerate(texts):
            for voice in TEACHERS:
                seen = trace(bark, text, voice, seed=args.seed + i)
                spoken = [t for t in seen.alignment.words if seen.words[t.word].is_spoken]
                heard = aligner.times(seen.audio, plain_words(text))
                if heard is None or len(heard) != len(spoken):
                    n_lost += 1
                    continue
                pairs[voice].append(([(t.start_s, t.end_s) for t in spoken], heard))
                names = [f"layer {h.layer} head {h.head}" for h in seen.alignment.heads]
                best[names[0]] += 1
                picked.update(names)
            print(f"sentence {i + 1} of {len(texts)}", file=sys.stderr)
        for voice, some in pairs.items():
            results[f"study, {voice}, against pocketsphinx"] = errors(some)
        results["study against pocketsphinx"] = errors([p for some in pairs.values() for p in some])
    card = machine_card(torch.device("cpu"))
    print_card(card)
    print(f"{'':<36} {'':<6} {'n':>5} {'bias':>7} {'median':>7} {'90 %':>7} {'99 %':>7}")
    for name, found in results.items():
        print_errors(name, found)
    n_clips = sum(map(len, pairs.values()))
    print(f"{n_clips} clips, {n_lost} more that the recogniser did not align; best head: {best}")
    print(f"heads that were picked: {picked}")
    heads = {"best": dict(best), "picked": dict(picked)}
    close("alignment", args, card=card, results=results, heads=heads, clips=n_clips, lost=n_lost)


if __name__ == "__main__":
    main()
