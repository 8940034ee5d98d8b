"""Watching the loops: their logits and the time of each call are kept, and nothing is changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .. import fast
from ..decoding import Decoder
from ..model import GPT, FineGPT
from ..pipeline import Pipeline


@dataclass(frozen=True)
class Call:
    """One call of a stage's model.

    Attributes:
        n_positions: how many positions it computed; 1 is a step.
        seconds: until its logits were on the CPU.
    """

    n_positions: int
    seconds: float


class Watched:
    """What was seen of one stage.

    Attributes:
        calls: of the model, in order.
        logits: of each step the logits (V,) of the ids that could be drawn; of each pass of the
            fine model those (T, V) of the frames that it fills. On the CPU.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.logits: list[Tensor] = []

    def keep(self, compute: Callable[[], Tensor], n_positions: int) -> Tensor:
        """What `compute` gives, (1, ...), noted."""
        start = time.perf_counter()
        logits = compute()
        # Copied, since a recorded step writes the next one's over them.
        self.logits.append(logits[0].to("cpu", copy=True))
        self.calls.append(Call(n_positions, time.perf_counter() - start))
        return logits


class WatchedDecoder(Decoder):
    """A decoder of one row whose steps are noted. It gives what the decoder inside gives.

    Steps are taken one by one, also where the other could take many: its own `decode_one` serves.
    """

    def __init__(self, inner: Decoder, n_merged: int, seen: Watched) -> None:
        self._inner, self._n_merged, self._seen = inner, n_merged, seen

    def prefill(self, prompts: Sequence[Tensor], ids: slice) -> Tensor:
        """See `Decoder`."""
        n_positions = sum(len(prompt) - self._n_merged for prompt in prompts)
        return self._seen.keep(lambda: self._inner.prefill(prompts, ids), n_positions)

    def decode_one(self, tokens: Tensor, ids: slice) -> Tensor:
        """See `Decoder`."""
        return self._seen.keep(lambda: self._inner.decode_one(tokens, ids), 1)

    def keep(self, rows: list[int]) -> bool:
        """See `Decoder`."""
        return self._inner.keep(rows)


def watch(pipeline: Pipeline) -> tuple[Pipeline, dict[str, Watched]]:
    """A pipeline of the same built stages, and what it will have seen of each."""
    seen = {stage: Watched() for stage in ("semantic", "coarse", "fine")}

    def new_decoder(model: GPT, n_merged: int, choice: fast.Choice) -> Decoder:
        # Only the text model merges two blocks of its prompt.
        stage = "semantic" if n_merged else "coarse"
        return WatchedDecoder(pipeline.new_decoder(model, n_merged, choice), n_merged, seen[stage])

    def new_passes(model: FineGPT, choice: fast.Choice) -> fast.Passes:
        passes = pipeline.new_passes(model, choice)

        def watched(codes: Tensor, codebook: int, start: int = 0) -> Tensor:
            return seen["fine"].keep(lambda: passes(codes, codebook, start), codes.shape[1])

        return watched

    return pipeline.watched(new_decoder, new_passes), seen
