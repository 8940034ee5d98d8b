"""Sound at another rate, by a windowed sinc."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_CROSSINGS = 6  # zeros of the sinc on each side
_ROLLOFF = 0.99  # the cutoff, of what the lower rate can hold
_BLOCK = 1 << 21  # products at a time


def resample(audio: Tensor, rate: int, new_rate: int) -> Tensor:
    """Audio (N,) float32 at `rate` Hz as (ceil(N * new_rate / rate),) at `new_rate` Hz.

    Each new sample is a sum over the old ones within six zeros of a sinc, under a Hann window.
    What lies beyond the ends is zero. Of any two rates only the taps that are not zero are made.

    Source: torchaudio `functional.resample`, its defaults ("sinc_interp_hann", width 6, 0.99).
    """
    if rate == new_rate:
        return audio
    old, new = (r // math.gcd(rate, new_rate) for r in (rate, new_rate))
    cutoff = _ROLLOFF * min(old, new) / old  # zeros a sample
    reach = math.ceil(_CROSSINGS / cutoff)
    taps = torch.arange(-reach, reach + 2, device="cpu")
    # New sample i lies at i * old / new: whole samples, and a part that comes round every `new`.
    parts = (torch.arange(new, device="cpu") * old % new).float() / new
    zeros = (taps - parts[:, None].double()) * cutoff
    window = (zeros.clamp(-_CROSSINGS, _CROSSINGS) * (math.pi / 2 / _CROSSINGS)).cos() ** 2
    kernels = (zeros.sinc() * window * cutoff).float().to(audio.device)  # (new, taps)
    spans = F.pad(audio, (reach, reach + 1)).unfold(0, len(taps), 1)  # (N, taps), a view
    places = torch.arange(-(-len(audio) * new // old), device=audio.device)
    blocks = [
        (spans[block * old // new] * kernels[block % new]).sum(1)
        for block in torch.split(places, max(_BLOCK // len(taps), 1))
    ]
    return torch.cat(blocks) if blocks else audio
