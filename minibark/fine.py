"""Coarse codes -> all eight codebooks, by a non-causal model over buffers of 1,024 frames.

    codes (8, history + T)      buffer n starts at 512 n; the last is right-aligned
    |-- history <= 512 --|---------- T frames ----------|-- pad up to 1,024 --|
    |============ buffer 0: 1,024 frames ============|
                         |============ buffer 1 =============|

Within a buffer codebooks 2..7 are predicted in turn, each from those below it. Buffer n fills from
frame history + 512 n, or from 512 before its end if that is less, to its end; frames that two
buffers fill are predicted twice and the later prediction stays. Pads (the code 1,024) are attended
to and predicted too, then cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import GenerationConfig
from .model import FineGPT
from .sampling import OnStep, Sampling, check_finite, choose, probabilities
from .voice import Voice


@dataclass
class _Row:
    """One utterance between its history and its padding."""

    codes: Tensor  # (n_history + n_frames + padding, K)
    n_history: int
    n_frames: int
    n_buffers: int


@torch.inference_mode()
def generate_fine(
    model: FineGPT,
    coarses: Sequence[Tensor],
    voices: Sequence[Voice | None],
    config: GenerationConfig,
    sampling: Sampling,
    generators: Sequence[torch.Generator | None],
    *,
    on_step: OnStep | None = None,
    forward: Callable[[Tensor, int, int], Tensor] | None = None,
) -> list[Tensor]:
    """All codebooks of a batch of utterances.

    Args:
        model: the fine model.
        coarses: B tensors (K, T_b) int64 codes in [0, codebook_size); K, the same in all, is at
            least n_codes_given and less than n_fine_codebooks.
        voices: B voices, or None for none.
        config: lengths and codebooks.
        sampling: how codes are chosen; the reference has temperature alone.
        generators: B random streams.
        on_step: told of progress, one step a codebook and buffer.
        forward: what is called in place of the model, with its arguments; its logits are used
            before it is called again.

    Returns:
        B tensors (n_fine_codebooks, T_b) int64 codes in [0, codebook_size), on the CPU; the given
        codebooks are unchanged.

    Source: suno-ai/bark, bark/generation.py, generate_fine.
    """
    device = next(model.parameters()).device
    length, hop = config.max_fine_input_length, config.max_fine_history_length
    n_codebooks, n_given, pad = config.n_fine_codebooks, len(coarses[0]), config.codebook_size
    rows = []
    for coarse, voice in zip(coarses, voices, strict=True):
        history = voice.fine[:, -hop:] if voice else coarse.new_zeros((n_codebooks, 0)).cpu()
        # Not F.pad, which before torch 2.10 refuses a tensor without frames.
        missing = torch.full((n_codebooks - n_given, coarse.shape[1]), pad)
        given = torch.cat((coarse.cpu(), missing))
        codes = torch.cat((history, given), dim=1)
        codes = F.pad(codes, (0, max(0, length - codes.shape[1])), value=pad)
        beyond_first = coarse.shape[1] - (length - history.shape[1])
        rows.append(
            _Row(
                codes=codes.T.contiguous().to(device),
                n_history=history.shape[1],
                n_frames=coarse.shape[1],
                n_buffers=1 + max(0, math.ceil(beyond_first / hop)) if coarse.shape[1] else 0,
            )
        )
    n_buffers, done = max(row.n_buffers for row in rows), 0
    for n in range(n_buffers):
        live = [b for b, row in enumerate(rows) if n < row.n_buffers]
        starts = [min(n * hop, len(rows[b].codes) - length) for b in live]
        fills = [min(rows[b].n_history + n * hop, len(rows[b].codes) - hop) for b in live]
        skip = min(fill - start for fill, start in zip(fills, starts, strict=True))
        for codebook in range(n_given, n_codebooks):
            buffers = [
                rows[b].codes[start : start + length] for b, start in zip(live, starts, strict=True)
            ]
            logits = (forward or model)(torch.stack(buffers), codebook, skip)
            logits = logits[..., : config.codebook_size]
            check_finite(logits[:, -1], "fine")
            for i, (b, start, fill) in enumerate(zip(live, starts, fills, strict=True)):
                probs = probabilities(logits[i, fill - start - skip :], sampling)
                chosen = choose(probs, sampling, generators[b])
                rows[b].codes[fill : start + length, codebook] = chosen
            done += 1
            if on_step:
                on_step("fine", done, n_buffers * (n_codebooks - n_given))
    made = [row.codes[row.n_history : row.n_history + row.n_frames] for row in rows]
    return [codes.T.contiguous().cpu() for codes in made]
