"""Decoding on a GPU: a whole step, the choice of the token included, recorded once and replayed.

On a GPU a step's hundreds of small operations take longer to launch than to run. So everything that
changes from step to step, the newest tokens, how much the cache holds, the random numbers and where
results go, lies in tensors at fixed places, and the step is captured in a CUDA graph. Tokens are
looked at after many steps; what was drawn beyond an end is given back to the random stream.

A layer runs in one of two ways, the backends:

    torch    plain operators of torch, over all keys up to the next multiple of 256
    triton   five fused kernels a layer (`kernels/layer.py`), over the keys that are there

On a CPU the step is called where a GPU would replay it: slow, and the same otherwise.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .decoding import Decoder
from .model import GPT, KVCache
from .sampling import OnStep, RandomStreams, Sampling, probabilities

if TYPE_CHECKING:
    from .fused import FusedGPT

BACKENDS = ("torch", "triton")
AHEAD = 60  # steps that can be taken before their tokens are looked at: a coarse window
KEYS = 256  # the torch backend reads the cache up to a multiple of so many positions
MAX_GRAPHS = 32  # steps that are kept at once
MAX_PREFILLS = 16  # and prefills; each holds the activations of a whole prompt
OLDEST_GPU = (8, 0)  # compute capability that the kernels are built for

# By how much the two backends' logits may differ, over the largest of them. bfloat16 rounds the
# torch backend's residual stream in every layer, the kernels' not at all.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class BackendError(ValueError):
    """A backend that cannot run here, or that gives wrong results here."""


def choose_backend(name: str | None, device: torch.device) -> str:
    """The backend that will run on a device.

    Args:
        name: one of `BACKENDS`, or None for the fastest that can run; it warns where that is torch
            on an NVIDIA GPU.
        device: where.

    Raises:
        BackendError: an unknown name, or one that cannot run on that device.
    """
    if name not in (None, *BACKENDS):
        raise BackendError(f"unknown backend {name!r}; expected {', '.join(BACKENDS)}")
    if name == "torch" or (name is None and device.type != "cuda"):
        return "torch"
    reason = why_no_triton(device)
    if reason is None:
        return "triton"
    if name == "triton":
        raise BackendError(f"backend 'triton' cannot run here: {reason}")
    if torch.version.cuda is not None:
        warnings.warn(f"the fast kernels cannot run here: {reason}", stacklevel=3)
    return "torch"


def why_no_triton(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device, or None if they can."""
    installed = importlib.util.find_spec("triton") is not None
    if device.type != "cuda":
        if device.type == "cpu" and installed:
            from .fused import runs_in_interpreter

            if runs_in_interpreter():
                return None
        return f"it needs an NVIDIA GPU, and this is {device.type!r}; use backend='torch'"
    if torch.version.cuda is None:
        return "it needs an NVIDIA GPU; use backend='torch'"
    if not installed:
        return "triton is not installed; pip install 'minibark[gpu]' (Linux)"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        have, need = (".".join(map(str, pair)) for pair in (capability, OLDEST_GPU))
        return f"this GPU has compute capability {have}, it needs {need}; use backend='torch'"
    return None


def describe_backend(backend: str, device: torch.device) -> str:
    """How decoding runs, in words."""
    how = "plain torch" if backend == "torch" else "fused Triton kernels"
    if device.type == "cuda":
        return f"{how} in a CUDA graph"
    return how if backend == "torch" else f"{how}, interpreted"


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
        on_step: OnStep | None = None,
    ) -> None:
        """`on_step` is told of the warm-up, as a stage of that name, when a step is recorded."""
        self.model = model
        self.n_merged = n_merged
        self.backend = backend
        self.on_step = on_step
        self.device = model.transformer.wpe.weight.device
        self.dtype = model.transformer.wpe.weight.dtype
        self._fused: FusedGPT | None = None
        self._n_rows = 0

    def prefill(self, prompts: Sequence[Tensor], head: slice) -> Tensor:
        """Start over with one prompt (T,) per row; logits (B, V) of the ids in `head`."""
        if len(prompts) != self._n_rows:
            self._allocate(len(prompts))
        logits = [self._prefill(row, prompt, head) for row, prompt in enumerate(prompts)]
        lengths = [len(prompt) - self.n_merged for prompt in prompts]
        self.cache.lengths = lengths
        self.cache.device_lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        return torch.stack(logits)

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
        if not sampling.greedy:
            streams.draw_ahead(noise[:n], active)
        n_keys = self._keys(n)
        for head in heads:
            self._recorded(head, sampling, n_keys)()
        self.cache.lengths = [length + n for length in self.cache.lengths]
        return self.tokens[:n].clone(), self.last_p[:n].clone()

    def _allocate(self, n_rows: int) -> None:
        """Make everything of a fixed place for so many rows; what was recorded is void."""
        self._n_rows = n_rows
        self._steps: dict[object, Callable[[], None]] = {}
        self._prefills: dict[object, _Prefill] = {}
        self._seen: frozenset[object] = frozenset()
        self._noises: dict[int, Tensor] = {}
        self.cache = StaticKVCache(self.model, n_rows, device=self.device, dtype=self.dtype)
        self.token = torch.zeros(n_rows, dtype=torch.int64, device=self.device)
        self.index = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.tokens = torch.zeros((AHEAD, n_rows), dtype=torch.int64, device=self.device)
        self.last_p = torch.zeros((AHEAD, n_rows), device=self.device)
        if self.backend == "triton" and self._fused is None:
            from .fused import FusedGPT  # triton is asked for only where it is used

            self._fused = FusedGPT(self.model)

    def _prefill(self, row: int, prompt: Tensor, head: slice) -> Tensor:
        """Fill one row from its prompt (T,); logits (V,). Recorded from the second on of a length.

        With a full voice all windows have one length; the prompt of a text always has.
        """
        key = (row, len(prompt), head.start, head.stop)
        if key not in self._prefills:
            seen, self._seen = key in self._seen, self._seen | {key}
            if not seen:
                return self.model.prefill(
                    prompt, self.cache, row, n_merged=self.n_merged, head=head
                )
            if len(self._prefills) == MAX_PREFILLS:
                self._prefills.clear()
            self._prefills[key] = _Prefill(self, row, prompt, head)
        return self._prefills[key](prompt)

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
            if len(self._steps) == MAX_GRAPHS:
                self._steps.clear()
            first = not self._steps
            if first and self.on_step:
                self.on_step("warm-up", 0, 1)
            if first and self._fused is not None:
                self._check_kernels(head)
            self._steps[key] = self._record(lambda: self._step(head, sampling))
            if first and self.on_step:
                self.on_step("warm-up", 1, 1)
        return self._steps[key]

    def _record(self, step: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of a step; off a GPU the step itself."""
        if self.device.type != "cuda":
            return step
        with torch.cuda.device(self.device):
            kept = [t.clone() for t in (self.token, self.index, self.cache.device_lengths)]
            # Kernels are compiled and workspaces made by a first run, off the stream in use.
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            for tensor, value in zip(
                (self.token, self.index, self.cache.device_lengths), kept, strict=True
            ):
                tensor.copy_(value)
        return graph.replay

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


class _Prefill:
    """A recorded prefill of one row by prompts of one length."""

    def __init__(self, decoder: GraphDecoder, row: int, prompt: Tensor, head: slice) -> None:
        self._prompt = prompt.clone()
        self._logits = torch.empty(0)

        def run() -> None:
            self._logits = decoder.model.prefill(
                self._prompt, decoder.cache, row, n_merged=decoder.n_merged, head=head
            )

        self._run = decoder._record(run)

    def __call__(self, prompt: Tensor) -> Tensor:
        """Logits (V,) after a prompt (T,)."""
        self._prompt.copy_(prompt)
        self._run()
        return self._logits.clone()
