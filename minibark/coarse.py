"""Semantic tokens -> the two coarse codebooks, in windows of 60 steps.

The prompt of one window, with the released lengths (the blocks stand one after the other):

    0 ............ 255 | 256   | 257 ............................ <= 886
    semantic, padded   | infer | coarse ids so far, the last 630

Coarse ids alternate between the codebooks: frame 0 codebook 0, frame 0 codebook 1, frame 1 codebook
0, ...; the code c of codebook k is the id `semantic_vocab_size + k * codebook_size + c`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import GenerationConfig
from .decoding import CachedDecoder, MakeDecoder, RandomStreams, choose_next
from .model import GPT
from .sampling import OnStep, Sampling, check_finite
from .voice import Voice


@dataclass
class Row:
    """One utterance: the ids so far, histories in front."""

    semantic: Tensor  # (S_history + S,)
    coarse: Tensor  # (n_history + n_steps,) ids; zero where not made yet
    n_semantic_history: int
    n_history: int
    n_steps: int


def n_coarse_steps(n_semantic: int, config: GenerationConfig) -> int:
    """How many coarse ids stand for so many semantic tokens: whole frames, rounded down."""
    n_codebooks = config.n_coarse_codebooks
    frames = math.floor(n_semantic * config.semantic_to_coarse_ratio / n_codebooks)
    return round(frames * n_codebooks)


def coarse_history(voice: Voice | None, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """The part of a voice that goes in front of the first window; of None, nothing.

    Returns:
        semantic: (S',) int64, an even number of tokens where the voice is shorter than the limit.
        coarse: (n',) int64 ids, flattened; n' is odd where S' times the ratio rounds to odd.

    Source: suno-ai/bark, bark/generation.py, generate_coarse.
    """
    empty = torch.zeros(0, dtype=torch.int64, device="cpu")
    if voice is None:
        return empty, empty
    ratio, n_codebooks = config.semantic_to_coarse_ratio, config.n_coarse_codebooks
    offsets = torch.arange(n_codebooks, device="cpu")[:, None] * config.codebook_size
    ids = (voice.coarse + offsets + config.semantic_vocab_size).T.flatten()
    n_semantic = min(
        math.floor(config.max_coarse_history / ratio),
        len(voice.semantic) - len(voice.semantic) % 2,
        math.floor(len(ids) / ratio),
    )
    n_coarse = round(n_semantic * ratio)
    if n_semantic == 0:
        return empty, empty
    # The reference forgets a voice's last frame "for time alignment (sounds better)".
    return voice.semantic[-n_semantic:], ids[-n_coarse:][:-n_codebooks]


def window_prompt(row: Row, step: int, config: GenerationConfig) -> Tensor:
    """The ids (n,) int64 in front of the window that starts at `step`."""
    ratio = config.semantic_to_coarse_ratio
    length = config.max_coarse_input_length
    # round() is banker's rounding, in the reference too.
    here = row.n_semantic_history + round(step / ratio)
    first = max(0, here - math.floor(config.max_coarse_history / ratio))
    semantic = row.semantic[first : first + length]
    blocks = (
        F.pad(semantic, (0, length - len(semantic)), value=config.coarse_semantic_pad_token),
        semantic.new_tensor([config.coarse_infer_token]),
        row.coarse[: row.n_history + step][-config.max_coarse_history :],
    )
    return torch.cat(blocks)


@torch.inference_mode()
def generate_coarse(
    model: GPT,
    semantics: Sequence[Tensor],
    voices: Sequence[Voice | None],
    config: GenerationConfig,
    sampling: Sampling,
    generators: Sequence[torch.Generator | None],
    *,
    on_step: OnStep | None = None,
    decoder: MakeDecoder = CachedDecoder,
) -> list[Tensor]:
    """The coarse codes of a batch of utterances.

    Args:
        model: the coarse model.
        semantics: B tensors (S_b,) int64 in [0, semantic_vocab_size).
        voices: B voices, or None for none.
        config: rates, lengths and special ids.
        sampling: how codes are chosen.
        generators: B random streams.
        on_step: told of progress.
        decoder: what makes the decoder to run on.

    Returns:
        B tensors (n_coarse_codebooks, T_b) int64 codes in [0, codebook_size), on the CPU, where
        T_b = floor(S_b * coarse_rate_hz / semantic_rate_hz).

    Source: suno-ai/bark, bark/generation.py, generate_coarse.
    """
    decode = decoder(model, 0)
    device, window_len = model.transformer.wpe.weight.device, config.sliding_window_len
    rows = [start_row(*given, config) for given in zip(semantics, voices, strict=True)]

    def ids(step: int) -> slice:
        codebook = step % config.n_coarse_codebooks
        first = config.semantic_vocab_size + codebook * config.codebook_size
        return slice(first, first + config.codebook_size)

    tokens = torch.zeros(0, dtype=torch.int64)
    prompts: list[Tensor] = []
    total = max((row.n_steps for row in rows), default=0)
    for window in range(0, total, window_len):
        live = [b for b, row in enumerate(rows) if row.n_steps > window]
        streams = RandomStreams([generators[b] for b in live], device)
        before, prompts = prompts, [window_prompt(rows[b], window, config) for b in live]
        step, end = window, min(window + window_len, total)
        while step < end:
            if step == window and not all_grew(before, prompts, window_len):
                logits = decode.prefill(prompts, ids(step))
                check_finite(logits, "coarse")
                active = [rows[b].n_steps > step for b in live]
                tokens, _ = choose_next(logits, ids(step), sampling, streams, active)
                chosen = tokens[None]
            else:
                steps = range(step, min(step + decode.steps_at_once, end))
                active_at = [[rows[b].n_steps > s for b in live] for s in steps]
                chosen, _ = decode.take_steps(
                    tokens, [ids(s) for s in steps], sampling, streams, active_at
                )
                tokens = chosen[-1]
            for b, new in zip(live, chosen.T.cpu(), strict=True):
                new = new[: max(0, rows[b].n_steps - step)]
                first = rows[b].n_history + step
                rows[b].coarse[first : first + len(new)] = new
            step += len(chosen)
            if on_step:
                on_step("coarse", step, total)
    return [codes(row, config) for row in rows]


def all_grew(before: list[Tensor], after: list[Tensor], n_steps: int) -> bool:
    """Whether every prompt is the one before it and the ids of the steps since.

    Then the cache already holds it all but for the newest token. So it is until the histories are
    full: for the first eleven windows, if there is no voice.
    """
    return len(before) == len(after) > 0 and all(
        len(new) == len(old) + n_steps and torch.equal(new[: len(old)], old)
        for old, new in zip(before, after, strict=True)
    )


def start_row(semantic: Tensor, voice: Voice | None, config: GenerationConfig) -> Row:
    """A row before its first step."""
    before, coarse = coarse_history(voice, config)
    n_steps = n_coarse_steps(len(semantic), config)
    ids = F.pad(coarse, (0, n_steps))
    return Row(torch.cat((before, semantic.cpu())), ids, len(before), len(coarse), n_steps)


def codes(row: Row, config: GenerationConfig) -> Tensor:
    """The codes (n_coarse_codebooks, T) of a row that is done."""
    ids = row.coarse[row.n_history :].view(-1, config.n_coarse_codebooks).T
    offsets = torch.arange(config.n_coarse_codebooks)[:, None] * config.codebook_size
    return ids - config.semantic_vocab_size - offsets
