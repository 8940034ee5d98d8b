"""Step 9: how good it is. A table of figures beside what each must and should be.

Everything is held against the teacher, who says the same sentences in the same voice; hearing is
pocketsphinx's (`hearing.py`). Sentence i is spoken with seed + i, so two runs give the same table,
but for the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import texts
import torch
from codec import Codec, _mel_filters
from codes import encode
from data import unseen_words
from hearing import DIGITS, Ear, mean_pitch_hz
from pystoi import stoi
from teacher import SAMPLING_RATE, Teacher
from tiny import USUAL_SPEED, VOICES, Data, tiny_config, work_argument
from training import load_averaged

from minibark import Bark
from minibark.pipeline import Audio
from minibark.precision import PRECISIONS

DEFAULT_VOICE = next(iter(VOICES))
N_WITHOUT_VOICE = 20
N_RECORDINGS = 60  # for the codec alone
N_STAGES = 60  # sentences that start from the teacher's tokens
_PROSE = ("example", "definition", "list", "everyday")
_OPTIONS = ("temperature", "waveform-temperature", "fine-temperature", "top-p", "min-eos-p")


@dataclass(frozen=True)
class Line:
    """Something to say.

    Attributes:
        text: as it is written.
        words: as the recogniser spells them.
        voice: of `VOICES`, or None for none.
        counted: places of the words that are counted.
        is_digits: whether it is a string of figures.
    """

    text: str
    words: tuple[str, ...]
    voice: str | None
    counted: tuple[int, ...]
    is_digits: bool = False


@dataclass(frozen=True)
class Spoken:
    """What became of a line; `true` is the teacher's."""

    line: Line
    heard: int
    true_heard: int
    duration_s: float
    true_duration_s: float
    pitch_hz: float
    true_pitch_hz: float
    ended: bool
    wall_s: float


@dataclass(frozen=True)
class Figure:
    """A row of the table; less is better where `aim` is less than `must`."""

    name: str
    must: float
    aim: float
    ours: float
    unit: str = ""
    note: str = ""

    def __str__(self) -> str:
        sign = -1 if self.aim < self.must else 1
        reached = [name for name in ("aim", "must") if sign * self.ours >= sign * vars(self)[name]]
        verdict = reached[0] if reached else "FAILS"
        values = [f"{value:.4g} {self.unit}".strip() for value in (self.must, self.aim, self.ours)]
        return (
            f"{self.name:44}" + "".join(f"{v:>10}" for v in [*values, verdict]) + f"  {self.note}"
        )


def main() -> None:
    """Run the step."""
    args = parse_arguments()
    data, ear = Data.load(args.work), Ear()
    bark = Bark.from_pretrained(args.model, device="cpu", precision=args.precision)
    booth = Booth(bark, ear, Teacher(), args)
    prose = choose_prose(data, ear, args.sentences)
    spoken = {
        "sentences": booth.speak("sentences", prose),
        "digits": booth.speak("digits", choose_digits(data, args.digits)),
        "unseen": booth.speak("unseen words", choose_unseen(data, ear, args.unseen)),
        "no voice": booth.speak(
            "no voice", [dataclasses.replace(p, voice=None) for p in prose[:N_WITHOUT_VOICE]]
        ),
    }
    codec = trained_codec(args.work)
    figures = make_table(spoken, codec_stoi(bark, codec, data) if codec else None, args.model)
    print(f"{'':44}{'must':>10}{'aim':>10}{'ours':>10}")
    print("\n".join(map(str, figures)))
    print(f"\n{torch.get_num_threads()} threads, seed {args.seed}, options {booth.options}\n")
    for name, some in spoken.items():
        for voice in [v for v in (*VOICES, None) if any(s.line.voice == v for s in some)]:
            print(describe(name, [s for s in some if s.line.voice == voice]))
    stages = measure_stages(booth, data, codec, args) if args.stages_of_teacher else {}
    if args.json:
        rows = {name: [dataclasses.asdict(s) for s in some] for name, some in spoken.items()}
        document = {
            "figures": [dataclasses.asdict(figure) for figure in figures],
            "stages": stages,
            "options": {"seed": args.seed, "precision": args.precision, **booth.options},
            "threads": torch.get_num_threads(),
            "spoken": rows,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    if args.plot and prose:
        plot(booth.true_audio(prose[0]), booth.our_audio(prose[0], args.seed), prose[0], args.plot)


def parse_arguments() -> argparse.Namespace:
    """The options; those of generation are None where minibark's defaults stand."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work_argument(parser)
    add = parser.add_argument
    tiny = Path(__file__).parents[1] / "tiny"
    add("--model", type=Path, default=tiny, help="a directory (default: %(default)s)")
    add("--precision", choices=PRECISIONS, default="float32", help="(default: %(default)s)")
    add("--sentences", type=int, default=200, help="of the test split (default: %(default)s)")
    add("--digits", type=int, default=50, help="strings of figures (default: %(default)s)")
    add("--unseen", type=int, default=60, help="sentences with unseen words (%(default)s)")
    add("--seed", type=int, default=0, help="of the first sentence (default: %(default)s)")
    for option in _OPTIONS:
        add(f"--{option}", type=float, help="as minibark's; its default where not given")
    add(
        "--stages-of-teacher",
        action="store_true",
        help="also measure what is heard when later stages start from the teacher's tokens",
    )
    add("--json", type=Path, metavar="OUT", help="write all that was measured")
    add("--plot", type=Path, metavar="OUT", help="draw the first sentence, the teacher's and ours")
    return parser.parse_args()


class Booth:
    """Where Bark and the teacher say the same lines and are listened to."""

    def __init__(self, bark: Bark, ear: Ear, teacher: Teacher, args: argparse.Namespace) -> None:
        self.bark, self.ear, self.teacher, self.seed = bark, ear, teacher, args.seed
        given = {option.replace("-", "_") for option in _OPTIONS}
        self.options: Any = {k: v for k, v in vars(args).items() if k in given and v is not None}
        bark.generate("Hello.", DEFAULT_VOICE, seed=0)  # loads and warms up

    def speak(self, name: str, lines: Sequence[Line]) -> list[Spoken]:
        """All lines, spoken by both."""
        return [self._speak(line, self.seed + i) for i, line in enumerate(progress(name, lines))]

    def _speak(self, line: Line, seed: int) -> Spoken:
        true = self.true_audio(line)
        began = time.perf_counter()
        voice = self._voice(line, seed)
        audio = self.bark.decode(voice.fine)
        wall_s = time.perf_counter() - began
        return Spoken(
            line,
            self.heard(audio, line),
            self.heard(true, line),
            len(audio) / SAMPLING_RATE,
            len(true) / SAMPLING_RATE,
            mean_pitch_hz(audio),
            mean_pitch_hz(true),
            len(voice.semantic) < self.bark.config.generation.max_new_tokens,
            wall_s,
        )

    def _voice(self, line: Line, seed: int) -> Any:
        with warnings.catch_warnings(action="ignore"):  # an empty one counts as not heard
            return self.bark.generate_voice(line.text, line.voice, seed=seed, **self.options)

    def our_audio(self, line: Line, seed: int) -> Audio:
        """Bark's."""
        return self.bark.decode(self._voice(line, seed).fine)

    def true_audio(self, line: Line) -> Audio:
        """The teacher's, at the usual speed."""
        voice = VOICES[line.voice or DEFAULT_VOICE]
        return self.teacher.say(line.text, voice, USUAL_SPEED).audio.astype(np.float32) / 32_768

    def heard(self, audio: Audio, line: Line) -> int:
        """How many of the words that count are heard; the choices depend on the line alone."""
        if line.is_digits:
            heard = self.ear.digits(audio, line.words)
        else:
            heard = self.ear.words(audio, line.words, random.Random(line.text))
        return sum(heard[place] for place in line.counted)


def progress(name: str, items: Sequence[Any]) -> Iterator[Any]:
    """The items, counted on stderr."""
    for done, item in enumerate(items, start=1):
        print(f"\r{name} {done}/{len(items)}", end="", file=sys.stderr, flush=True)
        yield item
    print(file=sys.stderr)


def plain_words(text: str, ear: Ear) -> tuple[str, ...]:
    """The 3 to 8 words of a text in lower case, or none if it has others than plain ones."""
    words = tuple(word.strip(".,?!;:'").lower() for word in text.split())
    plain = all(re.fullmatch("[a-z]+", word) and ear.knows(word) for word in words)
    return words if plain and 3 <= len(words) <= 8 else ()


def choose_prose(data: Data, ear: Ear, n: int) -> list[Line]:
    """Test sentences without figures or unusual words, the voices in turn."""
    found = (data.sentences[i] for i in data.of_split("test"))
    readable = (
        (s["text"], words)
        for s in found
        if s["kind"] in _PROSE and (words := plain_words(s["text"], ear))
    )
    return [
        Line(text, words, voice, tuple(range(len(words))))
        for (text, words), voice in zip(itertools.islice(readable, n), itertools.cycle(VOICES))
    ]


def choose_unseen(data: Data, ear: Ear, n: int) -> list[Line]:
    """Sentences with a word that no training sentence has, each word once; only it counts."""
    unseen, voices = set(unseen_words(texts.words(25_000))), itertools.cycle(VOICES)
    lines: list[Line] = []
    for i in data.of_split("unseen"):
        text = data.sentences[i]["text"]
        words = plain_words(text, ear)
        places = tuple(place for place, word in enumerate(words) if word in unseen)
        if places and len(lines) < n:
            unseen.difference_update(words)
            lines.append(Line(text, words, next(voices), places))
    return lines


def choose_digits(data: Data, n: int) -> list[Line]:
    """Strings of 3 to 7 figures that no training sentence has, in figures or in words."""
    taken = set(digit_strings(s["text"] for s in data.sentences if s["split"] == "train"))
    rng, voices = random.Random("digits"), itertools.cycle(VOICES)
    lines: list[Line] = []
    while len(lines) < n:
        figures = rng.choices("0123456789", k=3 + len(lines) % 5)
        if "".join(figures) in taken:
            continue
        taken.add("".join(figures))
        words = tuple(DIGITS[int(figure)] for figure in figures)
        text = (" ".join(figures) + ".", " ".join(figures), " ".join(words) + ".")[len(lines) % 3]
        lines.append(Line(text, words, next(voices), tuple(range(len(words))), is_digits=True))
    return lines


def digit_strings(sentences: Iterable[str]) -> Iterator[str]:
    """All unbroken runs of figures, in whatever spelling."""
    figure_of = {word: str(figure) for figure, word in enumerate(DIGITS)}
    for text in sentences:
        parts = re.findall("[a-z]+|[0-9]", text.lower())
        yield from re.findall("[0-9]+", "".join(figure_of.get(part, part) for part in parts))


def hearing(spoken: Sequence[Spoken]) -> tuple[float, float, float, int]:
    """Shares of words heard from us, from the teacher, the first of the second, and their number.

    All are in per cent.
    """
    n = sum(len(s.line.counted) for s in spoken)
    ours, true = (100 * sum(getattr(s, k) for s in spoken) / n for k in ("heard", "true_heard"))
    return ours, true, 100 * ours / true if true else 0.0, n


def pitches(spoken: Sequence[Spoken]) -> tuple[float, float]:
    """Mean pitch in Hz, ours and the teacher's, over the sentences in which it is found."""
    ours = [s.pitch_hz for s in spoken if s.pitch_hz]
    return float(np.mean(ours)) if ours else 0.0, float(np.mean([s.true_pitch_hz for s in spoken]))


def make_table(
    spoken: dict[str, list[Spoken]], codec_alone: float | None, model: Path
) -> list[Figure]:
    """All rows that have a must and an aim."""
    rows = []
    for part, name, must, aim in (
        ("sentences", "words heard in unseen sentences", 90, 98),
        ("digits", "figures heard in unseen strings", 97, 100),
        ("unseen", "words heard that no training sentence has", 70, 90),
    ):
        if spoken[part]:
            ours, true, ratio, n = hearing(spoken[part])
            note = f"{ours:.1f} % of {n}; the teacher's {true:.1f} %"
            rows.append(Figure(name, must, aim, ratio, "%", note))
    some = spoken["sentences"]
    if some:
        good = [s.ended and abs(s.duration_s / s.true_duration_s - 1) <= 0.25 for s in some]
        n_ended = sum(s.ended for s in some)
        note = f"{n_ended} of {len(some)} end, {sum(good)} of them within 25 %"
        share = 100 * sum(good) / len(good)
        rows.append(Figure("sentences that end, at the right length", 95, 99, share, "%", note))
    if codec_alone is not None:
        note = f"{N_RECORDINGS} test recordings"
        rows.append(Figure("STOI of the codec alone", 0.88, 0.95, codec_alone, note=note))
    for voice in VOICES:
        if mine := [s for s in some if s.line.voice == voice]:
            ours, true = pitches(mine)
            note = f"{ours:.1f} Hz; the teacher's {true:.1f} Hz"
            off = 100 * abs(ours / true - 1)
            rows.append(Figure(f"pitch of {voice}, off by", 10, 5, off, "%", note))
    size_mb = sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) / 1e6
    rows.append(Figure("size of the checkpoint", 20, 10, size_mb, "MB"))
    if audio_s := sum(s.duration_s for s in some):
        wall_s = sum(s.wall_s for s in some)
        note = f"{wall_s:.1f} s for {audio_s:.1f} s of audio"
        rows.append(
            Figure("time per second of audio (RTF)", 0.3, 0.15, wall_s / audio_s, note=note)
        )
    return rows


def describe(name: str, spoken: Sequence[Spoken]) -> str:
    """A line about some sentences of one voice."""
    ours, true, ratio, n = hearing(spoken)
    pitch, true_pitch = pitches(spoken)
    voice = spoken[0].line.voice or f"none, held against {DEFAULT_VOICE}"
    return (
        f"{name}, voice {voice}: heard {ours:.1f} % of {n}, teacher {true:.1f} %, ratio "
        f"{ratio:.1f} %; pitch {pitch:.1f} Hz, teacher {true_pitch:.1f} Hz"
    )


def trained_codec(work: Path) -> Codec | None:
    """Encoder and quantizer as they were trained, if they are there."""
    try:
        codec = load_averaged("codec", Codec(tiny_config(1, 1).codec, freeze_at=0), work)
    except FileNotFoundError as error:
        print(f"codec alone: left out, {error}")
        return None
    assert isinstance(codec, Codec)
    return codec


def codec_stoi(bark: Bark, codec: Codec, data: Data) -> float:
    """Mean STOI of recordings that went through the encoder, 8 codebooks and Bark's decoder."""
    found = []
    for i in progress("codec alone", data.of_split("test")[:N_RECORDINGS]):
        audio = data.samples(i)
        out = bark.decode(encode(codec, audio))[: len(audio)]
        found.append(stoi(audio, out, SAMPLING_RATE, extended=False))
    return float(np.mean(found))


def measure_stages(
    booth: Booth, data: Data, codec: Codec | None, args: argparse.Namespace
) -> dict[str, float]:
    """Share of words heard when stages start from the teacher's own tokens, in per cent.

    The sentences are those of the test split at the usual speed, each in the voice that it was
    recorded in.
    """
    saved = np.load(args.work / "semantic.npz")
    semantic = np.split(saved["tokens"].astype(np.int64), saved["ends"][:-1])
    bark, options = booth.bark, booth.options
    coarse_options = {"top_p": options.get("top_p")}
    if "waveform_temperature" in options:
        coarse_options["temperature"] = options["waveform_temperature"]
    fine_temperature = options.get("fine_temperature", 0.5)
    chosen = []
    for i in data.of_split("test"):
        s = data.sentences[i]
        words = plain_words(s["text"], booth.ear)
        if s["kind"] in _PROSE and s["speed"] == USUAL_SPEED and words:
            chosen.append((i, Line(s["text"], words, s["voice"], tuple(range(len(words))))))
    heard: dict[str, int] = {}
    chosen = chosen[: min(N_STAGES, args.sentences)]
    for i, line in progress("stages", chosen):
        seed = args.seed + i
        made = {"the recording": data.samples(i)}
        given = {
            "the teacher's semantic tokens": bark.semantic_to_coarse(
                semantic[i], line.voice, seed=seed, **coarse_options
            )
        }
        if codec:
            codes = encode(codec, data.samples(i))
            given["the recording's two coarse codebooks"] = codes[:2]
            made["all codes of the recording"] = bark.decode(codes)
        for name, coarse in given.items():
            made[name] = bark.decode(
                bark.coarse_to_fine(coarse, line.voice, temperature=fine_temperature, seed=seed)
            )
        for name, audio in made.items():
            heard[name] = heard.get(name, 0) + booth.heard(audio, line)
    n = sum(len(line.words) for _, line in chosen)
    shares = {name: 100 * count / n for name, count in heard.items()}
    for name, share in shares.items():
        print(f"from {name}: heard {share:.1f} % of {n}")
    return shares


def plot(true: Audio, ours: Audio, line: Line, path: Path) -> None:
    """Draw log-mel spectrograms, the teacher's above and ours below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, figsize=(9, 5), sharex=True, layout="constrained")
    window, hop = 1024, 240
    for axis, name, audio in zip(axes, ("teacher", "minibark"), (true, ours), strict=True):
        padded = torch.from_numpy(np.pad(audio, (0, window)))  # never empty
        spectrum = torch.stft(
            padded, window, hop, window=torch.hann_window(window), return_complex=True
        )
        mel = (spectrum.abs().T @ _mel_filters(window)).T.clamp_min(1e-2).log10() * 20
        extent = (0, mel.shape[1] * hop / SAMPLING_RATE, 0, mel.shape[0])
        axis.imshow(mel, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-40)
        axis.set_ylabel("mel band")
        axis.set_title(f"{name}, {line.voice}: {line.text}", fontsize=9)
    axes[-1].set_xlim(0, max(len(true), len(ours)) / SAMPLING_RATE)
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
