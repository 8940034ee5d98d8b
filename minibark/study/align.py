"""When each word is said, told from where the text model looked.

    attention   (layers, heads, S, n)
      | score: how well a head walks through all slots in order                (layers, heads)
      | the heads that follow the text, added up                               (S, n)
      | Viterbi: the likeliest path through the slots that never goes back      (S,)
    words       from the first frame in one of their slots to the last

Nothing here is trained, and nothing of it steers: it only shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .words import Word

Array = np.ndarray[Any, Any]

LEAD_S = 0.045
"""How long before a sound the model looks at its letters, as measured on `tiny`."""

MIN_SHARE = 0.5  # of the best head's score, for a head to be heard too
MAX_HEADS = 4
LEAST_WEIGHT = 0.3  # below it a word's time is a guess
LEAST_S = 0.01  # half a token: what is shorter was left no time, at the end of the sound
_FLOOR = 1e-3  # a weight below this tells nothing


@dataclass(frozen=True)
class Head:
    """An attention head that follows the text.

    Attributes:
        layer, head: which, from 0.
        score: in [0, 1), how well it walks through the slots in order (`monotonicity`).
    """

    layer: int
    head: int
    score: float


@dataclass(frozen=True)
class WordTime:
    """When a word is said.

    Attributes:
        word: its index among the words of the text.
        start_s, end_s: seconds from the beginning.
        weight: in [0, 1], the mean weight of the heads on its slots in between: how sure it is.
    """

    word: int
    start_s: float
    end_s: float
    weight: float

    @property
    def is_guess(self) -> bool:
        """Whether the heads hardly looked at it in its time, as where it was not said at all."""
        return self.weight < LEAST_WEIGHT

    @property
    def has_time(self) -> bool:
        """Whether there is any sound of it to hear."""
        return self.end_s - self.start_s >= LEAST_S


@dataclass(frozen=True)
class Alignment:
    """How the text and the semantic tokens belong together.

    Attributes:
        heads: those that were picked, the best first.
        scores: (n_layer, n_head) float32, of all.
        weights: (S, n) float32, the picked heads' attention, each by the square of its score.
        slots: (S,) int64, the slot that is said at each step.
        words: a time for each word that has a slot and can be read.
    """

    heads: tuple[Head, ...]
    scores: Array
    weights: Array
    slots: Array
    words: tuple[WordTime, ...]


def align(
    attention: Array, words: Sequence[Word], rate_hz: float, most_s: float = math.inf
) -> Alignment:
    """The alignment that attention shows.

    Args:
        attention: (n_layer, n_head, S, n), of `text_attention`.
        words: of the text; their slots are in [0, n).
        rate_hz: steps a second.
        most_s: how long the sound is; no word ends after it.
    """
    n_layer, n_head, n_steps, n_slots = attention.shape
    if not n_steps or not n_slots:
        none = np.zeros((n_layer, n_head), np.float32)
        return Alignment((), none, attention[0, 0], np.zeros(n_steps, np.int64), ())
    scores = monotonicity(attention.reshape(-1, n_steps, n_slots)).reshape(n_layer, n_head)
    heads = pick_heads(scores)
    parts = np.array([head.score**2 for head in heads], np.float32)
    chosen = attention[[head.layer for head in heads], [head.head for head in heads]]
    weights = np.tensordot(parts / parts.sum(), chosen, 1)
    slots = best_path(np.log(weights + _FLOOR))
    times = _times(slots, weights, words, rate_hz, min(len(slots) / rate_hz, most_s))
    return Alignment(heads, scores, weights, slots, times)


def pick_heads(scores: Array) -> tuple[Head, ...]:
    """The heads with a score that is not far below the best, of scores (n_layer, n_head)."""
    best_first = np.argsort(-scores, axis=None, kind="stable")[:MAX_HEADS]
    places = [divmod(int(place), scores.shape[1]) for place in best_first]
    least = max(MIN_SHARE * float(scores.max()), 1e-9)
    kept = [place for place in places if scores[place] >= least] or places[:1]
    return tuple(Head(layer, head, max(float(scores[layer, head]), 1e-9)) for layer, head in kept)


def monotonicity(attention: Array) -> Array:
    """(N,) float32 in [0, 1): how well each map (N, S, n) walks through the slots in order.

    That is the mean weight on its best path, where each slot's weight counts as far as it is above
    that slot's own mean: so a head that stays where it is has none, however sure it is. A path
    begins at the first slot and ends at the last, never goes back, and leaves no slot out unless
    there are more slots than steps.
    """
    n_steps = attention.shape[1]
    above = attention - attention.mean(1, keepdims=True)
    best = _first(above[:, 0])
    for t in range(1, n_steps):
        best = _reached(best, _moves(attention.shape[2], n_steps)).max(0) + above[:, t]
    total: Array = np.maximum(best[:, -1] / n_steps, 0)
    return total.astype(np.float32)


def best_path(scores: Array) -> Array:
    """(S,) int64: the slots of the path with the largest sum of scores (S, n)."""
    n_steps, n_slots = scores.shape
    moves = _moves(n_slots, n_steps)
    best = _first(scores[None, 0])
    came = np.zeros((n_steps, n_slots), np.int64)
    for t in range(1, n_steps):
        reached = _reached(best, moves)
        came[t] = reached[:, 0].argmax(0)
        best = reached.max(0) + scores[t]
    path = np.empty(n_steps, np.int64)
    path[-1] = n_slots - 1
    for t in range(n_steps - 1, 0, -1):
        path[t - 1] = path[t] - came[t, path[t]]
    return path


def _first(scores: Array) -> Array:
    """The sums (N, n) of paths of one step: they stand at the first slot, unless it is all."""
    best = np.full(scores.shape, -np.inf)
    best[:, 0] = scores[:, 0]
    return best


def _reached(best: Array, n_moves: int) -> Array:
    """(moves, N, n): the sums (N, n) of the step before, by how far a path went on."""
    n_slots = best.shape[1]
    reached = np.full((n_moves, *best.shape), -np.inf)
    for move in range(n_moves):
        reached[move, :, move:] = best[:, : n_slots - move]
    return reached


def _moves(n_slots: int, n_steps: int) -> int:
    """How many moves there are, to stay among them, so that the last slot can be reached."""
    return min(n_slots, max(2, math.ceil((n_slots - 1) / max(1, n_steps - 1)) + 1))


def _times(
    slots: Array, weights: Array, words: Sequence[Word], rate_hz: float, last_s: float
) -> tuple[WordTime, ...]:
    """The times of the words that are said; one that the path leaves out takes none."""
    found = []
    for index, word in enumerate(words):
        if not word.n_slots or word.is_unknown:
            continue
        first = int(np.searchsorted(slots, word.slot))
        end = int(np.searchsorted(slots, word.slot + word.n_slots))
        here = weights[first:end, word.slot : word.slot + word.n_slots]
        start_s, end_s = (min(step / rate_hz + LEAD_S, last_s) for step in (first, end))
        weight = float(here.sum(1).mean()) if end > first else 0.0
        found.append(WordTime(index, start_s, end_s, weight))
    return tuple(found)
