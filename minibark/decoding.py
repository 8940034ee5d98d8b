"""How a token loop sees a model: it starts with prompts, then takes steps.

`UncachedDecoder` is the specification; `CachedDecoder` is what runs on a CPU; `graph.py` has the
one for GPUs. All give the same tokens, up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .cpu import cache as rowsum
from .model import GPT, KVCache
from .sampling import Sampling, choose, probabilities


class Decoder(Protocol):
    """What a token loop needs of a model; every fast path implements this one contract.

    Attributes:
        steps_at_once: how many steps may be asked for before their tokens are looked at.
        early: whether it wants to be told by `expect`.
    """

    steps_at_once: int = 1
    early: bool = False

    def prefill(self, prompts: Sequence[Tensor], head: slice) -> Tensor:
        """Start over with one prompt (T,) per row, on any device; logits (B, V) of `head`'s ids."""

    def expect(self, beginnings: Sequence[Tensor]) -> None:
        """Be told how the next prompts will begin, (T,) per row, so as to work on them meanwhile.

        It changes nothing in what is given, and the next prompts may begin otherwise.
        """
        return

    def decode_one(self, tokens: Tensor, head: slice) -> Tensor:
        """Append one token (B,) to every row; logits (B, V) of the ids in `head`."""

    def take_steps(
        self,
        tokens: Tensor,
        heads: Sequence[slice],
        sampling: Sampling,
        streams: RandomStreams,
        active: Sequence[Sequence[bool]],
    ) -> tuple[Tensor, Tensor]:
        """Append one token (B,) to every row, choose the next, append that, and so on.

        Args:
            tokens: (B,) int64, the newest token of each row.
            heads: the ids that each of the n steps chooses from; all of one size.
            sampling: how.
            streams: the rows' random streams.
            active: active[step][row], whether a token is needed; if not, what is chosen there
                means nothing.

        Returns:
            tokens: (n, B) int64, those chosen.
            last_p: (n, B) float32, the probability of the last id of each step's head.
        """
        chosen, last_p = [], []
        for head, rows in zip(heads, active, strict=True):
            tokens, p = choose_tokens(self.decode_one(tokens, head), head, sampling, streams, rows)
            chosen.append(tokens)
            last_p.append(p)
        return torch.stack(chosen), torch.stack(last_p)


def choose_tokens(
    logits: Tensor, head: slice, sampling: Sampling, streams: RandomStreams, active: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """The ids (B,) chosen by logits (B, V) of the ids in `head`, and the last id's probability."""
    probs = probabilities(logits, sampling)
    return streams.choose(probs, sampling, active) + head.start, probs[:, -1]


class CachedDecoder(Decoder):
    """Decodes over a `KVCache`: work per step grows with the past only in attention."""

    def __init__(self, model: GPT, n_merged: int = 0) -> None:
        self.model = model
        self.n_merged = n_merged
        self.cache: KVCache | None = None

    def prefill(self, prompts: Sequence[Tensor], head: slice) -> Tensor:
        """Start over with one prompt (T,) per row; logits (B, V) of the ids in `head`."""
        if self.cache is None or len(self.cache.lengths) != len(prompts):
            self.cache = new_cache(self.model, len(prompts))
        device = self.model.transformer.wpe.weight.device
        options: Any = {"n_merged": self.n_merged, "head": head}
        rows = [
            self.model.prefill(prompt[None].to(device), self.cache, row, **options)
            for row, prompt in enumerate(prompts)
        ]
        return torch.cat(rows)

    def decode_one(self, tokens: Tensor, head: slice) -> Tensor:
        """Append one token (B,) to every row; logits (B, V) of the ids in `head`."""
        if self.cache is None:
            raise ValueError("decode_one needs a prefill first")
        return self.model.decode_one(tokens, self.cache, head=head)


def new_cache(model: GPT, batch_size: int) -> KVCache:
    """An empty cache, of the kind that is fastest for the model where it is."""
    if rowsum.pays(model):
        return rowsum.RowSumKVCache(model.config, batch_size)
    weight = model.transformer.wpe.weight
    return KVCache(model.config, batch_size, device=weight.device, dtype=weight.dtype)


class UncachedDecoder(Decoder):
    """Computes every step from the whole sequence: slow, and the specification of the others."""

    def __init__(self, model: GPT, n_merged: int = 0) -> None:
        self.model = model
        self.n_merged = n_merged
        self.sequences: list[Tensor] = []

    def prefill(self, prompts: Sequence[Tensor], head: slice) -> Tensor:
        """Start over with one prompt (T,) per row; logits (B, V) of the ids in `head`."""
        device = self.model.transformer.wpe.weight.device
        self.sequences = [prompt.to(device) for prompt in prompts]
        rows = [self.model(tokens[None], self.n_merged)[0, -1, head] for tokens in self.sequences]
        return torch.stack(rows)

    def decode_one(self, tokens: Tensor, head: slice) -> Tensor:
        """Append one token (B,) to every row; logits (B, V) of the ids in `head`."""
        grown = [torch.cat((s, t[None])) for s, t in zip(self.sequences, tokens, strict=True)]
        return self.prefill(grown, head)


class RandomStreams:
    """The random streams of a batch's rows.

    A row draws from its own stream only, and only while it needs a token, so that it gets what it
    gets alone. Draws can be made ahead of the steps that use them; what turns out not to be needed
    is given back.

    Attributes:
        shared: whether rows draw from one stream by turns, so that nothing can be given back.
    """

    def __init__(self, generators: Sequence[torch.Generator | None], device: torch.device) -> None:
        """One stream per row; None is torch's own on that device."""
        self._generators = [_own_stream(device) if g is None else g for g in generators]
        self.shared = len({id(g) for g in self._generators}) < len(self._generators)
        self._before: list[Tensor] = []
        self._made = (0, 0)  # draws ahead, and numbers in each

    def choose(self, probs: Tensor, sampling: Sampling, active: Sequence[bool]) -> Tensor:
        """The tokens (B,) of distributions (B, V); 0 for a row that is not active."""
        rows = [
            choose(probs[row], sampling, generator)
            if active[row]
            else torch.zeros((), dtype=torch.int64, device=probs.device)
            for row, generator in enumerate(self._generators)
        ]
        return torch.stack(rows)

    def start_ahead(self, n_steps: int, n_numbers: int) -> None:
        """Note where the streams are, before `draw_next` is called for so many steps."""
        self._before = [generator.get_state() for generator in self._generators]
        self._made = (n_steps, n_numbers)

    def draw_next(self, noise: Tensor, active: Sequence[bool]) -> None:
        """Fill noise (B, V) with what `draw` would divide by in the next step.

        Where a row is not active nothing is drawn and the noise is 1.
        """
        for row, generator in enumerate(self._generators):
            if active[row]:
                noise[row].exponential_(generator=generator)
            else:
                noise[row].fill_(1)

    def give_back(self, row: int, n_draws: int) -> None:
        """Undo the last draws that were made ahead for one row."""
        if not n_draws or not self._before:
            return
        assert not self.shared
        generator, (n_made, n_numbers) = self._generators[row], self._made
        generator.set_state(self._before[row])
        again = torch.empty(n_numbers, device=generator.device)
        for _ in range(n_made - n_draws):
            again.exponential_(generator=generator)


def _own_stream(device: torch.device) -> torch.Generator:
    """The stream that torch itself draws from on a device."""
    if device.type == "cuda":
        current = torch.cuda.current_device()  # which also makes the streams
        return torch.cuda.default_generators[current if device.index is None else device.index]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.default_generator
