"""How each token was chosen: its probability, its rank, and how open the choice was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import GenerationConfig
from ..sampling import Sampling, probabilities

Array = np.ndarray[Any, Any]
_CHUNK = 64  # steps whose distributions are looked at together


@dataclass(frozen=True)
class Draws:
    """How each token of a stream was chosen; all arrays have the stream's shape.

    Attributes:
        tokens: int64.
        p: float32, of the token in the distribution that it was drawn from: after top-k, top-p and
            temperature. 1 where the likeliest is always taken.
        own_p: float32, the same in the model's own distribution, at temperature 1.
        entropy: float32, bits, of the distribution that it was drawn from.
        rank: int64, 1 for the likeliest token.
    """

    tokens: Array
    p: Array
    own_p: Array
    entropy: Array
    rank: Array


def draws_of(logits: Sequence[Tensor], tokens: Tensor, sampling: Sampling) -> Draws:
    """The draws of tokens (n,), as indices into the logits (V,) of each step; (n,)."""
    n = len(tokens)
    p, own_p, entropy = (torch.zeros(n, dtype=torch.float32) for _ in range(3))
    rank = torch.zeros(n, dtype=torch.int64)
    for start in range(0, n, _CHUNK):
        part = slice(start, min(start + _CHUNK, n))
        some, drawn = torch.stack(list(logits[part])), tokens[part, None]
        probs = probabilities(some, sampling)
        p[part] = probs.gather(1, drawn)[:, 0]
        own_p[part] = some.softmax(-1).gather(1, drawn)[:, 0]
        entropy[part] = torch.special.entr(probs).sum(-1) / np.log(2)
        rank[part] = (some > some.gather(1, drawn)).sum(-1) + 1
    return Draws(*(found.numpy() for found in (tokens, p, own_p, entropy, rank)))


def end_probabilities(logits: Sequence[Tensor], sampling: Sampling) -> Array:
    """(n,) float32, the probability of the last id at each step."""
    found = [float(probabilities(step[None], sampling)[0, -1]) for step in logits]
    return np.array(found, dtype=np.float32)


def draws_of_fine(
    logits: Sequence[Tensor],
    fine: Tensor,
    n_given: int,
    n_history: int,
    sampling: Sampling,
    config: GenerationConfig,
) -> tuple[Draws, Array]:
    """The draws of the codebooks that the fine stage predicted, and how often it did.

    Args:
        logits: of each pass, (frames that it fills, V); passes go through the codebooks of a
            buffer, then of the next.
        fine: (K, T) int64, all codes as they came out.
        n_given: codebooks that were given.
        n_history: frames of the voice before them.
        sampling: how codes were chosen.
        config: lengths.

    Returns:
        (K - n_given, T) draws, of each frame's last prediction; (T,) int64, how many it had.
    """
    n_codebooks, n_frames = fine.shape
    length, hop = config.max_fine_input_length, config.max_fine_history_length
    n_all = max(length, n_history + n_frames)
    times = torch.zeros(n_frames, dtype=torch.int64)
    shape = (n_codebooks - n_given, n_frames)
    p, own_p, entropy = (np.zeros(shape, np.float32) for _ in range(3))
    draws = Draws(fine[n_given:].numpy(), p, own_p, entropy, np.zeros(shape, np.int64))
    for number, frames in enumerate(logits):
        buffer, row = divmod(number, n_codebooks - n_given)
        first = min(n_history + buffer * hop, n_all - hop) - n_history
        here = slice(max(first, 0), min(first + len(frames), n_frames))
        codes = fine[n_given + row, here]
        part = draws_of(list(frames[here.start - first :, : config.codebook_size]), codes, sampling)
        for name in ("p", "own_p", "entropy", "rank"):
            getattr(draws, name)[row, here] = getattr(part, name)
        if row == 0:
            times[here] += 1
    return draws, times.numpy()
