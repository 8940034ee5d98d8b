"""CUDA graphs: calls captured once and replayed, so that launching their operations costs nothing.

What changes from call to call must lie in tensors at fixed places. Off a GPU the call itself stands
in for its graph.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor


class Recorder:
    """Captures calls on a stream of its own.

    What it has captured shares scratch memory, and so must run one after the other.
    """

    def __init__(self, device: torch.device, name: str = "in turn") -> None:
        """Recorders of one name have one stream, on each device and in each thread."""
        self.device = device
        self.name = name
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    @property
    def stream(self) -> torch.cuda.Stream | None:
        """The stream, made when it is first asked for; None off a GPU."""
        if self._stream is None and self.device.type == "cuda":
            self._stream = _stream(self.device, self.name, threading.get_ident())
        return self._stream

    def record(self, call: Callable[[], None], kept: Sequence[Tensor] = ()) -> Callable[[], None]:
        """The graph of a call.

        Args:
            call: works on the device and waits for nothing.
            kept: tensors that it changes and that shall be as before once it is recorded.
        """
        stream = self.stream
        if stream is None:
            return call
        with torch.cuda.device(self.device):
            before = [tensor.clone() for tensor in kept]
            current = torch.cuda.current_stream()
            # Kernels are compiled and workspaces made by a first run.
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                call()
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # What other threads ask for meanwhile does not break the capture.
            mode = "thread_local"
            with torch.cuda.graph(graph, self._pool, stream, capture_error_mode=mode):
                call()
            current.wait_stream(stream)
            for tensor, value in zip(kept, before, strict=True):
                tensor.copy_(value)
        return graph.replay

    def beside(self) -> contextlib.AbstractContextManager[object]:
        """What is done inside runs on the recorder's stream, after what was asked for before."""
        stream = self.stream
        if stream is None:
            return contextlib.nullcontext()
        stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(stream)

    def join(self) -> None:
        """What is asked for next starts after what was done `beside` it."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)


@functools.cache
def _stream(device: torch.device, name: str, thread: int) -> torch.cuda.Stream:
    """Kept, because cuBLAS keeps 32 MiB for every stream that it has run on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def make_room(recorded: dict[Any, Any], limit: int) -> Any:
    """Drop the oldest of `limit` graphs; its key, or None.

    Never all of them at once: memory that graphs share must not be without one while results lie
    in it.
    """
    if len(recorded) < limit:
        return None
    oldest = next(iter(recorded))
    del recorded[oldest]
    return oldest


class Recordings:
    """Functions of one tensor: called the first time, recorded the second, then replayed."""

    def __init__(self, recorder: Recorder, limit: int) -> None:
        """`limit`: how many are kept; beyond it the oldest is dropped."""
        self.recorder = recorder
        self.limit = limit
        self.recorded: dict[Hashable, Callable[[Tensor], Tensor]] = {}
        self._seen: set[Hashable] = set()

    def __call__(self, key: Hashable, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """function(x); the next call with the same key may overwrite it.

        Args:
            key: stands for the function and the shape of x.
            function: works on the device and waits for nothing.
            x: on the device or not; it is copied to its fixed place.
        """
        if key not in self.recorded:
            if key not in self._seen:
                self._seen.add(key)
                return function(x.to(self.recorder.device))
            self._seen.discard(make_room(self.recorded, self.limit))
            self.recorded[key] = self._record(function, x)
        return self.recorded[key](x)

    def _record(
        self, function: Callable[[Tensor], Tensor], x: Tensor
    ) -> Callable[[Tensor], Tensor]:
        place = x.to(self.recorder.device, copy=True)
        result = torch.empty(0)

        def run() -> None:
            nonlocal result
            result = function(place)

        replay = self.recorder.record(run)

        def call(x: Tensor) -> Tensor:
            if place.is_cuda and not x.is_cuda:
                x = x.pin_memory()  # or the copy would wait for all that the device has to do
            place.copy_(x, non_blocking=True)
            replay()
            return result

        return call
