"""The models through the Triton kernels. Imports triton, so it comes in late."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from ..kernels.attention import attention
from ..kernels.launch import interpreted
from ..kernels.layer import Layer, decode_layer
from ..kernels.linear import Matrix, Norm, _linear_kernel, norm_linear
from ..kernels.step import choose_tokens, embed_tokens
from ..model import GPT, Block, KVCache, Transformer

# From how many queries of a head `kernels/attention.py` takes less time than torch's attention, by
# whether it is causal. `benchmarks/gpu_report.py --only passes` measures it; until it has, nowhere.
LEAST_QUERIES: dict[bool, int] = {}


def runs_in_interpreter() -> bool:
    """Whether Triton's interpreter runs the kernels, on a CPU."""
    return interpreted(_linear_kernel)


def use_attention(transformer: Transformer) -> None:
    """Give a model's prompts and passes to our attention, where it is the faster one."""
    for block in transformer.h:
        assert isinstance(block, Block)
        block.attn.attend = attend


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, product_dtype: torch.dtype | None = None
) -> Tensor:
    """As `ops.attention`, by whichever is faster."""
    least, head_size = LEAST_QUERIES.get(causal), q.shape[3]
    if least is None or q.shape[2] < least or head_size & (head_size - 1):
        return ops.attention(q, k, v, causal=causal, product_dtype=product_dtype)
    return attention(q, k, v, causal=causal)


class FusedGPT:
    """The parameters of a `GPT` as the kernels take them; the tensors are the model's own."""

    choose = staticmethod(choose_tokens)

    def __init__(self, model: GPT) -> None:
        self.transformer = model.transformer
        self.head = model.lm_head
        self.norm_f = _norm(model.transformer.ln_f)
        self.layers = [_layer(block) for block in model.transformer.h]
        use_attention(model.transformer)

    def decode_one(
        self, tokens: Tensor, cache: KVCache, lengths: Tensor, index: Tensor, *, head: slice
    ) -> Tensor:
        """Append one token to every row of the cache and give the logits that follow.

        Args:
            tokens: (B,) int64, the newest token of each row.
            cache: its buffers get one position more per row.
            lengths: (B,) int32 on the device: how much each row holds; 1 is added.
            index: (1,) int64 on the device: the steps begun; 1 is added.
            head: the output ids wanted.

        Returns:
            (B, V) float32 logits of the ids in `head`.
        """
        wte, wpe = self.transformer.wte.weight, self.transformer.wpe.weight
        assert isinstance(wte, Tensor)
        x = embed_tokens(tokens, wte, wpe, lengths, index)  # (B, C)
        for layer, kv in zip(self.layers, cache.kv, strict=True):
            decode_layer(x, layer, kv, lengths)
        return norm_linear(x, self.norm_f, _matrix(self.head, head))


def _layer(block: nn.Module) -> Layer:
    assert isinstance(block, Block)
    return Layer(
        norm_1=_norm(block.ln_1),
        qkv=_matrix(block.attn.c_attn),
        proj=_matrix(block.attn.c_proj),
        norm_2=_norm(block.ln_2),
        fc=_matrix(block.mlp.c_fc),
        out=_matrix(block.mlp.c_proj),
    )


def _norm(module: nn.LayerNorm) -> Norm:
    return Norm(module.weight, module.bias, module.eps)


def _matrix(module: nn.Module, rows: slice = slice(None)) -> Matrix:
    parts = (getattr(module, name, None) for name in ("weight", "scale", "bias"))
    weight, scale, bias = (part[rows] if isinstance(part, Tensor) else None for part in parts)
    assert weight is not None
    return Matrix(weight, scale, bias)
