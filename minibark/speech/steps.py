"""Rows in the two token loops, step by step, where rows may come and go between steps.

`generate_semantic` and `generate_coarse` say what is done to rows that begin together; here the
same is done to rows that do not, with the same prompts, draws and ends. A row gets what it gets
there alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .. import coarse
from ..config import GenerationConfig
from ..decoding import Decoder, RandomStreams, choose_next
from ..sampling import Sampling, check_finite
from ..semantic import END_TEST_STEPS


@dataclass(eq=False)
class SemanticRow:
    """What one text begins with, how it may end, and its tokens so far.

    Attributes:
        prompt: of `semantic_prompt`.
        generator: its random stream.
        n_steps: how many it may take.
        least_end_p: the probability of the end token that ends it.
        tokens: those made.
        n_done: steps taken.
        has_ended: whether it has no more to take.
    """

    prompt: Tensor
    generator: torch.Generator | None
    n_steps: int
    least_end_p: float
    tokens: list[int] = field(default_factory=list)
    n_done: int = 0
    has_ended: bool = False


@dataclass(eq=False)
class CoarseRow:
    """One text in the coarse stage.

    Attributes:
        row: its ids.
        config: rates, and windows of its own.
        generator: its random stream.
        n_done: steps taken.
        prompt: of its newest window.
    """

    row: coarse.Row
    config: GenerationConfig
    generator: torch.Generator | None
    n_done: int = 0
    prompt: Tensor | None = None

    @property
    def n_left(self) -> int:
        """Steps that are to come."""
        return self.row.n_steps - self.n_done

    @property
    def begins(self) -> tuple[int, int]:
        """What rows must have in common to make a window together: its length, its codebook."""
        config = self.config
        return config.sliding_window_len, self.n_done % config.n_coarse_codebooks

    def add(self, ids: Tensor) -> None:
        """Add ids (n,); those beyond the end are left out."""
        ids, first = ids[: self.n_left], self.row.n_history + self.n_done
        self.row.coarse[first : first + len(ids)] = ids
        self.n_done += len(ids)

    def next_window(self) -> bool:
        """Make the prompt of the next window; whether it is the one before it, and ids since."""
        before, self.prompt = self.prompt, coarse.window_prompt(self.row, self.n_done, self.config)
        n_steps = self.config.sliding_window_len
        return before is not None and coarse.all_grew([before], [self.prompt], n_steps)


class SemanticSteps:
    """Texts that take their semantic steps together.

    Attributes:
        rows: those that are decoded.
        is_open: whether rows may join while others are at work.
    """

    def __init__(
        self,
        decoder: Decoder,
        device: torch.device,
        config: GenerationConfig,
        sampling: Sampling,
        allow_early_stop: bool,
    ) -> None:
        self.rows: list[SemanticRow] = []
        self.is_open = decoder.keep([])
        self._decoder, self._device, self._sampling = decoder, device, sampling
        self._end, self._may_end = config.semantic_vocab_size, allow_early_stop
        self._ids = slice(0, self._end + allow_early_stop)
        self._newest = torch.zeros(0, dtype=torch.int64, device=device)

    @property
    def n_live(self) -> int:
        """Rows that have not ended."""
        return sum(not row.has_ended for row in self.rows)

    @property
    def is_empty(self) -> bool:
        """Whether all rows have ended."""
        return not self.n_live

    def join(self, rows: Sequence[SemanticRow]) -> bool:
        """Begin rows and take their first step; False where the decoder lets none in just now.

        Raises:
            FloatingPointError: logits that no token can be drawn from; no row has begun.
        """
        self._let_go()
        begin = self._decoder.join if self.rows else self._decoder.prefill
        try:
            logits = begin([row.prompt for row in rows], self._ids)
            if logits is None:
                return False
            check_finite(logits, "semantic")
        except Exception:
            self._decoder.keep(list(range(len(self.rows))))
            raise
        streams, active = _streams(rows, self._device), [True] * len(rows)
        tokens, p = choose_next(logits, self._ids, self._sampling, streams, active)
        self.rows, self._newest = [*self.rows, *rows], torch.cat((self._newest, tokens))
        self._note(rows, streams, tokens[None], p[None])
        return True

    def advance(self) -> int:
        """Take a step or, where that is possible, up to `END_TEST_STEPS` at once; how many."""
        self._let_go()
        left = [0 if row.has_ended else row.n_steps - row.n_done for row in self.rows]
        streams = _streams(self.rows, self._device)
        n = min(self._decoder.steps_at_once, END_TEST_STEPS, max(left))
        active = [[step < n_left for n_left in left] for step in range(n)]
        many, many_p = self._decoder.take_steps(
            self._newest, [self._ids] * n, self._sampling, streams, active
        )
        self._newest = many[-1]
        self._note(self.rows, streams, many, many_p)
        return n

    def _let_go(self) -> None:
        """Let rows that have ended leave the decoder, if it lets them."""
        kept = [place for place, row in enumerate(self.rows) if not row.has_ended]
        if not kept or (len(kept) < len(self.rows) and self._decoder.keep(kept)):
            self.rows, self._newest = [self.rows[place] for place in kept], self._newest[kept]

    def _note(
        self, rows: Sequence[SemanticRow], streams: RandomStreams, many: Tensor, many_p: Tensor
    ) -> None:
        """Add tokens (n, B) to rows up to each one's end, and give back what it drew beyond."""
        for ahead, (step, step_p) in enumerate(zip(many.tolist(), many_p.tolist(), strict=True), 1):
            for place, row in enumerate(rows):
                if row.has_ended:
                    continue
                row.n_done += 1
                if self._may_end and (step[place] == self._end or step_p[place] >= row.least_end_p):
                    row.has_ended = True
                    streams.give_back(place, len(many) - ahead)
                else:
                    row.tokens.append(step[place])
                    row.has_ended = row.n_done == row.n_steps


class CoarseWindows:
    """Texts that take their coarse steps together, a window at a time."""

    def __init__(self, decoder: Decoder, device: torch.device, sampling: Sampling) -> None:
        self._decoder, self._device, self._sampling = decoder, device, sampling
        self._rows: list[CoarseRow] = []  # those that are decoded
        self._newest = torch.zeros(0, dtype=torch.int64, device=device)

    def take(self, rows: Sequence[CoarseRow]) -> None:
        """Make a window more of rows.

        Their windows have one length and begin with one codebook, and none is at its end.

        Raises:
            FloatingPointError: logits that no code can be drawn from.
        """
        config, first = rows[0].config, rows[0].n_done
        n_steps = min(config.sliding_window_len, max(row.n_left for row in rows))
        ids = [_ids_at(step, config) for step in range(first, first + n_steps)]
        self._begin(rows, ids[0])
        done = 1
        while done < n_steps:
            going = [place for place, row in enumerate(self._rows) if row.n_left]
            if len(going) < len(self._rows) and self._decoder.keep(going):
                self._go_on(going)
            now = ids[done : done + self._decoder.steps_at_once]
            self._step(now)
            done += len(now)

    def _begin(self, rows: Sequence[CoarseRow], ids: slice) -> None:
        """Take the first step: over the cache where a prompt only grew, else with a prompt."""
        grown = [row for row in rows if row.next_window()]
        staying = [place for place, row in enumerate(self._rows) if row in grown]
        is_all = len(staying) == len(self._rows) == len(rows)
        if not is_all and not (staying and self._decoder.keep(staying)):
            staying = []
        self._go_on(staying)
        others = [row for row in rows if row not in self._rows]
        if staying:
            self._step([ids])
        if not others:
            return
        begin = self._decoder.join if staying else self._decoder.prefill
        logits = begin([row.prompt for row in others if row.prompt is not None], ids)
        assert logits is not None, "a decoder that lets rows go lets others in"
        check_finite(logits, "coarse")
        streams, active = _streams(others, self._device), [True] * len(others)
        tokens, _ = choose_next(logits, ids, self._sampling, streams, active)
        self._rows, self._newest = [*self._rows, *others], torch.cat((self._newest, tokens))
        _add(others, tokens[None])

    def _step(self, ids: Sequence[slice]) -> None:
        active = [[step < row.n_left for row in self._rows] for step in range(len(ids))]
        streams = _streams(self._rows, self._device)
        chosen, _ = self._decoder.take_steps(self._newest, ids, self._sampling, streams, active)
        self._newest = chosen[-1]
        _add(self._rows, chosen)

    def _go_on(self, places: list[int]) -> None:
        self._rows, self._newest = [self._rows[place] for place in places], self._newest[places]


def least_end_p(min_eos_p: float | None) -> float:
    """What the probability of the end token is compared with: in float32, as the reference does."""
    return math.inf if min_eos_p is None else float(np.float32(min_eos_p))


def _add(rows: Sequence[CoarseRow], chosen: Tensor) -> None:
    for row, new in zip(rows, chosen.T.cpu(), strict=True):
        row.add(new)


def _ids_at(step: int, config: GenerationConfig) -> slice:
    first = config.semantic_vocab_size + step % config.n_coarse_codebooks * config.codebook_size
    return slice(first, first + config.codebook_size)


def _streams(rows: Sequence[SemanticRow | CoarseRow], device: torch.device) -> RandomStreams:
    return RandomStreams([row.generator for row in rows], device)
