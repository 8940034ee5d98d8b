"""The one door to `cpu/` and `gpu/`: what a stage becomes on a device in a precision.

Tokens are the plain model's, up to the rounding of sums and what a precision leaves out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .checkpoint.rows import floats_state
from .checkpoint.shapes import empty_module
from .checkpoint.tensors import State
from .config import BarkConfig
from .cpu import float32, reduce
from .cpu.abilities import give_memory_back
from .cpu.cache import new_cache, pays
from .cpu.drafted import DraftedDecoder
from .cpu.passes import RowByRow
from .cpu.scripted import ScriptedDecoder
from .decoding import CachedDecoder, Decoder
from .files import reason
from .model import GPT, FineGPT
from .precision import FLOATS, check_precision, is_reduced

Passes = Callable[[Tensor, int, int], Tensor]
"""What is called as `FineGPT.forward` is."""


@dataclass(frozen=True)
class Choice:
    """Where and how stages run.

    Attributes:
        device: with its index, if it is a GPU.
        precision: of the three transformers' weights; logits and codec are float32 always.
        backend: what decodes, `"torch"` or `"triton"`.
    """

    device: torch.device
    precision: str
    backend: str

    @property
    def records(self) -> bool:
        """Whether decoders record their steps, and so are worth keeping."""
        return self.device.type == "cuda" or self.backend == "triton"

    def __str__(self) -> str:
        """Where and how, in words."""
        is_gpu = self.device.type == "cuda"
        where = torch.cuda.get_device_name(self.device) if is_gpu else str(self.device)
        if self.records:
            from .gpu.backend import describe_backend

            how = describe_backend(self.backend, self.device)
            return f"on {where} in {self.precision} by {how}"
        how = f" ({reduce.describe(self.precision)})" if self.device.type == "cpu" else ""
        return f"on {where} in {self.precision} by plain torch{how}"


def choose(
    device: str | torch.device | None = None,
    precision: str | None = None,
    backend: str | None = None,
) -> Choice:
    """What runs if these are asked for; None is the fastest that keeps the quality.

    Args:
        device: as for `torch.device`; None is CUDA where there is one, else the CPU.
        precision: None is bfloat16 on CUDA, else float32.
        backend: None is the fastest that can run.

    Raises:
        ValueError: an unknown precision, or a device that this machine does not have.
        BackendError: a backend that cannot run on the device.
    """
    place = _device(device)
    precision = precision or ("bfloat16" if place.type == "cuda" else "float32")
    check_precision(precision, place)
    if place.type == "cpu":
        reduce.warn_if_slow(precision)
    if place.type != "cuda" and backend in (None, "torch"):
        return Choice(place, precision, "torch")
    from .gpu.backend import choose_backend

    return Choice(place, precision, choose_backend(backend, place))


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # With its index: which GPU is the current one may change.
        return torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        here = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise ValueError(
            f"device {str(device)!r} cannot be used here: {reason(error)[:120]}; use {here}"
        ) from error


def build(stage: str, config: BarkConfig, state: State, choice: Choice) -> nn.Module:
    """A stage's module, on the CPU still, in evaluation mode and without gradients.

    Args:
        stage: one of `STAGES`.
        config: of the whole Bark.
        state: its checked tensors, as a `Checkpoint` has them. In float32 they become the
            module's own, mapped files included; else none of them is kept.
        choice: where it will run and how.
    """
    module = empty_module(stage, getattr(config, stage))
    reduced = is_reduced(choice.precision, choice.device)
    if not isinstance(module, (GPT, FineGPT)):
        own = floats_state(state, torch.float32)
        if reduced:
            own = {name: tensor.clone() for name, tensor in own.items()}
        module.load_state_dict(own, strict=True, assign=True)
    elif not reduced:
        dtype = FLOATS[choice.precision]
        module.load_state_dict(floats_state(state, dtype), strict=True, assign=True)
        if choice.device.type == "cpu" and not choice.records:
            float32.dress(module)
    else:
        # A matrix is read and converted after the other: no float32 copy of all is made.
        if choice.device.type == "cpu":
            recur = stage == "coarse"  # a window every 60 steps
            reduce.reduce(module, state, choice.precision, prompts_recur=recur)
        else:
            from .gpu.int8 import reduce_to_int8

            reduce_to_int8(module, state)
        give_memory_back()
    return module.eval().requires_grad_(False)


def decoder(model: GPT, n_merged: int, choice: Choice) -> Decoder:
    """What steps of a built model run on; `n_merged` as in `GPT.forward`."""
    if not choice.records:
        kind = CachedDecoder
        if choice.device.type == "cpu":
            is_drafted = choice.precision == "float32" and pays(model)
            kind = DraftedDecoder if is_drafted else ScriptedDecoder
        return kind(model, n_merged, partial(new_cache, precision=choice.precision))
    from .gpu.decoder import GraphDecoder

    return GraphDecoder(model, n_merged, backend=choice.backend)


def passes(model: FineGPT, choice: Choice) -> Passes:
    """What passes of a built fine model run on."""
    if choice.device.type == "cpu":
        return RowByRow(model)
    if choice.device.type != "cuda":
        return model
    from .gpu.decoder import GraphFine

    return GraphFine(model, backend=choice.backend)


def describe(model: nn.Module, choice: Choice) -> str:
    """Which fast paths a built stage has, read off its modules."""
    if not isinstance(model, (GPT, FineGPT)):
        return "plain torch"
    blocks = model.transformer.blocks
    products = Counter(
        type(product).__name__
        for block in blocks
        for product in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
    )
    attention = Counter(getattr(block.attn.attend, "__name__", "?") for block in blocks)
    parts = [f"products {_counts(products)}", f"attention {_counts(attention)}"]
    if isinstance(model, GPT):
        made = decoder(model, 0, choice)
        cache = made.new_cache(model, 1) if isinstance(made, CachedDecoder) else None
        parts += [
            f"table {_table(model.transformer.wte)}",
            f"head {type(model.lm_head).__name__}",
            f"decoder {type(made).__name__}" + (f", cache {type(cache).__name__}" if cache else ""),
        ]
    else:
        parts += [f"layers {_counts(Counter(type(block).__name__ for block in blocks))}"]
        parts += [f"heads {getattr(model.project, '__name__', '?')}"]
        parts += [f"passes {type(passes(model, choice)).__name__}"]
    return "; ".join(parts)


def _table(table: nn.Module) -> str:
    return type(table).__name__ + (" in its file" if getattr(table, "is_mapped", False) else "")


def _counts(names: Counter[str]) -> str:
    return " + ".join(f"{count} {name}" for name, count in sorted(names.items()))
