"""Passes of the fine model on a CPU, in pieces that stay in the processor's cache.

A pass over one row's buffer is bound by arithmetic already. Together, rows push each other's
numbers out of the cache: eight take a fifth longer than one by one (Zen 4, small model, int8). So
does what an MLP is wide inside, 12.6 MB for 1,024 positions in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..model import Attend, Block, FineGPT

PART = 512  # positions that go through an MLP together


class RowByRow:
    """A fine model that sees one row at a time; in int8 each row so rounds by itself."""

    def __init__(self, model: FineGPT) -> None:
        self.model = model

    def __call__(self, codes: Tensor, codebook: int, start: int = 0) -> Tensor:
        """As `FineGPT.forward`."""
        if len(codes) == 1:
            logits: Tensor = self.model(codes, codebook, start)
            return logits
        return torch.cat([self.model(row[None], codebook, start) for row in codes])


class BlockInParts(Block):
    """A `Block` whose MLP sees `PART` positions at a time; in int8 each part rounds by itself.

    It is not for gradients, as it adds in place.
    """

    def __init__(self, block: Block) -> None:
        """With the modules of a block."""
        nn.Module.__init__(self)
        self.ln_1, self.attn, self.ln_2, self.mlp = block.ln_1, block.attn, block.ln_2, block.mlp

    def forward(self, x: Tensor, attend: Attend | None = None) -> Tensor:
        """See `Block`."""
        y = self.attn(self.ln_1(x), attend)
        x = x[:, -y.shape[1] :] + y
        for part in torch.split(x.flatten(0, 1), PART):
            part += self.mlp(self.ln_2(part))
        return x
