"""CUDA graphs: calls captured once and replayed, so that launching their operations costs nothing.

What changes from call to call must lie in tensors at fixed places. Off a GPU the call itself stands
in for its graph.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor


class Capture:
    """Captures calls on a stream of its own, one for each device and thread.

    What one object has captured shares scratch memory, and so must run one after the other.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None

    def __call__(self, call: Callable[[], None], kept: Sequence[Tensor] = ()) -> Callable[[], None]:
        """What replays a call.

        Args:
            call: works on the device and waits for nothing.
            kept: tensors that it changes and that shall be as before once it is recorded.
        """
        if self.device.type != "cuda":
            return call
        stream = _stream(self.device, threading.get_ident())
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


@functools.cache
def _stream(device: torch.device, thread: int) -> torch.cuda.Stream:
    """Kept, because cuBLAS keeps 32 MiB for every stream that it has run on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def make_room(graphs: dict[Any, Any], limit: int) -> Any:
    """Drop the oldest of `limit` graphs; its key, or None.

    Never all of them at once: memory that graphs share must not be without one while results lie
    in it.
    """
    if len(graphs) < limit:
        return None
    oldest = next(iter(graphs))
    del graphs[oldest]
    return oldest


class CudaGraphs:
    """Functions of one tensor: called the first time, captured the second, then replayed.

    Attributes:
        graphs: what replays each, by its key.
    """

    def __init__(self, capture: Capture, limit: int) -> None:
        """`limit`: how many are kept; beyond it the oldest is dropped."""
        self.capture = capture
        self.limit = limit
        self.graphs: dict[Hashable, Callable[[Tensor], Tensor]] = {}
        self._seen: set[Hashable] = set()

    def __call__(self, key: Hashable, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """function(x); the next call with the same key may overwrite it.

        Args:
            key: stands for the function and the shape of x.
            function: works on the device and waits for nothing.
            x: on the device or not; it is copied to its fixed place.
        """
        if key not in self.graphs:
            if key not in self._seen:
                self._seen.add(key)
                return function(x.to(self.capture.device))
            self._seen.discard(make_room(self.graphs, self.limit))
            self.graphs[key] = self._captured(function, x)
        return self.graphs[key](x)

    def _captured(
        self, function: Callable[[Tensor], Tensor], x: Tensor
    ) -> Callable[[Tensor], Tensor]:
        place = x.to(self.capture.device, copy=True)
        result = torch.empty(0)

        def run() -> None:
            nonlocal result
            result = function(place)

        replay = self.capture(run)

        def call(x: Tensor) -> Tensor:
            if place.is_cuda and not x.is_cuda:
                x = x.pin_memory()  # or the copy would wait for all that the device has to do
            place.copy_(x, non_blocking=True)
            replay()
            return result

        return call
