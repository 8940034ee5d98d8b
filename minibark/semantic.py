"""Text ids -> semantic tokens, the first of Bark's four stages.

The prompt of one utterance, with the released lengths:

    ids        0 ......... 255 | 256 ........ 511 | 512
               text, padded    | voice, padded    | infer
    positions  0 .................... 255         | 256   <- the two blocks' embeddings are added

Pads are real inputs: no attention mask hides them, in training or here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .config import GenerationConfig
from .decoding import CachedDecoder, MakeDecoder, RandomStreams, choose_next
from .files import warn
from .model import GPT
from .sampling import OnStep, Sampling, check_finite

END_TEST_STEPS = 16  # between two looks for the end, where a decoder can take many steps at once


def semantic_prompt(text: Tensor, history: Tensor | None, config: GenerationConfig) -> Tensor:
    """The ids that the text model sees before its first step.

    Args:
        text: (n,) int64 ids of the tokenizer, cut to `max_input_semantic_length` with a warning.
        history: (S,) int64 semantic tokens of a voice, of which the last ones are used; or None.
        config: lengths and special ids.

    Returns:
        (2 * max_input_semantic_length + 1,) int64.

    Source: suno-ai/bark, bark/generation.py, generate_text_semantic.
    """
    length = config.max_input_semantic_length
    if len(text) > length:
        warn(
            f"the text has {len(text)} tokens, of which Bark reads the first {length}: the other "
            f"{len(text) - length} are not spoken. In pieces it is said to the end: by `minibark "
            "say` without --one-piece, or `generate_long` in Python"
        )
    text = text[:length] + config.text_encoding_offset
    history = text[:0] if history is None else history[-length:]
    blocks = (
        F.pad(text, (0, length - len(text)), value=config.text_pad_token),
        F.pad(history, (0, length - len(history)), value=config.semantic_pad_token),
        text.new_tensor([config.semantic_infer_token]),
    )
    return torch.cat(blocks)


def max_semantic_steps(config: GenerationConfig, max_duration_s: float | None) -> int:
    """How many tokens one utterance may have.

    The reference tests a limit after it has kept the token that passes it, so the result lasts at
    least `max_duration_s`, by one token at most.
    """
    duration_s = 0.0
    for step in range(1, config.max_new_tokens):
        duration_s += 1 / config.semantic_rate_hz  # summed, not multiplied: the same rounding
        if max_duration_s is not None and duration_s > max_duration_s:
            return step
    return config.max_new_tokens


@torch.inference_mode()
def generate_semantic(
    model: GPT,
    prompts: Sequence[Tensor],
    config: GenerationConfig,
    sampling: Sampling,
    generators: Sequence[torch.Generator | None],
    *,
    min_eos_p: float | None = 0.2,
    max_duration_s: float | None = None,
    allow_early_stop: bool = True,
    on_step: OnStep | None = None,
    decoder: MakeDecoder = CachedDecoder,
) -> list[Tensor]:
    """The semantic tokens of a batch of utterances.

    A row ends when the end token (`semantic_pad_token`) is drawn or, whatever was drawn, when its
    probability is at least `min_eos_p`; the draw comes first.

    Args:
        model: the text model.
        prompts: B prompts from `semantic_prompt`.
        config: lengths and special ids.
        sampling: how tokens are chosen.
        generators: B random streams.
        min_eos_p: probability of the end token that ends a row; None leaves it to the draw.
        max_duration_s: limit in seconds of audio; None is the model's own (`max_new_tokens`).
        allow_early_stop: False takes the end token away: every row runs to its limit.
        on_step: told of progress.
        decoder: what makes the decoder to run on.

    Returns:
        B tensors (S_b,) int64 in [0, semantic_vocab_size), on the CPU; S_b may be 0.

    Source: suno-ai/bark, bark/generation.py, generate_text_semantic.
    """
    decode = decoder(model, config.max_input_semantic_length)
    device = model.transformer.wpe.weight.device
    streams = RandomStreams(generators, device)
    end = config.semantic_vocab_size
    # Compared in float32, as the reference does.
    least_end_p = math.inf if min_eos_p is None else float(np.float32(min_eos_p))
    ids = slice(0, end + 1 if allow_early_stop else end)
    n_steps = max_semantic_steps(config, max_duration_s)
    rows: list[list[int]] = [[] for _ in prompts]
    live, running = list(range(len(rows))), set(range(len(rows)))  # decoded, and not ended
    logits = decode.prefill(prompts, ids)
    check_finite(logits, "semantic")
    tokens, end_p = choose_next(logits, ids, sampling, streams, [True] * len(rows))
    many, many_p, done = tokens[None], end_p[None], 0
    while True:
        for ahead, (step, step_p) in enumerate(zip(many.tolist(), many_p.tolist(), strict=True), 1):
            done += 1
            for place, row in enumerate(live):
                if row not in running:
                    continue
                if allow_early_stop and (step[place] == end or step_p[place] >= least_end_p):
                    running.discard(row)
                    streams.give_back(place, len(many) - ahead)
                else:
                    rows[row].append(step[place])
            if not running:
                break
            if on_step and done < n_steps:
                on_step("semantic", done, n_steps)
        if not running or done == n_steps:
            break
        kept = [place for place, row in enumerate(live) if row in running]
        if len(kept) < len(live) and decode.keep(kept):
            live, tokens = [live[place] for place in kept], tokens[kept]
            streams = RandomStreams([generators[row] for row in live], device)
        at_once = 1 if streams.shared else min(decode.steps_at_once, END_TEST_STEPS)
        n, active = min(at_once, n_steps - done), [row in running for row in live]
        many, many_p = decode.take_steps(tokens, [ids] * n, sampling, streams, [active] * n)
        tokens = many[-1]
    if on_step:
        on_step("semantic", done, done)
    return [torch.tensor(row, dtype=torch.int64) for row in rows]
