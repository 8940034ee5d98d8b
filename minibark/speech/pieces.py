"""Pieces of a long text or a dialog, said one after the other or, if they can be, together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..files import shown, warn
from ..options import Options
from ..pipeline import Audio, Pipeline, Row
from ..sampling import OnStep
from ..tokenizer import Tokenizer
from ..voice import Voice, VoiceError
from .batch import MOST_ROWS
from .faults import fault_of
from .plan import LongOptions
from .split import GOAL, MissingExtraError, Piece, sentences, split

_NEXT_TRY = 1_000_003  # from a piece's seed to that of its next try; pieces have neighbouring seeds


@dataclass(frozen=True)
class Turn:
    """A piece, and who says it."""

    piece: Piece
    speaker: str = ""


@dataclass(frozen=True)
class Spoken:
    """A piece that has been said.

    Attributes:
        piece: its text.
        voice: its tokens.
        audio: (N,) float32, without the silences around it.
        seed: which made it.
        fault: what is wrong with it still; "" is nothing.
        tries: how often it was made.
    """

    piece: Piece
    voice: Voice
    audio: Audio
    seed: int
    fault: str
    tries: int = 1


OnPieces = Callable[[int, int, int], None]
"""Told before pieces are made: the first, the one after the last, and how many there are in all."""


class Speaker:
    """Says turns, of which it keeps the voices."""

    def __init__(
        self,
        pipeline: Pipeline,
        tokenizer: Tokenizer,
        voices: dict[str, Voice | None],
        options: Options,
        plan: LongOptions,
    ) -> None:
        """`voices` has each speaker's voice; None is one that its first piece decides."""
        self.pipeline, self.tokenizer = pipeline, tokenizer
        self.given, self.options, self.plan = dict(voices), options, plan
        self.first_seed = _first_seed(options)

    def speak(
        self,
        turns: Sequence[Turn],
        on_step: OnStep | None = None,
        on_pieces: OnPieces | None = None,
        at_once: int = MOST_ROWS,
    ) -> Iterator[Spoken]:
        """Each turn in order, as soon as it is made.

        Args:
            turns: what to say.
            on_step: told of the progress of each stage.
            on_pieces: told which pieces come next.
            at_once: how many pieces may be made together.
        """
        n_chained = dict.fromkeys(self.given, 0)
        voices = dict(self.given)
        done = 0
        while done < len(turns):
            n = self._n_together(turns[done:], voices, at_once)
            group = list(enumerate(turns[done : done + n], done))
            if on_pieces:
                on_pieces(done, done + n, len(turns))
            for spoken, (_, turn) in zip(self._make(group, voices, on_step), group, strict=True):
                self._remember(turn.speaker, spoken.voice, voices, n_chained)
                yield spoken
            done += n

    def _n_together(
        self, turns: Sequence[Turn], voices: dict[str, Voice | None], at_once: int
    ) -> int:
        """How many turns know their voices already."""
        if self.plan.history != "fixed":
            return 1
        n_known = 0
        while n_known < min(len(turns), at_once) and voices[turns[n_known].speaker]:
            n_known += 1
        return max(1, n_known)

    def _remember(
        self,
        speaker: str,
        made: Voice,
        voices: dict[str, Voice | None],
        n_chained: dict[str, int],
    ) -> None:
        """What a speaker's next piece begins from."""
        try:
            made.check(self.pipeline.config.generation)
        except VoiceError:
            return  # too short to be a voice
        if self.given[speaker] is None:
            self.given[speaker] = made
        n_chained[speaker] += 1
        is_end = n_chained[speaker] % self.plan.chain_length == 0
        voices[speaker] = self.given[speaker] if is_end else made

    def _make(
        self,
        group: Sequence[tuple[int, Turn]],
        voices: dict[str, Voice | None],
        on_step: OnStep | None,
    ) -> list[Spoken]:
        """The turns of a group; what goes wrong is made again."""
        best: dict[int, Spoken] = {}
        tries: dict[int, int] = {}
        wanting = list(group)
        for attempt in range(self.plan.retries + 1):
            made = self._attempt(wanting, voices, attempt, on_step)
            for (index, _), spoken in zip(wanting, made, strict=True):
                if index not in best or not spoken.fault or not len(best[index].audio):
                    best[index] = spoken
                tries[index] = attempt + 1
            wanting = [one for one in wanting if best[one[0]].fault]
            for index, turn in wanting:
                is_last = attempt == self.plan.retries
                then = "is kept as it is" if is_last else "is made again with another seed"
                warn(
                    f"piece {index + 1} ({_begin(turn.piece.text)}) {best[index].fault} and {then}"
                )
            if not wanting:
                break
        return [dataclasses.replace(best[index], tries=tries[index]) for index, _ in group]

    def _attempt(
        self,
        group: Sequence[tuple[int, Turn]],
        voices: dict[str, Voice | None],
        attempt: int,
        on_step: OnStep | None,
    ) -> list[Spoken]:
        device = self.pipeline.choice.device
        seeds = [(self.first_seed + i + attempt * _NEXT_TRY) % 2**63 for i, _ in group]
        rows = [
            Row(
                torch.tensor(self.tokenizer.encode(turn.piece.text), device="cpu"),
                voices[turn.speaker],
                torch.Generator(device).manual_seed(seed),
            )
            for (_, turn), seed in zip(group, seeds, strict=True)
        ]
        spoken = []
        made = self.pipeline.speak(rows, self.options, on_step)
        for (_, turn), seed, voice in zip(group, seeds, made, strict=True):
            audio = self.pipeline.decode(voice.fine)
            expected_s = turn.piece.expected_s
            wrong = fault_of(voice, audio, expected_s, self.pipeline.config, self.options)
            spoken.append(Spoken(turn.piece, voice, audio, seed, wrong))
        return spoken


def is_one(pieces: Sequence[Piece]) -> bool:
    """Whether a text needs no more than one utterance, without silence around it."""
    return len(pieces) == 1 and not (pieces[0].pause_before_s or pieces[0].pause_after_s)


def cut(text: str, tokenizer: Tokenizer, limit: int, plan: LongOptions) -> list[Piece]:
    """The pieces of a text, as `split` makes them, for a model that reads `limit` tokens.

    A model that reads few was trained on short texts and loses words in longer ones: `tiny`, which
    reads 64, two of five in 110 characters, and in its 40 no more than in single sentences.
    """
    goal = plan.goal or min(GOAL, max(1, limit * 5 // 8))
    return split(text, tokenizer, goal=goal, limit=limit, language=plan.language)


def first_short(
    pieces: list[Piece], tokenizer: Tokenizer, limit: int, plan: LongOptions
) -> list[Piece]:
    """The same with the first sentence alone in front, so that sound comes early."""
    first = pieces[0]
    try:
        begin, *others = sentences(first.text, plan.language)
    except MissingExtraError:
        if len(pieces) > 1:
            raise
        others = []  # one piece needs nothing that finds sentences
    if not others:
        return pieces
    one, rest = (cut(part, tokenizer, limit, plan) for part in (begin, "".join(others)))
    one[0] = dataclasses.replace(one[0], pause_before_s=first.pause_before_s)
    rest[-1] = dataclasses.replace(rest[-1], pause_after_s=first.pause_after_s)
    return [*one, *rest, *pieces[1:]]


def _first_seed(options: Options) -> int:
    """The seed of the first piece."""
    if isinstance(options.seed, int):
        return options.seed
    stream = options.seed
    device = None if stream is None else stream.device
    return int(torch.randint(2**62, (), generator=stream, device=device))


def _begin(text: str) -> str:
    return repr(shown(text, 30))
