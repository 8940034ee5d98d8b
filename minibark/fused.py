"""A causal model's decode step through the Triton kernels. Imports triton, so it comes in late."""

from __future__ import annotations

from torch import Tensor, nn

from .kernels.checks import interpreted
from .kernels.layer import Layer, decode_layer
from .kernels.linear import Matrix, Norm, _linear_kernel, norm_linear
from .kernels.step import choose_tokens, embed_tokens
from .model import GPT, Block, KVCache


def runs_in_interpreter() -> bool:
    """Whether Triton's interpreter runs the kernels, on a CPU."""
    return interpreted(_linear_kernel)


class FusedGPT:
    """The parameters of a `GPT` as the kernels take them; the tensors are the model's own."""

    choose = staticmethod(choose_tokens)

    def __init__(self, model: GPT) -> None:
        self.transformer = model.transformer
        self.head = model.lm_head
        self.norm_f = _norm(model.transformer.ln_f)
        self.layers = [_layer(block) for block in model.transformer.h]

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
