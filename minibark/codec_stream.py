"""Codes to audio piece by piece: the codec's decoder, with its past carried from block to block.

Nothing in the decoder looks ahead but its start, which mirrors what follows. So all that one block
hands to the next is each convolution's last `context` inputs, each transposed convolution's last
input and the LSTM's states, and the first block must be long enough for every mirror.

Blocks are short, whatever the pieces are, and their lengths are few: on a CPU oneDNN keeps memory
for each length that it has met, and short blocks stay in the processor's caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .surroundings import running

Piece = Tensor | np.ndarray[Any, Any]
"""(K, T) codes, whole numbers; T may be 0."""
Audio = np.ndarray[Any, np.dtype[np.float32]]
"""(N,) float32 in about [-1, 1]."""

_BLOCK = 64  # frames that go through the decoder together
_STEP = 16  # frames; a shorter block takes as long as this one, or longer


def stream_audio(
    latent: Callable[[Tensor], Tensor], layers: nn.Sequential, pieces: Iterable[Piece]
) -> Iterator[Audio]:
    """The audio of a clip in pieces, each sample as soon as no later code can change it.

    No setting of torch is changed, and no inference mode on, while this waits at a `yield`.

    Args:
        latent: (1, K, T) int64 codes -> (1, D, T), on the device of `layers`; checks the codes.
        layers: (1, D, T) -> (1, 1, hop_length * T), those of the codec's decoder.
        pieces: the clip's codes, with one K for all.

    Yields:
        (N,) samples, N > 0; joined, they are hop_length times as many as frames came.

    Raises:
        ValueError: a piece that is not (K, T) whole numbers, or what `latent` raises.
    """
    decoder = _Decoder(layers)
    device = next(layers.parameters()).device
    waiting: Tensor | None = None  # (1, D, T)
    n_codebooks = 0
    for piece in pieces:
        codes = _codes(piece)
        n_codebooks = n_codebooks or len(codes)
        if len(codes) != n_codebooks:
            raise ValueError(
                f"every piece must have the {n_codebooks} codebooks of the first, "
                f"got shape {tuple(codes.shape)}"
            )
        with running(device), torch.inference_mode():
            fresh = latent(codes[None].to(device))
            waiting = fresh if waiting is None else torch.cat((waiting, fresh), dim=-1)
        while waiting.shape[-1] >= decoder.n_least:
            yield decoder.decode(waiting[..., : decoder.n_most])
            waiting = waiting[..., decoder.n_most :]
    if waiting is not None and waiting.shape[-1]:
        yield decoder.decode(waiting)  # shorter than a mirror: as zeros in front make up for it


class _Decoder:
    """The decoder's layers and the past of one clip.

    Attributes:
        n_least: frames that the next block must have, unless the clip ends with it.
        n_most: frames that a block may have.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        self._layers = layers
        self._device = next(layers.parameters()).device
        self._past: dict[nn.Module, Any] = {}
        self.n_least, rate = 1, 1
        for layer in layers.modules():
            if isinstance(layer, nn.ConvTranspose1d):
                rate *= layer.stride[0]
            elif hasattr(layer, "context"):
                n_mirrored = cast(Any, layer).context + 1
                self.n_least = max(self.n_least, math.ceil(n_mirrored / rate))
        self.n_most = max(_BLOCK, self.n_least)

    def decode(self, latent: Tensor) -> Audio:
        """Samples (N,) of (1, D, T), which go on from those of the last call."""
        n = latent.shape[-1]
        with running(self._device), torch.inference_mode():
            if n >= self.n_least:  # else a mirror would show what is added
                latent = F.pad(latent, (0, -n % _STEP))
            audio, n = self._through(self._layers, latent, n)
            samples: Audio = audio[0, 0, :n].cpu().numpy()
        self.n_least = 1
        return samples

    def _through(self, layer: nn.Module, x: Tensor, n: int) -> tuple[Tensor, int]:
        """What a layer of the codec makes of (B, C, T), and how many steps of it are real.

        Args:
            layer: a module of `codec.py`, or one of torch's that keeps no past.
            x: of which the first `n` steps are real.
            n: at most T.
        """
        parts = cast(Any, layer)
        if isinstance(layer, nn.Sequential):
            for part in layer:
                x, n = self._through(part, x, n)
            return x, n
        if hasattr(layer, "shortcut"):
            y, _ = self._through(parts.block, x, n)
            return y.add_(self._through(parts.shortcut, x, n)[0]), n
        if hasattr(layer, "lstm"):  # its states at step n are wanted, so it sees nothing else
            steps = x[..., :n].permute(2, 0, 1)  # (n, B, C)
            y, self._past[layer] = parts.lstm(steps, self._past.get(layer))
            return F.pad((y + steps).permute(1, 2, 0), (0, x.shape[-1] - n)), n
        if hasattr(layer, "ratio"):
            past = self._past.get(layer)
            x = torch.cat((x.new_zeros(*x.shape[:2], 1) if past is None else past, x), dim=-1)
            self._past[layer] = x[..., n : n + 1].clone()
            return parts.conv(x)[..., parts.ratio : -parts.ratio], n * parts.ratio
        if getattr(layer, "context", 0):
            past = self._past.get(layer)
            x = torch.cat((parts.mirror(x) if past is None else past, x), dim=-1)
            self._past[layer] = x[..., n : n + parts.context].clone()
            return parts.conv(x), n
        return layer(x), n


def _codes(piece: Piece) -> Tensor:
    """A piece as (K, T) int64."""
    array = piece.cpu().numpy() if isinstance(piece, Tensor) else np.asarray(piece)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(
            f"a piece must be codes (K, T), whole numbers, got {array.dtype} of shape {array.shape}"
        )
    return torch.from_numpy(array.astype(np.int64, order="C"))
