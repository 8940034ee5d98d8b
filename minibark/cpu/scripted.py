"""Steps as TorchScript: the same operators, without Python between them.

A step is some 25 operators a layer over few numbers, and Python between them took a quarter of its
time. Python between the steps takes a sixth, as what it needs has left the cache while the weights
were read; so several steps are one call, and their noise is drawn ahead. What there is no script
for (other products, biases, hooks on modules, a torch that scripts no longer) takes its steps as
`GPT.decode_one` does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..decoding import CachedDecoder, RandomStreams
from ..model import GPT, Cache, KVCache
from ..sampling import Sampling, probabilities
from .byte_sums import ByteCache
from .int8 import MANY_ROWS
from .row_sums import RowSumCache
from .scriptable import Script, floats_around, parts_of, script_of

# Steps of a model: making scripts takes what they save in so many.
PAYS_AFTER: dict[type, int] = {KVCache: 512, RowSumCache: 64, ByteCache: 64}
AT_ONCE = 8  # steps in one call: more gain nothing, and at its end a row takes some in vain

_TAKEN: weakref.WeakKeyDictionary[GPT, int] = weakref.WeakKeyDictionary()  # plain steps, so far


class ScriptedDecoder(CachedDecoder):
    """A `CachedDecoder` whose steps run as TorchScript, if they can; they give the same bits.

    The first steps of a model are plain. Then weights, hooks and whatever was put into the model
    are seen when rows begin.
    """

    steps_at_once = AT_ONCE

    def __init__(
        self, model: GPT, n_merged: int = 0, new_cache: Callable[[GPT, int], Cache] = KVCache
    ) -> None:
        super().__init__(model, n_merged, new_cache)
        self._parts = list[nn.Module]()  # what scripts stand for; empty while steps are plain
        self._script: Script | None = None
        self._floats = list[list[Tensor]]()
        self._n_rows_of_floats = 0  # these differ with how many rows there are

    def join(self, prompts: Sequence[Tensor], ids: slice) -> Tensor:
        """See `Decoder`."""
        logits = super().join(prompts, ids)
        self._begin()
        return logits

    def take_over(self, cache: Cache | None) -> None:
        """Go on over a cache that something else has filled."""
        self.cache = cache
        self._begin()

    def decode_one(self, tokens: Tensor, ids: slice) -> Tensor:
        """See `Decoder`."""
        script = self._script_for(tokens, [ids])
        if script is None or self.cache is None:
            logits = super().decode_one(tokens, ids)
            taken = _TAKEN[self.model] = _TAKEN.get(self.model, 0) + 1
            if taken == PAYS_AFTER.get(type(self.cache)):
                self._begin()
            return logits
        step = _begin_step(self.cache, script.which(ids))
        scores: Tensor = script.steps.logits(tokens, self._floats, _tables(self.cache), step)
        return scores

    def take_steps(
        self,
        tokens: Tensor,
        ids: Sequence[slice],
        sampling: Sampling,
        streams: RandomStreams,
        active: Sequence[Sequence[bool]],
    ) -> tuple[Tensor, Tensor]:
        """See `Decoder`."""
        noise = _draw_ahead(len(ids), ids[0].stop - ids[0].start, sampling, streams, active)
        return self.choose(tokens, ids, sampling, noise)

    def choose(
        self, tokens: Tensor, ids: Sequence[slice], sampling: Sampling, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `take_steps`, with the noise of `_draw_ahead`."""
        chosen, last_p = list[Tensor](), list[Tensor]()
        script, cache = self._script_for(tokens, ids), self.cache
        if script is None or cache is None:
            for own, divisor in zip(ids, noise, strict=True):
                p = probabilities(self.decode_one(tokens, own), sampling)
                tokens = (p / divisor).argmax(-1) + own.start
                chosen.append(tokens)
                last_p.append(p[:, -1])
            return torch.stack(chosen), torch.stack(last_p)
        # NumPy's numbers are none to TorchScript.
        numbers = (sampling.temperature, float), (sampling.top_k, int), (sampling.top_p, float)
        how = [number if number is None else kind(number) for number, kind in numbers]
        done = 0
        while done < len(ids):
            now = ids[done : done + _n_ahead(cache)]
            steps = [_begin_step(cache, script.which(own)) for own in now]
            made, p = script.steps(
                tokens,
                self._floats,
                _tables(cache),
                steps,
                [own.start for own in now],
                noise[done : done + len(now)],
                *how,
            )
            tokens, done = made[-1], done + len(now)
            chosen.append(made)
            last_p.append(p)
        return torch.cat(chosen), torch.cat(last_p)

    def _begin(self) -> None:
        """Go on with scripts, if they pay and can be had."""
        pays = _TAKEN.get(self.model, 0) >= PAYS_AFTER.get(type(self.cache), 0)
        self._parts, self._script = parts_of(self.model) if pays else [], None
        self._n_rows_of_floats = 0

    def _script_for(self, tokens: Tensor, ids: Sequence[slice]) -> Script | None:
        """The script for steps of rows (B,) that choose from such ids, if there is one."""
        if self.cache is None or not self._parts or len(tokens) >= MANY_ROWS:
            return None
        if any(own.start is None or own.stop is None for own in ids):
            return None
        if self._script is None or not self._script.knows(ids):
            self._script = script_of(self.model, self.cache, self._parts, ids)
            self._n_rows_of_floats = 0
        if self._script.steps is None:
            self._parts = []
            return None
        if len(tokens) != self._n_rows_of_floats:
            self._floats = floats_around(self.model, len(tokens), self._script.ids)
            self._n_rows_of_floats = len(tokens)
        return self._script


def _draw_ahead(
    n: int, width: int, sampling: Sampling, streams: RandomStreams, active: Sequence[Sequence[bool]]
) -> Tensor:
    """What n steps divide probabilities by: (n, B, width) noise, or 1 where nothing is drawn."""
    if sampling.greedy:
        return torch.ones(n, 1, 1, dtype=torch.float32)
    streams.start_ahead(n, width)
    noise = torch.empty(n, len(active[0]), width, dtype=torch.float32)
    for step, rows in zip(noise, active, strict=True):
        streams.draw_next(step, rows)
    return noise


# ---- what a step reads of a cache


def _n_ahead(cache: Cache) -> int:
    return cache.n_ahead() if isinstance(cache, RowSumCache) else AT_ONCE


def _tables(cache: Cache) -> list[list[Tensor]]:
    """Of each layer."""
    if isinstance(cache, RowSumCache):
        return cache.layers
    assert isinstance(cache, KVCache)
    return [[kv] for kv in cache.kv]


def _begin_step(cache: Cache, which: int) -> tuple[Tensor, list[Tensor], int, int]:
    """Make room for a step with one of the heads; what `Steps` is told of it."""
    newest = cache.begin_step()
    if isinstance(cache, RowSumCache):
        return newest, cache.operands, cache.n_columns, which
    assert isinstance(cache, KVCache)
    is_one_length = len(set(cache.lengths)) == 1
    mask = cache.mask[:0] if is_one_length else cache.mask
    return newest, [cache.rows, newest, mask], max(cache.lengths), which
