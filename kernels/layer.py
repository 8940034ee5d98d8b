"""One transformer layer of one new position per row, in five kernels.

    q, k, v = W_qkv LN_1(x)             norm_qkv; k and v go into the cache
    splits  = attention(q, cache)       decode_attention_splits
    x      += W_proj combined(splits)   combine_residual
    h       = GELU(W_fc LN_2(x))        norm_linear
    x      += W_out h                   linear_residual

Each kernel is as much as can be done before all its programs must see the results of all others.
Several rows combine their splits in a sixth kernel. The residual stream x and h are float32.
"""

from typing import NamedTuple

from torch import Tensor

from .decode_attention import decode_attention, decode_attention_ref, decode_attention_splits
from .linear import (
    combine_residual,
    linear_residual,
    linear_residual_ref,
    norm_linear,
    norm_linear_ref,
    norm_qkv,
    norm_qkv_ref,
)
from .matrix import Matrix, Norm


class Layer(NamedTuple):
    """The parameters of one pre-norm layer with C channels."""

    norm_1: Norm
    qkv: Matrix  # (3 C, C)
    proj: Matrix  # (C, C)
    norm_2: Norm
    fc: Matrix  # (4 C, C)
    out: Matrix  # (C, 4 C)


def decode_layer(x: Tensor, layer: Layer, kv: Tensor, lengths: Tensor) -> None:
    """Transform one new position per row, in place, and append it to the cache.

    Args:
        x: (B, C) float32, the residual stream.
        layer: the parameters.
        kv: the layer's cache, (2, B, H, T, D) with H D = C, D a multiple of 8 in [16, 256].
        lengths: (B,) int32: how much each row holds with the new position, in [1, T]. On a GPU
            values are not checked but clamped.

    Raises:
        TypeError: dtypes that the kernels do not take.
        ValueError: shapes that do not fit, lengths out of range, tensors that are not on the GPU.
    """
    q = norm_qkv(x, layer.norm_1, layer.qkv, kv, lengths)
    if len(x) == 1:
        splits = decode_attention_splits(q, kv[0], kv[1], lengths, early=True)
        combine_residual(splits, layer.proj, x)
    else:
        attended = decode_attention(q, kv[0], kv[1], lengths, early=True)
        linear_residual(attended.view(x.shape), layer.proj, x)
    linear_residual(norm_linear(x, layer.norm_2, layer.fc, gelu=True), layer.out, x)


def decode_layer_ref(x: Tensor, layer: Layer, kv: Tensor, lengths: Tensor) -> None:
    """Same as `decode_layer`, by the equations and in float32."""
    q = norm_qkv_ref(x, layer.norm_1, layer.qkv, kv, lengths)
    attended = decode_attention_ref(q, kv[0], kv[1], lengths.tolist())
    linear_residual_ref(attended.view(x.shape), layer.proj, x)
    linear_residual_ref(norm_linear_ref(x, layer.norm_2, layer.fc, gelu=True), layer.out, x)
