"""What modules have in common whose weights are not parameters."""

from __future__ import annotations

from typing import Any

from torch import nn


class Packed(nn.Module):
    """A module whose weights are kept as this processor multiplies them, and are no state.

    A state dict would lack them without a word, so none is made of it, nor of a model with it.
    """

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(
            f"a state_dict would lack {prefix.rstrip('.') or 'this module'}: the weights of "
            f"{type(self).__name__} are kept as this processor multiplies them. Open the model in "
            "precision 'float32' for one; Bark.save writes what was opened"
        )
