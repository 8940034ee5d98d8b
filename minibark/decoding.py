"""How a token loop sees a model: it starts with prompts, then takes steps.

`UncachedDecoder` is the specification; `CachedDecoder` does the same work once. Both, and every
faster one, give the same tokens, up to the rounding of sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .model import GPT, Cache, KVCache
from .noise import fill_exponential
from .sampling import OnStep, Sampling, choose, probabilities


class Decoder(ABC):
    """What a token loop needs of a model.

    Attributes:
        steps_at_once: how many steps may be asked for before their tokens are looked at.
        on_step: told of a warm-up, if there is one.
    """

    steps_at_once: int = 1
    on_step: OnStep | None = None

    @abstractmethod
    def prefill(self, prompts: Sequence[Tensor], ids: slice) -> Tensor:
        """Start over with one prompt (T,) per row, on any device; logits (B, V) of `ids`."""

    @abstractmethod
    def decode_one(self, tokens: Tensor, ids: slice) -> Tensor:
        """Append one token (B,) to every row; logits (B, V) of `ids`."""

    def keep(self, rows: list[int]) -> bool:
        """Go on with these rows alone; False where that cannot be, and all go on."""
        return False

    def join(self, prompts: Sequence[Tensor], ids: slice) -> Tensor | None:
        """Begin rows behind those there are, as `prefill` does; None where `keep` gives False."""
        return None

    def take_steps(
        self,
        tokens: Tensor,
        ids: Sequence[slice],
        sampling: Sampling,
        streams: RandomStreams,
        active: Sequence[Sequence[bool]],
    ) -> tuple[Tensor, Tensor]:
        """Append one token (B,) to every row, choose the next, append that, and so on.

        Args:
            tokens: (B,) int64, the newest token of each row.
            ids: the ids that each of the n steps chooses from; all of one size.
            sampling: how.
            streams: the rows' random streams.
            active: active[step][row], whether a token is needed; where it is not, any id may come.

        Returns:
            tokens: (n, B) int64, those chosen.
            last_p: (n, B) float32, the probability of the last of each step's ids.
        """
        chosen, last_p = [], []
        if len(ids) > 1 and not sampling.greedy:
            streams.start_ahead(len(ids), ids[0].stop - ids[0].start)
        for own, rows in zip(ids, active, strict=True):
            tokens, p = choose_next(self.decode_one(tokens, own), own, sampling, streams, rows)
            chosen.append(tokens)
            last_p.append(p)
        return torch.stack(chosen), torch.stack(last_p)


MakeDecoder = Callable[[GPT, int], Decoder]
"""Makes a decoder of a model and of `n_merged`, as in `GPT.forward`."""


def choose_next(
    logits: Tensor, ids: slice, sampling: Sampling, streams: RandomStreams, active: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """The ids (B,) chosen by logits (B, V) of `ids`, and the probability of the last id."""
    probs = probabilities(logits, sampling)
    return streams.choose(probs, sampling, active) + ids.start, probs[:, -1]


class UncachedDecoder(Decoder):
    """Computes every step from the whole sequence: slow, and the specification of the others."""

    def __init__(self, model: GPT, n_merged: int = 0) -> None:
        self.model, self.n_merged = model, n_merged
        self.sequences: list[Tensor] = []

    def prefill(self, prompts: Sequence[Tensor], ids: slice) -> Tensor:
        """See `Decoder`."""
        self.sequences = []
        return self.join(prompts, ids)

    def decode_one(self, tokens: Tensor, ids: slice) -> Tensor:
        """See `Decoder`."""
        grown = [torch.cat((s, t[None])) for s, t in zip(self.sequences, tokens, strict=True)]
        return self.prefill(grown, ids)

    def keep(self, rows: list[int]) -> bool:
        """See `Decoder`."""
        self.sequences = [self.sequences[row] for row in rows]
        return True

    def join(self, prompts: Sequence[Tensor], ids: slice) -> Tensor:
        """See `Decoder`."""
        new = [prompt.to(self.model.transformer.wpe.weight.device) for prompt in prompts]
        self.sequences += new
        return torch.stack([self.model(tokens[None], self.n_merged)[0, -1, ids] for tokens in new])


class CachedDecoder(Decoder):
    """Decodes over a cache: work per step grows with the past only in attention."""

    def __init__(
        self, model: GPT, n_merged: int = 0, new_cache: Callable[[GPT, int], Cache] = KVCache
    ) -> None:
        self.model, self.n_merged, self.new_cache = model, n_merged, new_cache
        self.cache: Cache | None = None
        self.n_rows = 0

    def prefill(self, prompts: Sequence[Tensor], ids: slice) -> Tensor:
        """See `Decoder`."""
        self.cache, self.n_rows = self.cache or self.new_cache(self.model, 0), 0
        return self.join(prompts, ids)

    def decode_one(self, tokens: Tensor, ids: slice) -> Tensor:
        """See `Decoder`."""
        if self.cache is None:
            raise ValueError("decode_one needs a prefill first")
        return self.model.decode_one(tokens, self.cache, ids=ids)

    def keep(self, rows: list[int]) -> bool:
        """See `Decoder`."""
        if self.cache is not None:
            self.cache.keep(rows)
        self.n_rows = len(rows)
        return True

    def join(self, prompts: Sequence[Tensor], ids: slice) -> Tensor:
        """See `Decoder`."""
        assert self.cache is not None
        self.cache.keep(list(range(self.n_rows)), len(prompts))
        device, logits = self.model.transformer.wpe.weight.device, []
        for row, prompt in enumerate(prompts, self.n_rows):
            tokens = prompt[None].to(device)
            logits.append(self.model.prefill(tokens, self.cache, row, self.n_merged, ids))
        self.n_rows += len(prompts)
        return torch.cat(logits)


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
        self._generators = [own_stream(device) if g is None else g for g in generators]
        self.shared = len({id(g) for g in self._generators}) < len(self._generators)
        self._before: list[Tensor] = []
        self._made = (0, 0)  # draws ahead, and numbers in each

    def choose(self, probs: Tensor, sampling: Sampling, active: Sequence[bool]) -> Tensor:
        """The tokens (B,) of distributions (B, V); any id for a row that is not active."""
        if sampling.greedy:
            return choose(probs, sampling, None)
        noise = torch.empty_like(probs, memory_format=torch.contiguous_format)
        self.draw_next(noise, active)
        return (probs / noise).argmax(-1)

    def start_ahead(self, n_steps: int, n_numbers: int) -> None:
        """Note where the streams are, before `draw_next` is called for so many steps."""
        self._before = [generator.get_state() for generator in self._generators]
        self._made = (n_steps, n_numbers)

    def draw_next(self, noise: Tensor, active: Sequence[bool]) -> None:
        """Fill noise (B, V) with what `sampling.choose` would divide by in the next step.

        Where a row is not active nothing is drawn and the noise is 1.
        """
        for row, generator in enumerate(self._generators):
            if active[row]:
                fill_exponential(noise[row], generator)
            else:
                noise[row].fill_(1)

    def give_back(self, row: int, n_draws: int) -> None:
        """Undo the last draws that were made ahead for one row."""
        if not n_draws or not self._before:
            return
        assert not self.shared
        generator, (n_made, n_numbers) = self._generators[row], self._made
        generator.set_state(self._before[row])
        again = torch.empty(n_numbers, dtype=torch.float32, device=generator.device)
        for _ in range(n_made - n_draws):
            fill_exponential(again, generator)


def own_stream(device: torch.device) -> torch.Generator:
    """The stream that torch itself draws from on a device."""
    if device.type == "cuda":
        current = torch.cuda.current_device()  # which also makes the streams
        return torch.cuda.default_generators[current if device.index is None else device.index]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.default_generator
