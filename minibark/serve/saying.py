"""What the thread of a speech request does: its text to sound in a format, piece by piece."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator, Mapping

from ..files import overhearing
from ..sampling import OnStep
from ..speech.reading import Reading
from ..stages import Stages
from ..voice import Voice
from .errors import RequestError
from .requests import SpeechRequest, bad_value
from .sound import Encoder, whole
from .work import Part


class Saying:
    """What a job's thread does: read the request's text, say it, put it into a format."""

    def __init__(
        self, stages: Stages, asked: SpeechRequest, voices: Mapping[str, Voice | None]
    ) -> None:
        """`voices` has each speaker's; a text's speaker is ""."""
        self._stages, self._asked, self._voices = stages, asked, voices

    def parts(self, on_step: OnStep) -> Iterator[Part]:
        """Each piece's sound, as soon as it is made.

        Raises:
            ValueError: a text that cannot be said, or options that do not fit the model.
            RequestError: 500, the model made no sound.
        """
        on_step("", 0, 0)
        rate, audio_format = self._stages.sample_rate, self._asked.audio_format
        with overhearing() as heard:
            reading = self._reading()
        warnings = list(dict.fromkeys(heard))
        encoder: Encoder | None = None
        for index, spoken in enumerate(reading.pieces(on_step, 1)):
            audio = reading.with_silences(index, spoken)
            facts = (len(audio), spoken.piece.n_tokens, len(spoken.voice.semantic), spoken.seed)
            if spoken.fault:
                warnings.append(f"piece {index + 1} {spoken.fault} and is kept as it is")
            if len(reading.turns) == 1 and len(audio):
                content = whole(audio, rate, audio_format)
                yield Part(content, *facts, is_all=True, warnings=tuple(warnings))
                return
            if len(audio):
                encoder = encoder or Encoder(rate, audio_format)
                yield Part(encoder.write(audio), *facts, warnings=tuple(warnings))
                warnings.clear()
        if encoder is None:
            message = "the model ended the text at its first step: no sound. Try another seed"
            raise RequestError(500, message, code="no_sound")
        yield Part(encoder.close())

    def _reading(self) -> Reading:
        """The pieces, as `minibark say -o -` has them."""
        asked, options, plan = self._asked, self._asked.options, self._asked.plan
        has_seed = options.seed is not None
        if not has_seed:
            options = dataclasses.replace(options, seed=secrets.randbelow(2**31))
        voices = self._voices
        reading = Reading(self._stages, options, plan)
        if asked.speakers:
            return self._read(reading.dialog(asked.text, voices))
        self._read(reading.text(asked.text, voices[""]))
        if not reading.is_one:
            return reading.begin_short()
        if not has_seed:
            return reading
        # What the seed gives is what is wanted, as `minibark say` makes it.
        plan = dataclasses.replace(plan, retries=0)
        return Reading(self._stages, options, plan).text(asked.text, voices[""])

    def _read(self, reading: Reading) -> Reading:
        """The same; RequestError: 422, the model knows not one word of it."""
        tokenizer = self._stages.tokenizer
        words = [word for turn in reading.turns for word, _ in tokenizer.words(turn.piece.text)]
        if words and not any(map(tokenizer.reads, words)):
            message = "this model can read nothing of the text; write it in a script that it knows"
            raise bad_value("input", message)
        return reading
