"""Voices that a request can name: the checkpoint's, OpenAI's names for them, and uploaded ones."""

from __future__ import annotations

import difflib
import io
import itertools
import re
from typing import Any

from ..checkpoint.voices import language
from ..files import naming, read_npz, shown
from ..stages import Stages
from ..voice import PARTS, Voice, VoiceError
from .errors import RequestError

MOST_UPLOADS = 32
_LONGEST_S = 60.0  # of an uploaded voice
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MOST_COMPARED = 2000  # names, to find those near to one

OPENAI = {
    "alloy": ("female", "v2/en_speaker_9"),
    "ash": ("male", "v2/en_speaker_0"),
    "ballad": ("male_slow", "v2/en_speaker_1"),
    "cedar": ("male", "v2/en_speaker_2"),
    "coral": ("female_fast", "v2/en_speaker_9"),
    "echo": ("male", "v2/en_speaker_3"),
    "fable": ("male_fast", "v2/en_speaker_4"),
    "marin": ("female", "v2/en_speaker_9"),
    "nova": ("female_fast", "v2/en_speaker_9"),
    "onyx": ("male_slow", "v2/en_speaker_6"),
    "sage": ("female_slow", "v2/en_speaker_9"),
    "shimmer": ("female", "v2/en_speaker_9"),
    "verse": ("male_fast", "v2/en_speaker_5"),
}
"""OpenAI's names, and what they are of `tiny` and of Suno's checkpoints; no voice is like OpenAI's.

Of another checkpoint the n-th name, in this order, is the n-th voice by name, from the first again
after the last; where there are no voices, it is none.
"""


class ServedVoices:
    """Names to voices. Nothing that a request says is taken for a path."""

    def __init__(self, stages: Stages, default: str | None = None) -> None:
        """`default` is the name of who speaks where nobody is named; None is nobody."""
        self._stages = stages
        self._uploads: dict[str, Voice] = {}
        own = list(stages.voices)
        self.aliases: dict[str, str | None] = {}
        for index, (name, known) in enumerate(OPENAI.items()):
            if name not in stages.voices:
                there = [one for one in known if one in stages.voices]
                cyclic = own[index % len(own)] if own else None
                self.aliases[name] = there[0] if there else cyclic
        self.default = None if default is None else self.find(default)

    def find(self, name: str | None, param: str = "voice") -> str | None:
        """The voice's own name for a name that a request gives; None is no voice.

        Of None it is the default's.

        Raises:
            RequestError: 404, there is none.
        """
        if name is None:
            return self.default
        if name in self._uploads or name in self._stages.voices:
            return name
        if name in self.aliases:
            return self.aliases[name]
        names = itertools.islice(
            (*self._uploads, *self._stages.voices, *self.aliases), _MOST_COMPARED
        )
        near = difflib.get_close_matches(name[:200], names, n=3, cutoff=0.5)
        listed = "GET /v1/audio/voices, or `minibark voices`, lists them"
        hint = f"did you mean {', '.join(map(shown, near))}?" if near else listed
        message = f"no voice '{shown(name, 60)}'; {hint}"
        raise RequestError(404, message, param=param, code="voice_not_found")

    def load(self, name: str | None) -> Voice | None:
        """The voice of a name that `find` gave.

        Raises:
            VoiceError, FileNotFoundError: the checkpoint's files of it are damaged or away.
        """
        if name is None:
            return None
        uploaded = self._uploads.get(name)
        return uploaded or self._stages.load_voice(self._stages.voices.load(name))

    def listed(self) -> list[dict[str, Any]]:
        """What `/v1/audio/voices` says of each."""
        known_as: dict[str, list[str]] = {}
        for alias, name in self.aliases.items():
            known_as.setdefault(name or "", []).append(alias)
        return [
            {
                "id": name,
                "name": name,
                "object": "voice",
                "language": language(name) or None,
                "aliases": known_as.get(name, []),
                "uploaded": name in self._uploads,
            }
            for name in (*self._stages.voices, *self._uploads)
        ]

    def add(self, name: str, content: bytes) -> float:
        """Keep an uploaded `.npz`, in memory; how long the voice is, seconds.

        Raises:
            RequestError: 422 a bad name or one that is taken, or no sound voice; 409 there are
                `MOST_UPLOADS`.
        """
        if not _NAME.fullmatch(name):
            message = "name must be 1 to 64 letters, digits, dots, dashes or underscores"
            raise RequestError(422, f"{message}, got '{shown(name, 60)}'", param="name")
        if name in self._stages.voices or name in OPENAI:
            raise RequestError(422, f"there is a voice {name!r} already", param="name")
        if len(self._uploads) >= MOST_UPLOADS and name not in self._uploads:
            message = f"{MOST_UPLOADS} uploaded voices are kept; DELETE one first"
            raise RequestError(409, message, code="too_many_voices")
        config = self._stages.config.generation
        try:
            with naming("the upload is not a readable voice", VoiceError):
                arrays = read_npz(io.BytesIO(content), [f"{part}_prompt" for part in PARTS])
            voice = Voice.from_arrays(arrays, name).check(config)
        except VoiceError as error:
            raise RequestError(422, shown(error, 500), code="bad_voice") from None
        length_s = voice.fine.shape[1] / config.coarse_rate_hz
        if length_s > _LONGEST_S:
            message = f"a voice may have {_LONGEST_S:.0f} s, this has {length_s:.0f} s"
            raise RequestError(422, message, code="bad_voice")
        self._uploads[name] = voice
        return float(length_s)

    def remove(self, name: str) -> None:
        """Forget an uploaded voice; RequestError: 404, there is none of that name."""
        if self._uploads.pop(name, None) is None:
            raise RequestError(404, f"no uploaded voice '{shown(name, 60)}'", code="not_found")
