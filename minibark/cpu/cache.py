"""Which key/value cache a causal model has on a CPU."""

from __future__ import annotations

import torch

from ..model import GPT, Cache, KVCache
from ..precision import FLOATS
from . import abilities
from .byte_sums import ByteCache
from .row_sums import RowSumCache

LEAST_EMBD = 512  # channels; narrower caches are read in less time than the extra calls take


def new_cache(model: GPT, batch_size: int, precision: str = "float32") -> Cache:
    """An empty cache, of the kind that is faster where it is: int8 and int4 have it in bytes."""
    if not pays(model):
        return KVCache(model, batch_size)
    return (ByteCache if is_in_bytes(model, precision) else RowSumCache)(model, batch_size)


def is_in_bytes(model: GPT, precision: str) -> bool:
    """Whether a model's cache is kept in bytes."""
    return pays(model) and precision not in FLOATS and abilities.has_byte_sums()


def pays(model: GPT) -> bool:
    """Whether sums of rows are the faster way for a model.

    That is on a CPU, in float32, if torch has FBGEMM's sums of rows.
    """
    weight = model.transformer.wpe.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.shape[1] >= LEAST_EMBD
        and "fbgemm" in torch.backends.quantized.supported_engines
    )
