"""Decoding on a GPU: a whole step, the choice of the token included, recorded once and replayed.

On a GPU a step's hundreds of small operations take longer to launch than to run. So everything that
changes from step to step, the newest tokens, how much the cache holds, the random numbers and where
results go, lies in tensors at fixed places, and the step is captured in a CUDA graph. Tokens are
looked at after many steps; what was drawn beyond an end is given back to the random stream.
Prompts and the fine model's passes are recorded too, once their length has been met before.

On a CPU the step is called where a GPU would replay it: slow, and the same otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..decoding import Decoder, RandomStreams
from ..model import GPT, FineGPT, KVCache
from ..sampling import OnStep, Sampling, probabilities
from .backend import BackendError
from .cudagraph import Recorder, Recordings, make_room

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
    """A cache whose lengths are on the device, so that a recorded step need not know them.

    Attributes:
        device_lengths: (B,) int32, how much each row holds.
        n_keys: how many positions a step reads, from the first; at least what every row holds.
    """

    def __init__(
        self, model: GPT, batch_size: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(model.config, batch_size, device=device, dtype=dtype)
        for buffer in self.kv:
            buffer.zero_()  # what is masked is multiplied by 0, so it must not be NaN
        self.device_lengths = torch.zeros(batch_size, dtype=torch.int32, device=device)
        self.n_keys = model.config.block_size
        self._place = torch.empty(0)

    def grow(self) -> Tensor:
        """Make room for one position more in every row, and say which one that is: (B,) int64."""
        self.device_lengths.add_(1)
        newest = self.device_lengths.long() - 1
        self._place = newest[None, :, None, None, None]
        return newest

    def append(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Write the newest position of each row; kv is (2, B, H, D).

        Returns:
            The layer's keys and values (B, H, n_keys, D) and how much of each row they hold.
        """
        buffer, new = self.kv[layer], kv.unsqueeze(3)
        buffer.scatter_(3, self._place.expand(new.shape), new.to(buffer.dtype))
        read = buffer[:, :, :, : self.n_keys]
        return read[0], read[1], self.device_lengths


class GraphDecoder(Decoder):
    """Decodes over a `StaticKVCache` by replaying recorded steps.

    It is made for one model and kept: what it has recorded serves every utterance with as many
    rows. The model's weights must stay where they are.
    """

    steps_at_once = AHEAD

    def __init__(
        self,
        model: GPT,
        n_merged: int = 0,
        *,
        backend: str = "torch",
        early: bool = False,
        on_step: OnStep | None = None,
    ) -> None:
        """A decoder of a model.

        Args:
            model: the model, where it will stay.
            n_merged: as in `GPT.forward`.
            backend: `"torch"` or `"triton"`.
            early: prefill what `expect` tells of on a second stream, while steps run.
            on_step: told of the warm-up, as a stage of that name, when a step is recorded.
        """
        self.model = model
        self.n_merged = n_merged
        self.backend = backend
        self.early = early and not n_merged
        self.on_step = on_step
        self.device = model.transformer.wpe.weight.device
        self.dtype = model.transformer.wpe.weight.dtype
        self._fused: FusedGPT | None = None
        self._n_rows = 0
        self._beginnings: _Beginnings | None = None

    def prefill(self, prompts: Sequence[Tensor], head: slice) -> Tensor:
        """Start over with one prompt (T,) per row; logits (B, V) of the ids in `head`."""
        if len(prompts) != self._n_rows:
            self._allocate(len(prompts))
        lengths = [len(prompt) - self.n_merged for prompt in prompts]
        self.cache.device_lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        if len(set(lengths)) == 1:
            logits = self._prefill(0, torch.stack(list(prompts)), head)
        else:
            rows = [self._prefill(row, prompt[None], head) for row, prompt in enumerate(prompts)]
            logits = torch.cat(rows)
        self.cache.lengths = lengths  # a replay has not noted them
        return logits

    def expect(self, beginnings: Sequence[Tensor]) -> None:
        """Prefill how the next prompts will begin, (T,) per row, beside the steps that follow."""
        lengths = {len(beginning) for beginning in beginnings}
        if self.early and len(beginnings) == self._n_rows and len(lengths) == 1:
            if self._beginnings is None:
                self._beginnings = _Beginnings(self.model, self._n_rows)
            self._beginnings.begin(torch.stack(list(beginnings)))

    def decode_one(self, tokens: Tensor, head: slice) -> Tensor:
        """Append one token (B,) to every row; logits (B, V) of the ids in `head`."""
        self._check_room(1)
        self.token.copy_(tokens)
        self.cache.n_keys = self._keys(1)
        logits = self._logits(head)
        self.cache.lengths = [length + 1 for length in self.cache.lengths]
        return logits

    def take_steps(
        self,
        tokens: Tensor,
        heads: Sequence[slice],
        sampling: Sampling,
        streams: RandomStreams,
        active: Sequence[Sequence[bool]],
    ) -> tuple[Tensor, Tensor]:
        """Append one token (B,) to every row, choose the next, append that, and so on.

        As `Decoder.take_steps`, of at most `steps_at_once` steps; nothing is waited for.
        """
        n = len(heads)
        self._check_room(n)
        self.token.copy_(tokens)
        self.index.zero_()
        width = heads[0].stop - heads[0].start
        noise = self._noise(width)
        n_keys = self._keys(n)
        if not sampling.greedy:
            streams.start_ahead(n, width)
        for step, (head, rows) in enumerate(zip(heads, active, strict=True)):
            if not sampling.greedy:
                streams.draw_next(noise[step], rows)
            self._recorded(head, sampling, n_keys)()
        self.cache.lengths = [length + n for length in self.cache.lengths]
        return self.tokens[:n].clone(), self.last_p[:n].clone()

    def _allocate(self, n_rows: int) -> None:
        """Make everything of a fixed place for so many rows; what was recorded is void."""
        self._n_rows = n_rows
        self._steps: dict[object, Callable[[], None]] = {}
        self._recorder = Recorder(self.device)
        self._prefills = Recordings(self._recorder, MAX_PASSES)
        if self._beginnings is not None:
            self._beginnings.forget()
            self._beginnings = None
        self._noises: dict[int, Tensor] = {}
        self.cache = StaticKVCache(self.model, n_rows, device=self.device, dtype=self.dtype)
        self.token = torch.zeros(n_rows, dtype=torch.int64, device=self.device)
        self.index = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.tokens = torch.zeros((AHEAD, n_rows), dtype=torch.int64, device=self.device)
        self.last_p = torch.zeros((AHEAD, n_rows), device=self.device)
        if self.backend == "triton" and self._fused is None:
            from .fused import FusedGPT

            self._fused = FusedGPT(self.model)

    def _prefill(self, row: int, prompts: Tensor, head: slice) -> Tensor:
        """Fill rows from `row` on with prompts (R, T); logits (R, V).

        With a full voice all windows have one length; the prompt of a text always has.
        """
        beginnings = self._beginnings
        past = beginnings.take(prompts) if beginnings is not None else 0

        def fill(tokens: Tensor) -> Tensor:
            if beginnings is not None and past:
                for buffer, beginning in zip(self.cache.kv, beginnings.cache.kv, strict=True):
                    buffer[:, :, :, :past] = beginning[:, :, :, :past]
            options: Any = {"past": past, "n_merged": self.n_merged, "head": head}
            return self.model.prefill(tokens, self.cache, row, **options)

        key = (row, past, tuple(prompts.shape), head.start, head.stop)
        return self._prefills(key, fill, prompts[:, past:]).clone()

    def _check_room(self, n: int) -> None:
        block_size = self.model.config.block_size
        if not self._n_rows:
            raise ValueError("decoding needs a prefill first")
        if n > AHEAD:
            raise ValueError(f"at most {AHEAD} steps at once, got {n}")
        if max(self.cache.lengths) + n > block_size:
            raise ValueError(f"the cache is full at {block_size} positions")

    def _keys(self, n: int) -> int:
        """How many positions the next n steps must read."""
        block_size = self.model.config.block_size
        if self._fused is not None:
            return block_size
        return min(block_size, -(-(max(self.cache.lengths) + n) // KEYS) * KEYS)

    def _noise(self, width: int) -> Tensor:
        """The place (AHEAD, B, width) of the random numbers."""
        if width not in self._noises:
            shape = (AHEAD, self._n_rows, width)
            self._noises[width] = torch.ones(shape, device=self.device)
        return self._noises[width]

    def _logits(self, head: slice) -> Tensor:
        """Append `token` to every row; logits (B, V) of the ids in `head`."""
        if self._fused is not None:
            lengths = self.cache.device_lengths
            return self._fused.decode_one(self.token, self.cache, lengths, self.index, head=head)
        self.index.add_(1)
        # The model asks the lengths that the host knows only whether there is room.
        return self.model.decode_one(self.token, self.cache, head=head)

    def _step(self, head: slice, sampling: Sampling) -> None:
        """One step, from `token` to `token`; what is recorded."""
        logits = self._logits(head)
        noise = None if sampling.greedy else self._noise(logits.shape[1])
        if self._fused is not None and not (sampling.top_k or sampling.top_p):
            temperature = sampling.temperature or 1.0
            results = (self.index, self.token, self.tokens, self.last_p)
            self._fused.choose(logits, noise, temperature, head.start, *results)
            return
        probs = scores = probabilities(logits, sampling)
        step = self.index - 1
        if noise is not None:
            scores = probs / noise.index_select(0, step)[0]
        self.token.copy_(scores.argmax(-1) + head.start)
        self.tokens.index_copy_(0, step, self.token[None])
        self.last_p.index_copy_(0, step, probs[None, :, -1])

    def _recorded(self, head: slice, sampling: Sampling, n_keys: int) -> Callable[[], None]:
        """A recorded step, which is recorded now if it has not been."""
        self.cache.n_keys = n_keys
        key = (head.start, head.stop, sampling, n_keys)
        if key not in self._steps:
            first = not self._steps
            if first and self.on_step:
                self.on_step("warm-up", 0, 1)
            if first and self._fused is not None:
                self._check_kernels(head)
            make_room(self._steps, MAX_GRAPHS)
            self._steps[key] = self._recorder.record(
                lambda: self._step(head, sampling),
                (self.token, self.index, self.cache.device_lengths),
            )
            if first and self.on_step:
                self.on_step("warm-up", 1, 1)
        return self._steps[key]

    def _check_kernels(self, head: slice) -> None:
        """Refuse kernels that on this GPU do not give what plain torch gives."""
        lengths, index = self.cache.device_lengths.clone(), self.index.clone()
        ours = self._logits(head)
        self.cache.device_lengths.copy_(lengths)
        theirs = self.model.decode_one(self.token, self.cache, head=head)
        self.cache.device_lengths.copy_(lengths)
        self.index.copy_(index)
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        if not error <= _TOLERANCES[self.dtype]:
            raise BackendError(
                f"backend 'triton' gives wrong results here: its logits are off by {error:.1e} of "
                "the largest one; use backend='torch'"
            )


class _Beginnings:
    """How the next prompts begin, prefilled into a cache of its own beside the steps of these."""

    def __init__(self, model: GPT, n_rows: int) -> None:
        weight = model.transformer.wpe.weight
        self._model = model
        self._recorder = Recorder(weight.device, "beside")
        self._prefills = Recordings(self._recorder, MAX_PASSES)
        self.cache = KVCache(model.config, n_rows, device=weight.device, dtype=weight.dtype)
        if self._recorder.stream is not None:
            for buffer in self.cache.kv:  # whose memory is not to be given away while it runs
                buffer.record_stream(self._recorder.stream)
        self._tokens: Tensor | None = None

    def begin(self, tokens: Tensor) -> None:
        """Prefill tokens (B, T)."""
        self._tokens = None

        def fill(tokens: Tensor) -> Tensor:
            return self._model.prefill(tokens, self.cache, 0, head=slice(0, 1))

        with self._recorder.beside():
            self._prefills(tokens.shape, fill, tokens)
        self._tokens = tokens

    def take(self, prompts: Tensor) -> int:
        """How many positions of prompts (B, T) the cache holds; none if they begin otherwise."""
        tokens, self._tokens = self._tokens, None
        if tokens is None:
            return 0
        self._recorder.join()
        n = tokens.shape[1]
        begins_so = n < prompts.shape[1] and torch.equal(prompts[:, :n], tokens)
        return n if begins_so else 0

    def forget(self) -> None:
        """Wait, on the device, for what may still run."""
        self._recorder.join()


class GraphFine:
    """A `FineGPT` whose passes are recorded; called as the model is."""

    def __init__(self, model: FineGPT, *, backend: str = "torch") -> None:
        """The model's weights must stay where they are."""
        self._model = model
        if backend == "triton":
            from .fused import use_attention

            use_attention(model.transformer)
        device = model.transformer.wpe.weight.device
        self._passes = Recordings(Recorder(device), MAX_PASSES)

    def __call__(self, codes: Tensor, codebook: int, start: int = 0) -> Tensor:
        """Logits (B, T - start, V) of a codebook, as `FineGPT.forward`, until the next call."""
        key = (tuple(codes.shape), codebook, start)
        return self._passes(key, lambda codes: self._model(codes, codebook, start), codes)
