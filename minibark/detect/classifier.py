"""The classifier: a weight for each feature and a bias, in a safetensors file."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint.shapes import some
from ..checkpoint.tensors import read_safetensors, save_safetensors
from ..config import CheckpointError
from ..files import reason, replacing, shown

_HUBERT = "hubert_sha256"  # in the file's metadata
_LARGEST = 1e200  # times any features in float32 it is a number still


class Classifier:
    """A logistic regression: P(Bark) = sigmoid(weight . features + bias).

    Attributes:
        weight: (1, C) float64.
        bias: (1,) float64.
        fingerprint: of the HuBERT whose features it was fitted to (`pretrained.fingerprint`); None
            where that is not known.
    """

    def __init__(
        self,
        weight: Any,
        bias: Any,
        fingerprint: str | None = None,
    ) -> None:
        """Take the numbers, as arrays, tensors or lists.

        Raises:
            CheckpointError: they have other shapes or types, or are not finite or far too large.
        """
        weight, bias = _floats(weight), _floats(bias)
        if weight.ndim != 2 or len(weight) != 1 or not weight.size or bias.shape != (1,):
            raise CheckpointError(
                f"weight must be (1, C) and bias (1,), got {weight.shape} and {bias.shape}"
            )
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise CheckpointError("weight and bias must be finite numbers")
        if max(np.abs(weight).max(), np.abs(bias).max()) > _LARGEST:
            raise CheckpointError(f"weight and bias must be numbers of at most {_LARGEST:g}")
        self.weight, self.bias = weight, bias
        self.fingerprint = fingerprint

    def probability(self, features: np.ndarray[Any, Any]) -> float:
        """P(Bark) of features (C,)."""
        score = float(self.weight[0] @ features.astype(np.float64) + self.bias[0])
        # Either form overflows on one side of zero.
        return 1 / (1 + math.exp(-score)) if score > 0 else math.exp(score) / (1 + math.exp(score))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Classifier:
        """The classifier in a safetensors file with `weight` (1, C) and `bias` (1,).

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: damaged, or with other tensors; the text names the file.
        """
        place = Path(os.path.expanduser(path))
        if place.suffix in (".pkl", ".pickle", ".joblib"):
            raise CheckpointError(
                f"{place} is a pickle, which is not run; what it holds is read by "
                f"'minibark detect --import-classifier {place} OUT.safetensors'"
            )
        if place.is_dir():
            raise CheckpointError(f"{place} is a folder; a classifier is a safetensors file")
        state, metadata = read_safetensors(place)
        if set(state) != {"weight", "bias"}:
            raise CheckpointError(
                f"{place}: a classifier has weight (1, C) and bias (1,), this file has "
                f"{some(state) or 'nothing'}"
            )
        for name, tensor in state.items():
            if not tensor.is_floating_point():
                raise CheckpointError(f"{place}: {name} must hold floats, got {tensor.dtype}")
        try:
            weight, bias = (state[name].double().numpy() for name in ("weight", "bias"))
            return cls(weight, bias, metadata.get(_HUBERT))
        except CheckpointError as error:
            raise CheckpointError(f"{place}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all."""
        with replacing(path) as part:
            save_safetensors(
                {"weight": torch.from_numpy(self.weight), "bias": torch.from_numpy(self.bias)},
                part,
                {} if self.fingerprint is None else {_HUBERT: self.fingerprint},
            )

    def check(self, width: int, fingerprint: str, name: str) -> None:
        """Refuse a HuBERT whose features this classifier cannot know.

        Raises:
            CheckpointError: they have another width, or it was fitted to those of another HuBERT.
        """
        if self.weight.shape[1] != width:
            raise CheckpointError(
                f"the classifier takes {self.weight.shape[1]} features, {shown(name)} gives {width}"
            )
        if self.fingerprint not in (None, fingerprint):
            raise CheckpointError(
                f"the classifier was fitted to the features of another HuBERT than {shown(name)}; "
                "name that one, or fit anew"
            )


def _floats(numbers: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    if isinstance(numbers, torch.Tensor):
        numbers = numbers.detach().cpu().double()
    try:
        return np.array(numbers, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"weight and bias must be numbers ({reason(error)})") from None
