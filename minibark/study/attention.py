"""Where the text model looks: its attention to the text, read off by going through a text again.

The weights are recomputed beside the model's own attention, from the queries and keys that each
layer hands to its seam, so nothing that is drawn depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..model import GPT, Attend

QUERIES = 128  # rows of weights that are computed at once


@torch.inference_mode()
def text_attention(
    model: GPT, prompt: Tensor, tokens: Tensor, n_merged: int, n_text: int
) -> Tensor:
    """How much each step of the text model attended to each text slot.

    Step t is the one that chose token t. Its query stands one position before it: at the infer id
    for the first, at token t - 1 for the others.

    Args:
        model: as it generates, where it is.
        prompt: (2 * n_merged + 1,) int64, of `semantic_prompt`.
        tokens: (S,) int64, those chosen.
        n_merged: slots of the text, to which those of the voice are added.
        n_text: how many slots, from the first, hold text.

    Returns:
        (n_layer, n_head, S, n_text) float32 on the CPU, in [0, 1]. A row's sum is what went to the
        text; the rest went to pads, to the voice in other slots and to earlier tokens.
    """
    n_steps = len(tokens)
    device = model.transformer.wpe.weight.device
    config = model.config
    found = torch.zeros(config.n_layer, config.n_head, n_steps, n_text, dtype=torch.float32)
    if not n_steps:
        return found
    # The last token is nobody's past.
    ids = torch.cat((prompt, tokens[:-1]))[None].to(device)
    x = model.transformer.wte(ids)
    merged = x[:, :n_merged] + x[:, n_merged : 2 * n_merged]
    x = torch.cat((merged, x[:, 2 * n_merged :]), dim=1)
    x = x + model.transformer.wpe.weight[: x.shape[1]]
    for layer, block in enumerate(model.transformer.blocks):
        x = block(x, _noting(block.attn.attend, found[layer], n_merged))
    return found


def _noting(
    attend: Attend, found: Tensor, first: int
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`attend`, which also puts the weights of queries from `first` on into found (H, S, n)."""

    def noting(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n_text, end = found.shape[2], q.shape[2]
        keys = k[0].float().transpose(1, 2)  # (H, D, T)
        positions = torch.arange(end, device=q.device)
        for start in range(first, end, QUERIES):
            stop = min(start + QUERIES, end)
            scores = q[0, :, start:stop].float() @ keys / math.sqrt(q.shape[3])
            scores.masked_fill_(positions > positions[start:stop, None], -math.inf)
            weights = scores.softmax(-1)[..., :n_text]
            found[:, start - first : stop - first] = weights.cpu()
        return attend(q, k, v)

    return noting
