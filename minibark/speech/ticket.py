"""A row on its way through a batch whose rows come and go."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import GenerationConfig
from ..files import reason
from ..options import Options
from ..pipeline import Row
from ..sampling import OnStep
from ..voice import Voice
from .steps import CoarseRow, SemanticRow


@dataclass(eq=False)
class Ticket:
    """A row on its way.

    Attributes:
        row: the row.
        options: its own.
        on_step: told of its progress.
        voice: its tokens, once it is done.
        error: what went wrong with it.
        spent_s: its share of the time that work took, in seconds.
    """

    row: Row
    options: Options
    on_step: OnStep | None
    config: GenerationConfig
    prompt: Tensor
    voice: Voice | None = None
    error: Exception | None = None
    spent_s: float = 0.0
    stage: str = "semantic"
    is_dropped: bool = False
    is_alone: bool = False  # since it is to be told apart from others
    semantic: Tensor = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.int64, device="cpu")
    )
    coarse: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64, device="cpu"))
    steps: SemanticRow | None = None
    windows: CoarseRow | None = None
    before: Tensor | None = None  # its stage, its random stream's state

    @property
    def has_begun(self) -> bool:
        """Whether anything of it has been made."""
        return self.stage != "semantic" or self.steps is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be done for it."""
        return self.is_dropped or self.voice is not None or self.error is not None

    def tell(self, done: int, total: int) -> None:
        """Tell how far its stage is; if that raises, that is its end."""
        if self.on_step is None or self.is_over:
            return
        try:
            self.on_step(self.stage, done, total)
        except Exception as error:
            self.error = error


def told_of_memory(error: BaseException, most: int) -> str:
    """What to tell of it where so many rows go on."""
    rows = "row" if most == 1 else "rows"
    return f"memory ran out ({reason(error)[:80]}); going on with {most} {rows} at once"


def key_of(ticket: Ticket, stage: str) -> Hashable:
    """What rows must have in common to take a stage's steps together."""
    options, alone = ticket.options, id(ticket) if ticket.is_alone else 0
    if stage == "semantic":
        return options.text_sampling, options.allow_early_stop, alone
    return options.coarse_sampling, alone
