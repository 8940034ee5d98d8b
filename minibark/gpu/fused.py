"""The models through the Triton kernels. Imports triton, so it comes in late."""

from __future__ import annotations

from torch import Tensor, nn

from ..kernels.attention import attention
from ..kernels.layer import Layer, decode_layer
from ..kernels.linear import norm_linear
from ..kernels.matrix import Matrix, Norm
from ..kernels.step import choose_tokens, embed_tokens
from ..model import GPT, Block, FineGPT, KVCache, causal_attention, full_attention

# From how many queries of a head `kernels/attention.py` takes less time than torch's attention, by
# whether it is causal. `benchmarks/gpu_report.py --only passes` measures it; until it has, nowhere:
# nothing in this package calls that kernel.
LEAST_QUERIES: dict[bool, int] = {}


def use_attention(model: GPT | FineGPT) -> None:
    """Give a model's prompts and passes to our attention, where it is the faster one."""
    for block in model.transformer.blocks:
        block.attn.attend = causal_attend if isinstance(model, GPT) else full_attend


def causal_attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `model.causal_attention`, by whichever is faster."""
    return attention(q, k, v, causal=True) if _pays(q, True) else causal_attention(q, k, v)


def full_attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `model.full_attention`, by whichever is faster."""
    return attention(q, k, v, causal=False) if _pays(q, False) else full_attention(q, k, v)


def _pays(q: Tensor, causal: bool) -> bool:
    least, head_size = LEAST_QUERIES.get(causal), q.shape[3]
    return least is not None and q.shape[2] >= least and not head_size & (head_size - 1)


class FusedGPT:
    """The parameters of a `GPT` as the kernels take them; the tensors are the model's own."""

    choose = staticmethod(choose_tokens)

    def __init__(self, model: GPT) -> None:
        self.transformer = model.transformer
        self.head = model.lm_head
        self.norm_f = _norm(model.transformer.ln_f)
        self.layers = [_layer(block) for block in model.transformer.blocks]
        use_attention(model)

    def decode_one(
        self, tokens: Tensor, cache: KVCache, lengths: Tensor, index: Tensor, *, ids: slice
    ) -> Tensor:
        """Append one token to every row of the cache and return the logits that follow.

        Args:
            tokens: (B,) int64, the newest token of each row.
            cache: its buffers get one position more per row.
            lengths: (B,) int32 on the device: how much each row holds; 1 is added.
            index: (1,) int64 on the device: the steps begun; 1 is added.
            ids: the output ids requested.

        Returns:
            (B, V) float32 logits of those ids.
        """
        wte, wpe = self.transformer.wte.weight, self.transformer.wpe.weight
        assert isinstance(wte, Tensor)
        x = embed_tokens(tokens, wte, wpe, lengths, index)  # (B, C)
        for layer, kv in zip(self.layers, cache.kv, strict=True):
            decode_layer(x, layer, kv, lengths)
        return norm_linear(x, self.norm_f, _matrix(self.head, ids))


def _layer(block: Block) -> Layer:
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
