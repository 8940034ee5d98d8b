"""Voices: the token triples that tell Bark how to sound.

An output of Bark, from a fifth of a second on, is a valid voice. The file format is Suno's: an
`.npz` with the arrays `semantic_prompt`, `coarse_prompt` and `fine_prompt`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config import GenerationConfig
from .files import MAX_ARRAY_BYTES, is_file, naming, read_npy, read_npz, replacing

PARTS = ("semantic", "coarse", "fine")


class VoiceError(ValueError):
    """A voice that cannot be used; the text says which array and why."""


@dataclass(frozen=True, eq=False)
class Voice:
    """Three token streams of the same stretch of speech.

    Attributes:
        semantic: (S,) int64 in [0, 10_000), 49.9 Hz.
        coarse: (2, T) int64 codes in [0, 1024), 75 Hz.
        fine: (8, T) int64 codes in [0, 1024), 75 Hz.
        origin: the file it was read from, for error texts.
    """

    semantic: Tensor
    coarse: Tensor
    fine: Tensor
    origin: str = field(default="", kw_only=True, repr=False)

    def check(self, config: GenerationConfig) -> Voice:
        """This voice, if a model with this configuration can use it.

        Raises:
            VoiceError: a wrong dtype, shape or range, or streams whose lengths do not match.

        Source: suno-ai/bark, bark/generation.py, the assertions of generate_coarse.
        """
        with naming(self.origin, VoiceError):
            expected = {
                "semantic": ((None,), config.semantic_vocab_size),
                "coarse": ((config.n_coarse_codebooks, None), config.codebook_size),
                "fine": ((config.n_fine_codebooks, None), config.codebook_size),
            }
            for part, (shape, end) in expected.items():
                tokens, name = getattr(self, part), f"{part}_prompt"
                if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
                    kind = getattr(tokens, "dtype", type(tokens).__name__)
                    raise VoiceError(f"{name} must be a torch.int64 tensor, got {kind}")
                fits = tokens.ndim == len(shape) and shape[0] in (None, tokens.shape[0])
                if not fits or tokens.shape[-1] == 0:
                    expected_shape = str(shape).replace("None", "n >= 1")
                    raise VoiceError(
                        f"{name} must have shape {expected_shape}, got {tuple(tokens.shape)}"
                    )
                low, high = int(tokens.min()), int(tokens.max())
                if low < 0 or high >= end:
                    raise VoiceError(f"{name} must hold ids in [0, {end}), got {low} to {high}")
            n_semantic, n_coarse, n_fine = (getattr(self, part).shape[-1] for part in PARTS)
            ratio = config.coarse_rate_hz / config.semantic_rate_hz
            if round(n_coarse / n_semantic, 1) != round(ratio, 1) or n_coarse != n_fine:
                raise VoiceError(
                    f"the lengths do not match: semantic_prompt has {n_semantic} tokens, "
                    f"coarse_prompt {n_coarse} and fine_prompt {n_fine} frames; coarse and fine "
                    f"must be equal, and {ratio:.3f} times semantic to one decimal"
                )
        return self

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], origin: str = "") -> Voice:
        """A voice from Suno's dictionary (`semantic_prompt`, `coarse_prompt`, `fine_prompt`).

        Args:
            arrays: of whole numbers, by these names.
            origin: the file they come from, for error texts.

        Raises:
            VoiceError: an array is missing or does not hold whole numbers.
        """
        parts = {}
        for part in PARTS:
            name = f"{part}_prompt"
            with naming(origin, VoiceError):
                if name not in arrays:
                    raise VoiceError(f"{name} is missing; a voice needs all three arrays")
                with naming(name, VoiceError):
                    array = np.asarray(arrays[name])
                if array.dtype.kind not in "iu":
                    raise VoiceError(f"{name} must hold whole numbers, got dtype {array.dtype}")
                parts[part] = torch.from_numpy(array.astype(np.int64))
        return cls(**parts, origin=origin)

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Suno's dictionary, the inverse of `from_arrays`."""
        return {f"{part}_prompt": getattr(self, part).cpu().numpy() for part in PARTS}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Voice:
        """A voice from an `.npz` file. Nothing in the file is executed (no pickles).

        Raises:
            FileNotFoundError: no such file. PermissionError: it may not be read.
            VoiceError: not a voice, damaged, or with an array that is missing or misshapen.
        """
        return cls.of_files({"": Path(os.path.expanduser(path))})

    @classmethod
    def of_files(cls, paths: Mapping[str, Path]) -> Voice:
        """A voice from one `.npz` (key "") or from one `.npy` per part; errors as of `load`."""
        arrays: dict[str, Any] = {}
        for part, path in paths.items():
            if not is_file(path):
                raise FileNotFoundError(f"no voice file at {path}")
            if path.stat().st_size > MAX_ARRAY_BYTES:
                raise VoiceError(f"{path} is larger than {MAX_ARRAY_BYTES >> 20} MiB: not a voice")
            data = io.BytesIO(path.read_bytes())
            with naming(f"{path} is not a readable voice", VoiceError):
                if part:
                    arrays[f"{part}_prompt"] = read_npy(data)
                else:
                    arrays |= read_npz(data, [f"{part}_prompt" for part in PARTS])
        return cls.from_arrays(arrays, ", ".join(map(str, paths.values())))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an `.npz` that suno/bark and minibark read.

        Raises:
            ValueError: the name does not end in `.npz`.
            OSError: the place cannot be written; what was there before is untouched.
        """
        if Path(path).suffix.lower() != ".npz":
            raise ValueError(f"a voice file must end in .npz, got {os.fspath(path)!r}")
        buffer = io.BytesIO()  # zip files are written with seeks, which devices and pipes lack
        np.savez(buffer, **self.to_arrays())  # type: ignore[arg-type]
        with replacing(path) as part:
            part.write_bytes(buffer.getvalue())
