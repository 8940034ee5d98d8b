"""Decoding on a GPU: a whole step, the choice of the token included, captured once and replayed.

On a GPU a step's hundreds of small operations take longer to launch than to run. So everything that
changes from step to step, the newest tokens, how much the cache holds, the random numbers and where
results go, lies in tensors at fixed places, and the step is captured in a CUDA graph. Tokens are
looked at after many steps; what was drawn beyond an end is given back to the random stream.
Prompts and the fine model's passes are captured too, once their length has been met before.

On a CPU the step is called where a GPU would replay it: slow, and the same otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoding import Decoder, RandomStreams
from ..model import GPT, FineGPT, KVCache
from ..precision import BackendError
from ..sampling import Sampling, probabilities
from .cudagraph import Capture, CudaGraphs, make_room

if TYPE_CHECKING:
    from .fused import FusedGPT

AHEAD = 60  # steps that can be taken before their tokens are looked at: a coarse window
KEYS = 256  # the torch backend reads the cache up to a multiple of so many positions
MAX_GRAPHS = 32  # steps that are kept at once
MAX_PASSES = 24  # and passes over whole prompts or buffers

# By how much the two backends' logits may differ, over the largest of them. bfloat16 rounds the
# torch backend's residual stream in every layer, the kernels' not at all.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class StaticKVCache(KVCache):
    """A cache whose lengths are on the device, so that a captured step need not know them.

    Attributes:
        device_lengths: (B,) int32, how much each row holds. `lengths` is for whoever asks whether
            there is room.
        n_keys: how many positions a step reads, from the first; at least what every row holds.
    """

    def __init__(self, model: GPT, batch_size: int) -> None:
        super().__init__(model, batch_size)
        device = model.transformer.wpe.weight.device
        self.device_lengths = torch.zeros(batch_size, dtype=torch.int32, device=device)
        self.n_keys = model.config.block_size
        self._newest = torch.empty(0)
        self._seen = torch.empty(0)

    def begin_step(self) -> Tensor:
        """See `Cache`."""
        self.device_lengths.add_(1)
        newest = self.device_lengths.long() - 1
        self._newest = newest[:, None, None, None]
        keys = torch.arange(self.n_keys, device=newest.device)
        self._seen = (keys < self.device_lengths[:, None])[:, None, None]  # (B, 1, 1, n_keys)
        return newest

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Cache`."""
        keys, values = self.kv[layer]
        place = self._newest.expand(k.shape)
        keys.scatter_(2, place, k.to(keys.dtype))
        values.scatter_(2, place, v.to(values.dtype))
        keys, values = keys[:, :, : self.n_keys], values[:, :, : self.n_keys]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self._seen)


class _Fixed:
    """All that has a fixed place, for so many rows, and the graphs that know the places.

    Attributes:
        token: (B,) int64, the newest of each row.
        index: (1,) int64, the steps begun.
        tokens: (AHEAD, B) int64, what was chosen.
        last_p: (AHEAD, B) float32, the probability of the last id of each step.
        steps: what replays a step.
        prefills: prompts that are replayed.
    """

    def __init__(self, model: GPT, n_rows: int) -> None:
        device = model.transformer.wpe.weight.device
        self.n_rows = n_rows
        self.cache = StaticKVCache(model, n_rows)
        self.token = torch.zeros(n_rows, dtype=torch.int64, device=device)
        self.index = torch.zeros(1, dtype=torch.int64, device=device)
        self.tokens = torch.zeros((AHEAD, n_rows), dtype=torch.int64, device=device)
        self.last_p = torch.zeros((AHEAD, n_rows), dtype=torch.float32, device=device)
        self.capture = Capture(device)
        self.steps: dict[object, Callable[[], None]] = {}
        self.prefills = CudaGraphs(self.capture, MAX_PASSES)
        self._noises: dict[int, Tensor] = {}

    def noise(self, width: int) -> Tensor:
        """The place (AHEAD, B, width) of the random numbers."""
        if width not in self._noises:
            shape = (AHEAD, self.n_rows, width)
            device = self.token.device
            self._noises[width] = torch.ones(shape, dtype=torch.float32, device=device)
        return self._noises[width]


class GraphDecoder(Decoder):
    """Decodes over a `StaticKVCache` by replaying captured steps.

    It is made for one model and kept: what it has captured serves every utterance with as many
    rows. The model's weights must stay where they are.
    """

    steps_at_once = AHEAD

    def __init__(self, model: GPT, n_merged: int = 0, *, backend: str = "torch") -> None:
        """A decoder of a model.

        Args:
            model: the model, where it will stay.
            n_merged: as in `GPT.forward`.
            backend: `"torch"` or `"triton"`.
        """
        self.model = model
        self.n_merged = n_merged
        self._places: _Fixed | None = None
        self._fused: FusedGPT | None = None
        if backend == "triton":
            from .fused import FusedGPT

            self._fused = FusedGPT(model)

    @property
    def fixed(self) -> _Fixed:
        """What has a fixed place."""
        if self._places is None:
            raise ValueError("decoding needs a prefill first")
        return self._places

    def prefill(self, prompts: Sequence[Tensor], ids: slice) -> Tensor:
        """See `Decoder`."""
        if self._places is None or self._places.n_rows != len(prompts):
            self._places = None  # whose memory goes before the new is asked for
            self._places = _Fixed(self.model, len(prompts))
        cache = self.fixed.cache
        lengths = [len(prompt) - self.n_merged for prompt in prompts]
        cache.device_lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        if len(set(lengths)) == 1:
            logits = self._prefill(0, torch.stack(list(prompts)), ids)
        else:
            rows = [self._prefill(row, prompt[None], ids) for row, prompt in enumerate(prompts)]
            logits = torch.cat(rows)
        cache.lengths = lengths  # a replay has not noted them
        return logits

    def decode_one(self, tokens: Tensor, ids: slice) -> Tensor:
        """See `Decoder`."""
        self._begin(tokens, 1)
        return self._logits(ids)

    def take_steps(
        self,
        tokens: Tensor,
        ids: Sequence[slice],
        sampling: Sampling,
        streams: RandomStreams,
        active: Sequence[Sequence[bool]],
    ) -> tuple[Tensor, Tensor]:
        """See `Decoder`; at most `steps_at_once` steps, and nothing is waited for."""
        n, fixed = len(ids), self.fixed
        if n > AHEAD:
            raise ValueError(f"at most {AHEAD} steps at once, got {n}")
        self._begin(tokens, n)
        fixed.index.zero_()
        width = ids[0].stop - ids[0].start
        noise = fixed.noise(width)
        if not sampling.greedy:
            streams.start_ahead(n, width)
        for step, (own, rows) in enumerate(zip(ids, active, strict=True)):
            if not sampling.greedy:
                streams.draw_next(noise[step], rows)
            self._captured(own, sampling)()
        return fixed.tokens[:n].clone(), fixed.last_p[:n].clone()

    def _prefill(self, row: int, prompts: Tensor, ids: slice) -> Tensor:
        """Fill rows from `row` on with prompts (R, T); logits (R, V).

        With a full voice all windows have one length; the prompt of a text always has.
        """
        fixed = self.fixed

        def fill(tokens: Tensor) -> Tensor:
            return self.model.prefill(tokens, fixed.cache, row, n_merged=self.n_merged, ids=ids)

        key = (row, tuple(prompts.shape), ids.start, ids.stop)
        return fixed.prefills(key, fill, prompts).clone()

    def _begin(self, tokens: Tensor, n: int) -> None:
        """Put the newest tokens (B,) in their place and see that there is room for n steps."""
        fixed, block_size = self.fixed, self.model.config.block_size
        cache = fixed.cache
        if max(cache.lengths) + n > block_size:
            raise ValueError(f"the cache is full at {block_size} positions")
        fixed.token.copy_(tokens)
        cache.lengths = [length + n for length in cache.lengths]
        if self._fused is None:
            cache.n_keys = min(block_size, -(-max(cache.lengths) // KEYS) * KEYS)

    def _logits(self, ids: slice) -> Tensor:
        """Append `token` to every row; logits (B, V) of `ids`."""
        fixed = self.fixed
        if self._fused is not None:
            lengths = fixed.cache.device_lengths
            return self._fused.decode_one(fixed.token, fixed.cache, lengths, fixed.index, ids=ids)
        fixed.index.add_(1)
        return self.model.decode_one(fixed.token, fixed.cache, ids=ids)

    def _step(self, ids: slice, sampling: Sampling) -> None:
        """One step, from `token` to `token`; what is captured, so it must wait for nothing."""
        fixed, logits = self.fixed, self._logits(ids)
        noise = None if sampling.greedy else fixed.noise(logits.shape[1])
        if self._fused is not None and not (sampling.top_k or sampling.top_p):
            temperature = sampling.temperature or 1.0
            results = (fixed.index, fixed.token, fixed.tokens, fixed.last_p)
            self._fused.choose(logits, noise, temperature, ids.start, *results)
            return
        probs = scores = probabilities(logits, sampling)
        step = fixed.index - 1
        if noise is not None:
            scores = probs / noise.index_select(0, step)[0]
        fixed.token.copy_(scores.argmax(-1) + ids.start)
        fixed.tokens.index_copy_(0, step, fixed.token[None])
        fixed.last_p.index_copy_(0, step, probs[None, :, -1])

    def _captured(self, ids: slice, sampling: Sampling) -> Callable[[], None]:
        """What replays a step, which is captured now if it has not been."""
        fixed = self.fixed
        key = (ids.start, ids.stop, sampling, fixed.cache.n_keys)
        if key not in fixed.steps:
            first = not fixed.steps
            if first and self.on_step:
                self.on_step("warm-up", 0, 1)
            if first and self._fused is not None:
                self._check_kernels(ids)
            make_room(fixed.steps, MAX_GRAPHS)
            fixed.steps[key] = fixed.capture(
                lambda: self._step(ids, sampling),
                (fixed.token, fixed.index, fixed.cache.device_lengths),
            )
            if first and self.on_step:
                self.on_step("warm-up", 1, 1)
        return fixed.steps[key]

    def _check_kernels(self, ids: slice) -> None:
        """Refuse kernels that on this GPU do not give what plain torch gives."""
        fixed, cache = self.fixed, self.fixed.cache
        lengths, index = cache.device_lengths.clone(), fixed.index.clone()
        ours = self._logits(ids)
        cache.device_lengths.copy_(lengths)
        theirs = self.model.decode_one(fixed.token, cache, ids=ids)
        cache.device_lengths.copy_(lengths)
        fixed.index.copy_(index)
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        if not error <= _TOLERANCES[self.model.transformer.wpe.weight.dtype]:
            raise BackendError(
                f"backend 'triton' gives wrong results here: its logits are off by {error:.1e} of "
                "the largest one; use the backend 'torch'"
            )


class GraphFine:
    """A `FineGPT` whose passes are captured; called as the model is."""

    def __init__(self, model: FineGPT, *, backend: str = "torch") -> None:
        """The model's weights must stay where they are."""
        self._model = model
        if backend == "triton":
            from .fused import use_attention

            use_attention(model)
        device = model.transformer.wpe.weight.device
        self._passes = CudaGraphs(Capture(device), MAX_PASSES)

    def __call__(self, codes: Tensor, codebook: int, start: int = 0) -> Tensor:
        """Logits (B, T - start, V) of a codebook, as `FineGPT.forward`, until the next call."""
        key = (tuple(codes.shape), codebook, start)
        return self._passes(key, lambda codes: self._model(codes, codebook, start), codes)
