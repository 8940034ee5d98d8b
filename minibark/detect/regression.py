"""Logistic regression, and how well its probabilities part two classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_MAX_STEPS = 100

Floats = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


def fit(features: Floats, is_bark: Flags, strength: float) -> tuple[Floats, Floats]:
    """Weight (1, C) and bias (1,) of the logistic regression with the least L2-penalised loss.

    Features are brought to mean 0 and deviation 1 first, and the two steps made one. What is least
    is the mean of the examples' log losses plus half of `strength` times the squared weights, the
    bias not among them. Both classes weigh the same, however many examples each has: codec copies
    would else make Bark rarer. That is scikit-learn's with C = 1 / (n strength) and class_weight=
    "balanced". By Newton's method in float64, which draws nothing.

    Args:
        features: (n, C).
        is_bark: (n,), with both classes.
        strength: of the penalty, above 0.
    """
    mean, deviation = features.mean(0), features.std(0)
    deviation = np.where(deviation > 1e-12, deviation, 1.0)
    x = torch.from_numpy((features - mean) / deviation)
    x = torch.cat((x, x.new_ones(len(x), 1)), 1)  # the last column is the bias's
    y = torch.from_numpy(is_bark).double()
    counts = torch.stack((len(y) - y.sum(), y.sum()))
    share = (0.5 / counts)[y.long()]  # what each example weighs, 1 together
    penalty = torch.full((x.shape[1],), strength, dtype=torch.float64, device="cpu")
    penalty[-1] = 0
    w = x.new_zeros(x.shape[1])

    def loss(w: Tensor) -> float:
        scores = x @ w
        losses = torch.nn.functional.softplus(scores) - y * scores
        return float(share @ losses + (penalty * w * w).sum() / 2)

    now = loss(w)
    for _ in range(_MAX_STEPS):
        p = torch.sigmoid(x @ w)
        slope = x.T @ (share * (p - y)) + penalty * w
        curve = (x.T * (share * p * (1 - p))) @ x + torch.diag(penalty + 1e-12)
        step = torch.linalg.solve(curve, slope)
        size = 1.0
        while (new := loss(w - size * step)) > now and size > 1e-10:
            size /= 2
        w = w - size * step
        if now - new <= 1e-13 * max(abs(now), 1):
            break
        now = new
    weight = w[:-1].numpy() / deviation
    return weight[None], np.array([float(w[-1]) - float(weight @ mean)])


def average_precision(scores: Floats, is_bark: Flags) -> float:
    """The mean precision at each Bark example, highest score first; equal scores come together.

    Source: scikit-learn, `average_precision_score`.
    """
    hits, misses = _counts(scores, is_bark)
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / (hits + misses)).sum() / hits[-1])


def equal_error_rate(scores: Floats, is_bark: Flags) -> float:
    """The rate at which as many of Bark's are missed as of the others are taken for it.

    Between two thresholds the line between their rates counts.
    """
    hits, misses = _counts(scores, is_bark)
    missed = 1 - np.concatenate(([0], hits)) / hits[-1]
    false = np.concatenate(([0], misses)) / misses[-1]
    gap = missed - false  # falls from 1 to -1
    i = int(np.argmax(gap <= 0))
    share = gap[i - 1] / (gap[i - 1] - gap[i])
    return float(false[i - 1] + share * (false[i] - false[i - 1]))


def _counts(scores: Floats, is_bark: Flags) -> tuple[Floats, Floats]:
    """How many of each class have at least each of the scores there are, highest first."""
    order = np.argsort(-scores, kind="stable")
    ordered, flags = scores[order], is_bark[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(scores) - 1)
    return np.cumsum(flags)[ends].astype(float), np.cumsum(~flags)[ends].astype(float)
