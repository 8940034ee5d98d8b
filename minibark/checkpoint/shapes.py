"""What tensors a stage has: its module, and the check of a state against it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..codec import CodecDecoder
from ..config import STAGES, BarkConfig, CheckpointError
from ..files import shown
from ..model import GPT, FineGPT
from .rows import SCALE
from .tensors import State


def new_module(stage: str, config: BarkConfig) -> nn.Module:
    """The untrained module of a stage, in float32 on the CPU whatever is usual."""
    with torch.device("cpu"), InFloat32():
        return _module(stage, getattr(config, stage))


# The initialisers draw from torch's own stream, which all threads share.
_DRAWING = threading.Lock()


class RandomStates(Mapping[str, State]):
    """Random weights by stage, decided by the seed, made when they are asked for and not kept."""

    def __init__(self, config: BarkConfig, seed: int = 0) -> None:
        self.config, self.seed = config, seed

    def __iter__(self) -> Iterator[str]:
        return iter(STAGES)

    def __len__(self) -> int:
        return len(STAGES)

    def __getitem__(self, stage: str) -> State:
        with _DRAWING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return new_module(stage, self.config).state_dict()


def _module(stage: str, part: Any) -> nn.Module:
    if stage == "codec":
        return CodecDecoder(part)
    return FineGPT(part) if stage == "fine" else GPT(part)


class InFloat32(TorchFunctionMode):
    """Makes tensors that no type is given for in float32; torch's own setting is the process's."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.randn, torch.zeros, torch.ones) and not kwargs.get("dtype"):
            kwargs["dtype"] = torch.float32
        return func(*args, **kwargs)


class NoDraws(TorchFunctionMode):
    """Leaves out the random values of new modules.

    On the meta device torch makes them in Python, for which it imports 900 modules in a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def empty_module(stage: str, part: Any) -> nn.Module:
    """The module of a stage on the meta device: shapes without values."""
    with torch.device("meta"), NoDraws():
        return _module(stage, part)


def checked(stage: str, state: State, part: Any, where: Path, may_be_int8: bool = False) -> State:
    """The state, if it is one of the stage with this configuration, int8 matrices with scales."""
    expected = dict(empty_module(stage, part).state_dict())
    int8 = [
        name
        for name, tensor in expected.items()
        if may_be_int8 and tensor.ndim == 2 and name in state and state[name].dtype == torch.int8
    ]
    expected |= {f"{name}{SCALE}": expected[name][:, 0] for name in int8}
    missing, extra = set(expected) - set(state), set(state) - set(expected)
    if missing or extra:
        faults = {"lacks": missing, "has unknown": extra}
        texts = [f"{fault} {some(names)}" for fault, names in faults.items() if names]
        raise CheckpointError(f"{where}: the {stage} model {' and '.join(texts)}")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{where}: {stage} {name} has shape {tuple(tensor.shape)}, its configuration asks "
                f"for {tuple(expected[name].shape)}"
            )
        if not tensor.is_floating_point() and name not in int8:
            raise CheckpointError(f"{where}: {stage} {name} holds {tensor.dtype}, not floats")
    for name in int8:
        scale = state[f"{name}{SCALE}"]
        if scale.dtype != torch.float32 or not bool(((scale > 0) & scale.isfinite()).all()):
            raise CheckpointError(
                f"{where}: {stage} {name}{SCALE} must hold finite float32 numbers above 0"
            )
    return state


def some(names: Iterable[str]) -> str:
    """The first five names and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(map(shown, ordered[:5])) + more
