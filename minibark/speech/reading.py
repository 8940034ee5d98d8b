"""From a text or a dialog to turns, and from turns to sound: what `Bark`'s long doors call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ..checkpoint.voices import VoiceLike
from ..options import Options
from ..pipeline import Audio
from ..sampling import OnStep
from ..stages import Stages
from ..text import plain, readable
from ..voice import Voice
from .batch import MOST_ROWS
from .dialog import DialogError, parse_dialog
from .pieces import OnPieces, Speaker, Spoken, Turn, cut, first_short, is_one
from .plan import LongOptions


class Reading:
    """One reading: what will be said, checked and cut, and then its sound.

    Attributes:
        turns: the pieces, and who says each.
        voices: of each speaker; a text's has the name "".
    """

    def __init__(self, stages: Stages, options: Options, plan: LongOptions) -> None:
        self._stages, self._options, self._plan = stages, options, plan
        self.turns: list[Turn] = []
        self.voices: dict[str, Voice | None] = {}

    def text(self, text: str, voice: VoiceLike = None) -> Reading:
        """Read a text in one voice."""
        _check_text(text)
        self.voices = {"": self._stages.load_voice(voice)}
        self.turns = self._turns(text, "")
        return self

    def begin_short(self) -> Reading:
        """Let the first sentence of a text be a piece of its own, so that sound comes early."""
        stages, pieces = self._stages, [turn.piece for turn in self.turns]
        limit = stages.config.generation.max_input_semantic_length
        pieces = first_short(pieces, stages.tokenizer, limit, self._plan)
        self.turns = [Turn(piece) for piece in pieces]
        return self

    @property
    def is_one(self) -> bool:
        """Whether there is no more to it than one utterance in one voice."""
        return set(self.voices) == {""} and is_one([turn.piece for turn in self.turns])

    def dialog(self, text: str, speakers: Mapping[str, VoiceLike]) -> Reading:
        """Read lines `NAME: text` in these voices."""
        _check_text(text)
        if not isinstance(speakers, Mapping):
            raise DialogError(
                f"speakers must be a mapping, name to voice, not {type(speakers).__name__}"
            )
        if (self._options.normalize or self._stages.normalize) == "all":
            text = plain(text, self._stages.tokenizer, "all")  # marks may stand before names
        lines = parse_dialog(text, speakers)
        self.voices = {name: self._stages.load_voice(speakers[name]) for name in speakers}
        self.turns = []
        for number, line in enumerate(lines, 1):
            try:
                self.turns += self._turns(line.text, line.speaker)
            except ValueError as error:
                raise DialogError(f"part {number}, {line.speaker}: {error}") from error
        return self

    def pieces(
        self,
        on_step: OnStep | None = None,
        at_once: int = MOST_ROWS,
        on_pieces: OnPieces | None = None,
    ) -> Iterator[Spoken]:
        """Each piece as soon as it is made; arguments are those of `Speaker.speak`."""
        stages = self._stages
        speaker = Speaker(stages.pipeline, stages.tokenizer, self.voices, self._options, self._plan)
        return speaker.speak(self.turns, on_step, on_pieces, at_once)

    def sound(
        self,
        on_step: OnStep | None = None,
        at_once: int = MOST_ROWS,
        on_pieces: OnPieces | None = None,
        on_voice: Callable[[Voice], object] | None = None,
    ) -> Iterator[Audio]:
        """The sound of each piece, with the silences around it; `on_voice` is given its tokens."""
        for index, one in enumerate(self.pieces(on_step, at_once, on_pieces)):
            if on_voice:
                on_voice(one.voice)
            yield self.with_silences(index, one)

    def with_silences(self, index: int, one: Spoken) -> Audio:
        """The sound of the piece of that index, with the silences around it."""
        is_last = index == len(self.turns) - 1
        behind_s = one.piece.pause_after_s + (0 if is_last else self._plan.silence_s)
        before, behind = (
            np.zeros(round(seconds * self._stages.sample_rate), np.float32)
            for seconds in (one.piece.pause_before_s, behind_s)
        )
        return np.concatenate((before, one.audio, behind))

    def _turns(self, text: str, speaker: str) -> list[Turn]:
        stages, plan = self._stages, self._plan
        level = self._options.normalize or stages.normalize
        text = readable(text, stages.tokenizer, level, is_cut=True)
        limit = stages.config.generation.max_input_semantic_length
        pieces = cut(text, stages.tokenizer, limit, plan)
        return [Turn(piece, speaker) for piece in pieces]


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(f"text must be one str, not {type(text).__name__}")
