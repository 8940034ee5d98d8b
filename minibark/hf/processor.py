"""Texts to ids, and voices to histories.

Source: transformers, models/bark/processing_bark.py.
"""

from __future__ import annotations

import os
from collections import UserDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.layouts import open_tokenizer, open_voices
from ..checkpoint.voices import VoiceLike, Voices
from ..config import GenerationConfig
from ..text import readable
from ..tokenizer import Tokenizer
from ..voice import Voice
from .keywords import refuse_unknown


class BatchFeature(UserDict[str, Any]):
    """Arrays by name, which are attributes too. `**` unpacks it."""

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data", {})  # there is none yet while one is unpickled
        if name in data:
            return data[name]
        raise AttributeError(f"no {name!r} here; there are {', '.join(data)}")

    def to(self, device: Any = None, dtype: Any = None, **_: Any) -> BatchFeature:
        """Move the tensors to a device. Ids are whole numbers, so a dtype changes nothing."""
        for name, value in self.items():
            if isinstance(value, (Tensor, BatchFeature)) and not isinstance(device, torch.dtype):
                self[name] = value.to(device=device)
        return self


class BarkProcessor:
    """Texts to ids and voices to histories.

    Attributes:
        tokenizer: text -> ids.
        voices: the checkpoint's voices by name.
    """

    def __init__(self, tokenizer: Tokenizer, voices: Voices, generation: GenerationConfig) -> None:
        self.tokenizer = tokenizer
        self.voices = voices
        self._generation = generation

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | os.PathLike[str],
        speaker_embeddings_dict_path: str | None = "speaker_embeddings_path.json",
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **ignored: Any,
    ) -> BarkProcessor:
        """The processor of a checkpoint, whose weights are not read.

        `speaker_embeddings_dict_path` None leaves the voices out. The other arguments and errors
        are those of `BarkModel.from_pretrained`.
        """
        refuse_unknown(ignored, cls.from_pretrained.__annotations__)
        options: dict[str, Any] = {"cache_dir": cache_dir, "revision": revision}
        options["offline"] = local_files_only
        voices, generation = open_voices(name_or_dir, **options)
        if speaker_embeddings_dict_path is None:
            voices = Voices({}, Path)
        return cls(open_tokenizer(name_or_dir, **options), voices, generation)

    @property
    def available_voice_presets(self) -> list[str]:
        """Names of the checkpoint's voices."""
        return list(self.voices)

    def __call__(
        self,
        text: str | Iterable[str] | None = None,
        voice_preset: VoiceLike = None,
        return_tensors: str | None = "pt",
        max_length: int | None = 256,
        add_special_tokens: bool = False,
        return_attention_mask: bool = True,
        return_token_type_ids: bool = False,
        *,
        truncation: bool = False,
    ) -> BatchFeature:
        """Ids of texts, padded on the right, and a voice.

        Args:
            text: one or several.
            voice_preset: a voice by name or `.npz` path (the ending may be left out), Suno's
                dictionary of three arrays, or a `Voice`.
            return_tensors: `"pt"` for tensors, `"np"` for arrays, None for lists.
            max_length: the least number of ids in a row.
            add_special_tokens: put [CLS] in front and [SEP] behind.
            return_attention_mask: whether to tell ids from pads.
            return_token_type_ids: add as many zeros.
            truncation: cut to `max_length`; without it the model does, and warns.

        Returns:
            `input_ids` and `attention_mask` (B, n) int64 and, with a voice, `history_prompt`:
            `semantic_prompt` (S,), `coarse_prompt` (2, T) and `fine_prompt` (8, T) int64.

        Raises:
            ValueError: not texts, or an unknown `return_tensors`.
            VoiceError: an unknown or damaged voice. FileNotFoundError: no such file.
        """
        texts = (
            [text] if isinstance(text, str) else list(text if isinstance(text, Iterable) else ())
        )
        if not texts or not all(isinstance(each, str) for each in texts):
            raise ValueError(f"text must be a str or several, got {brief(text)}")
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors must be 'pt', 'np' or None, got {return_tensors!r}")
        length = 256 if max_length is None else max_length
        pad, cls, sep = map(self._special, ("[PAD]", "[CLS]", "[SEP]"))
        first, last = ([cls], [sep]) if add_special_tokens else ([], [])
        room = max(0, length - len(first + last)) if truncation else None
        for each in filter(str.strip, texts):
            readable(each, self.tokenizer)  # which tells what cannot be read
        rows = [first + self.tokenizer.encode(each)[:room] + last for each in texts]
        length = max(length, *map(len, rows))
        made: dict[str, Any] = {"input_ids": [row + [pad] * (length - len(row)) for row in rows]}
        if return_token_type_ids:
            made["token_type_ids"] = [[0] * length for _ in rows]
        if return_attention_mask:
            made["attention_mask"] = [[1] * len(r) + [0] * (length - len(r)) for r in rows]
        if return_tensors:
            made = {name: np.array(value, np.int64) for name, value in made.items()}
        elif isinstance(text, str):
            made = {name: value[0] for name, value in made.items()}
        voice = self.voice(voice_preset)
        history: dict[str, Any] = {} if voice is None else voice.to_arrays()
        if return_tensors == "pt":
            made = {name: torch.from_numpy(value) for name, value in made.items()}
            history = {name: torch.from_numpy(value) for name, value in history.items()}
        return BatchFeature(made | ({"history_prompt": BatchFeature(history)} if history else {}))

    def voice(self, voice: VoiceLike) -> Voice | None:
        """The voice that a name, path, dictionary or `Voice` stands for, checked; None stays None.

        Raises:
            VoiceError: an unknown or damaged voice. FileNotFoundError: no such file.
        """
        if isinstance(voice, str) and voice not in self.voices and os.path.isfile(f"{voice}.npz"):
            voice = f"{voice}.npz"
        if isinstance(voice, Mapping):
            voice = {k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in voice.items()}
        found = self.voices.resolve(voice)
        return None if found is None else found.check(self._generation)

    def _special(self, piece: str) -> int:
        vocab = self.tokenizer.vocab
        return vocab.index(piece) if piece in vocab[:1000] else 0
