"""What can go wrong with a piece of speech, and can be heard from its tokens and its sound."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..config import BarkConfig, GenerationConfig
from ..options import Options
from ..pipeline import Audio
from ..voice import Voice

_LOOP_S, _STILL_S = 1.5, 3.0
_SILENT, _FRAME_S, _MOST_SILENT = 10 ** (-50 / 20), 0.02, 0.75


def fault(
    semantic: Tensor,
    audio: Audio,
    expected_s: float,
    config: GenerationConfig,
    sample_rate: int,
    is_limited: bool = False,
) -> str:
    """What is wrong with a piece, in words; "" is nothing.

    Args:
        semantic: (S,) its semantic tokens.
        audio: (N,) its sound.
        expected_s: how long its text takes to say, about.
        config: rates and lengths.
        sample_rate: Hz.
        is_limited: whether its length was asked for.
    """
    if not len(semantic):
        return "came out empty"
    seconds = len(audio) / sample_rate
    if not is_limited:
        if len(semantic) >= config.max_new_tokens:
            return "did not end"
        if seconds < expected_s / 4 - 0.2:
            return f"is too short for its text ({seconds:.1f} s)"
        if seconds > 3 * expected_s + 3:
            return f"is too long for its text ({seconds:.1f} s)"
    if repeats(semantic, config.semantic_rate_hz):
        return "repeats itself"
    if silent_share(audio, sample_rate) > _MOST_SILENT:
        return "is mostly silent"
    return ""


def fault_of(
    voice: Voice,
    audio: Audio,
    expected_s: float,
    config: BarkConfig,
    options: Options,
    is_cut: bool = False,
) -> str:
    """`fault` of what was made with these options; `is_cut` tells that not all was to be said."""
    is_limited = options.max_duration_s is not None or not options.allow_early_stop or is_cut
    rate = config.codec.sampling_rate
    return fault(voice.semantic, audio, expected_s, config.generation, rate, is_limited)


def repeats(semantic: Tensor, rate_hz: float) -> bool:
    """Whether tokens go round in a loop: a pattern of up to a second, three times and 1.5 s long.

    One token that stays may be a silence, and has three seconds.
    """
    tokens = semantic.numpy()
    for period in range(1, min(int(rate_hz), len(tokens) - 1) + 1):
        same = tokens[period:] == tokens[:-period]
        edges = np.flatnonzero(np.diff(np.concatenate(([0], same, [0]))))
        for first, end in zip(edges[::2], edges[1::2], strict=True):
            is_still = len(set(tokens[first : first + period].tolist())) == 1
            least = (_STILL_S if is_still else _LOOP_S) * rate_hz
            if end - first + period >= max(3 * period, least):
                return True
    return False


def silent_share(audio: Audio, sample_rate: int) -> float:
    """The share of 20 ms frames below -50 dB of full scale."""
    length = max(1, int(_FRAME_S * sample_rate))
    frames = audio[: len(audio) // length * length].reshape(-1, length)
    if not len(frames):
        return 0.0
    return float((np.sqrt(np.square(frames).mean(axis=1)) < _SILENT).mean())
