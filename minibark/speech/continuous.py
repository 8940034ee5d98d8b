"""Rows through the pipeline together, where one that ends makes room for the next.

    add -> waiting -> semantic --> coarse ----> fine --> done
                      16 steps     a window     a row

Each call of `advance` does one bounded piece of work, as under each stage, for all rows there that
are sampled alike. Rows join and leave the two token loops between pieces, and leave the moment they
end. Fine stages come first, since they end a row; the other groups take turns, large ones more
often.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Sequence

import torch

from .. import coarse
from ..decoding import Decoder, own_stream
from ..files import is_out_of_memory, warn
from ..model import GPT
from ..options import Options
from ..pipeline import Pipeline, Row
from ..sampling import OnStep
from ..semantic import END_TEST_STEPS, max_semantic_steps, semantic_prompt
from ..voice import Voice
from .batch import MOST_ROWS, positive
from .steps import CoarseRow, CoarseWindows, SemanticRow, SemanticSteps, least_end_p
from .ticket import Ticket, key_of, told_of_memory


class ContinuousBatch:
    """Many rows through one pipeline, which come and go as they will.

    Each gets, in float32, the tokens that `Pipeline.speak` gives it alone. `add` and `drop` may be
    called by any thread, `advance` by one at a time.

    Rows join the semantic stage at any step where the decoder lets them (`Decoder.join`; one that
    captures steps does not, and there rows wait until all of a group have ended), and the coarse
    stage at any window. Rows that draw from one stream, or from torch's own, follow one another.

    Attributes:
        most: rows that are in each of the two token loops; fewer once memory has run out. 1 is one
            row after the other.
    """

    def __init__(self, pipeline: Pipeline, most: int = MOST_ROWS, patience: int = 1) -> None:
        """A batch without rows.

        Args:
            pipeline: what it goes through.
            most: rows in each token loop, to begin with.
            patience: a group of rows has its turn once its rows times the turns that it has waited
                are `patience` times the rows of the largest. 1 is for who listens; more fills
                batches, for who does not.

        Raises:
            ValueError: either is no positive whole number.
        """
        self.most, self._patience = positive(most, "most"), positive(patience, "patience")
        self._pipeline = pipeline
        self._coming: deque[Ticket] = deque()
        self._tickets: list[Ticket] = []  # in the order in which they came
        self._steps: dict[Hashable, SemanticSteps] = {}
        self._windows: dict[Hashable, CoarseWindows] = {}
        self._decoders: dict[str, Decoder] = {}
        self._turn = 0
        self._turns: dict[Hashable, int] = {}  # when each group was last at work

    @property
    def n_waiting(self) -> int:
        """Rows that have not begun."""
        return len(self._coming) + sum(not ticket.has_begun for ticket in [*self._tickets])

    @property
    def n_live(self) -> int:
        """Rows that have begun and are not done."""
        return sum(ticket.has_begun for ticket in [*self._tickets])

    def add(self, row: Row, options: Options, on_step: OnStep | None = None) -> Ticket:
        """Let a row in; what it needs is kept until it is done.

        Args:
            row: as for `Pipeline.speak`.
            options: its own; only rows that are sampled alike go through the model together.
            on_step: told of the row's progress by `advance`; if it raises, that is the row's error.

        Raises:
            ValueError: coarse windows that the model has no room for.
        """
        config = self._pipeline.windowed(options)
        history = row.voice.semantic if row.voice else None
        ticket = Ticket(row, options, on_step, config, semantic_prompt(row.ids, history, config))
        self._coming.append(ticket)
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Let a row go with the next `advance`, which does not tell of it."""
        ticket.is_dropped = True

    def advance(self) -> list[Ticket]:
        """Do a piece of work, if there is any; the rows that are done, or have failed, with it."""
        begin = time.perf_counter()
        while self._coming:
            self._tickets.append(self._coming.popleft())
        self._tidy_up()
        stage, key, group = self._next_group()
        if group:
            try:
                self._work(key, group)
            except Exception as error:
                self._failed(stage, key, group, error)
        for ticket in group:
            ticket.spent_s += (time.perf_counter() - begin) / len(group)
        done = [ticket for ticket in self._tickets if ticket.is_over and not ticket.is_dropped]
        self._tidy_up()
        return done

    def _tidy_up(self) -> None:
        """Let go of rows that are over, and of caches that no row uses."""
        over = {ticket for ticket in self._tickets if ticket.is_over}  # once: others may drop some
        for ticket in over:
            if ticket.steps:
                ticket.steps.has_ended = True
        self._tickets = [ticket for ticket in self._tickets if ticket not in over]
        keys = {key_of(ticket, "coarse") for ticket in self._tickets if ticket.stage == "coarse"}
        self._windows = {key: one for key, one in self._windows.items() if key in keys}
        self._steps = {key: one for key, one in self._steps.items() if not one.is_empty}

    # ---- whose turn it is

    def _next_group(self) -> tuple[str, Hashable, list[Ticket]]:
        """A stage, the key of its cache, and the rows whose turn it is there; or no rows."""
        ready, streams = list[Ticket](), set[int]()
        for ticket in self._tickets:
            if id(ticket.row.generator) not in streams:
                streams.add(id(ticket.row.generator))
                ready.append(ticket)
        for ticket in ready:
            if ticket.stage == "fine":
                return "fine", None, [ticket]
        groups: dict[tuple[str, Hashable, tuple[int, int]], list[Ticket]] = {}
        for ticket in [*self._seated_semantic(ready), *self._seated_coarse(ready)]:
            window = ticket.windows.begins if ticket.windows else (0, 0)
            key = ticket.stage, key_of(ticket, ticket.stage), window
            groups.setdefault(key, []).append(ticket)
        if not groups:
            return "", None, []
        self._turn += 1
        self._turns = {key: self._turns.get(key, self._turn - 1) for key in groups}
        # Full batches are cheap, and rows gather while they wait: a group of an eighth of the rows
        # gets an eighth of the turns, or less where there is patience.
        sizes = {key: len(group) for key, group in groups.items()}
        scores = {key: size * (self._turn - self._turns[key]) for key, size in sizes.items()}
        least = self._patience * max(sizes.values())
        due = [key for key in groups if scores[key] >= least]
        first = max(due, key=scores.__getitem__, default=None) or max(
            groups, key=lambda key: (sizes[key], scores[key])
        )
        self._turns[first] = self._turn
        return first[0], first[1], groups[first]

    def _seated_coarse(self, ready: Sequence[Ticket]) -> list[Ticket]:
        return [ticket for ticket in ready if ticket.stage == "coarse"][: self.most]

    def _seated_semantic(self, ready: Sequence[Ticket]) -> list[Ticket]:
        """Rows that are in the semantic stage, and those that may join them."""
        here = [ticket for ticket in ready if ticket.stage == "semantic"]
        begun = [ticket for ticket in here if ticket.has_begun]
        most_at_all = 2 * self.most if self.most > 1 else 1  # else they would queue at later stages
        n_free = min(self.most, most_at_all - (self.n_live - len(begun))) - len(begun)
        new = [ticket for ticket in here if not ticket.has_begun]
        if self._pipeline.choice.records and self._steps:  # there is one decoder
            new = [ticket for ticket in new if key_of(ticket, "semantic") in self._steps]
        return begun + new[: max(0, n_free)]

    # ---- the stages

    def _work(self, key: Hashable, tickets: Sequence[Ticket]) -> None:
        if tickets[0].stage == "semantic":
            self._semantic(key, tickets)
        elif tickets[0].stage == "coarse":
            self._coarse(key, tickets)
        else:
            self._fine(tickets[0])

    def _semantic(self, key: Hashable, tickets: Sequence[Ticket]) -> None:
        offload = self._pipeline.offload
        with self._pipeline.on_device("semantic") as model:
            if key not in self._steps:
                g, first = self._pipeline.config.generation, tickets[0].options
                decoder = self._decoder("semantic", model, g.max_input_semantic_length)
                how = first.text_sampling, first.allow_early_stop
                self._steps[key] = SemanticSteps(decoder, self._device, g, *how)
            steps = self._steps[key]
            with torch.inference_mode():
                self._let_in(steps, [ticket for ticket in tickets if ticket.steps is None])
                while not steps.is_empty:
                    n_done, n_live = 0, steps.n_live
                    while n_done < END_TEST_STEPS and steps.n_live == n_live:
                        n_done += steps.advance()
                    for ticket in tickets:
                        if ticket.steps and not ticket.steps.has_ended:
                            ticket.tell(ticket.steps.n_done, ticket.steps.n_steps)
                    if not offload:
                        break
        for ticket in tickets:
            if ticket.steps and ticket.steps.has_ended:
                ticket.tell(ticket.steps.n_done, ticket.steps.n_done)
                ticket.semantic = torch.tensor(ticket.steps.tokens, dtype=torch.int64, device="cpu")
                self._begin_coarse(ticket)

    def _let_in(self, steps: SemanticSteps, tickets: Sequence[Ticket]) -> None:
        """Let rows begin: one by one, so that each fails alone, or if need be all together."""
        groups = [[ticket] for ticket in tickets] if steps.is_open else [list(tickets)]
        for group in groups:
            rows = [self._semantic_row(ticket) for ticket in group]
            try:
                if rows and steps.join(rows):
                    for ticket, row in zip(group, rows, strict=True):
                        ticket.steps = row
            except Exception as error:
                if len(group) > 1 or is_out_of_memory(error):
                    raise
                group[0].error = error

    def _semantic_row(self, ticket: Ticket) -> SemanticRow:
        self._remember(ticket)
        options, g = ticket.options, self._pipeline.config.generation
        n_steps = max_semantic_steps(g, options.max_duration_s)
        end_p = least_end_p(options.min_eos_p)
        return SemanticRow(ticket.prompt, ticket.row.generator, n_steps, end_p)

    def _begin_coarse(self, ticket: Ticket) -> None:
        self._remember(ticket)
        config = ticket.config
        row = coarse.start_row(ticket.semantic, ticket.row.voice, config)
        ticket.stage, ticket.steps = "coarse", None
        ticket.windows = CoarseRow(row, config, ticket.row.generator)
        self._end_coarse(ticket)

    def _coarse(self, key: Hashable, tickets: Sequence[Ticket]) -> None:
        rows = [ticket.windows for ticket in tickets if ticket.windows]
        with self._pipeline.on_device("coarse") as model:
            if self._pipeline.choice.records:  # there is one decoder
                self._windows = {one: own for one, own in self._windows.items() if one == key}
            if key not in self._windows:
                sampling = tickets[0].options.coarse_sampling
                decoder = self._decoder("coarse", model, 0)
                self._windows[key] = CoarseWindows(decoder, self._device, sampling)
            with torch.inference_mode():
                self._windows[key].take(rows)
            if self._pipeline.offload:
                self._windows.clear()
        for ticket, row in zip(tickets, rows, strict=True):
            ticket.tell(row.n_done, row.row.n_steps)
            self._end_coarse(ticket)

    def _end_coarse(self, ticket: Ticket) -> None:
        if ticket.windows and not ticket.windows.n_left:
            ticket.coarse = coarse.codes(ticket.windows.row, ticket.config)
            ticket.stage, ticket.windows = "fine", None
            self._remember(ticket)

    def _fine(self, ticket: Ticket) -> None:
        row = ticket.row
        (fine,) = self._pipeline.fine(
            [ticket.coarse], [row.voice], [row.generator], ticket.options, ticket.on_step
        )
        ticket.voice = Voice(ticket.semantic, ticket.coarse, fine)

    @property
    def _device(self) -> torch.device:
        return self._pipeline.choice.device

    def _decoder(self, stage: str, model: GPT, n_merged: int) -> Decoder:
        """A decoder; one that records is kept while the model stays where it is."""
        choice = self._pipeline.choice
        decoder = self._decoders.get(stage) or self._pipeline.new_decoder(model, n_merged, choice)
        if choice.records and not self._pipeline.offload:
            self._decoders[stage] = decoder
        return decoder

    # ---- what goes wrong

    def _remember(self, ticket: Ticket) -> None:
        """Note from where a stage can be begun again."""
        ticket.before = (ticket.row.generator or own_stream(self._device)).get_state()

    def _failed(
        self, stage: str, key: Hashable, tickets: Sequence[Ticket], error: Exception
    ) -> None:
        """Begin the stage of rows again: fewer at once if memory ran out, else each by itself."""
        if is_out_of_memory(error) and self.most > 1:
            self.most //= 2
            warn(told_of_memory(error, self.most))
            tickets = self._tickets
            self._steps, self._windows, self._decoders = {}, {}, {}
        elif len(tickets) == 1:
            tickets[0].error = error
        else:
            for ticket in tickets:
                ticket.is_alone = True
        caches = self._steps if stage == "semantic" else self._windows
        caches.pop(key, None)
        for ticket in tickets:
            self._begin_again(ticket)

    def _begin_again(self, ticket: Ticket) -> None:
        if ticket.is_over or not ticket.has_begun:
            return
        if ticket.before is not None:
            (ticket.row.generator or own_stream(self._device)).set_state(ticket.before)
        if ticket.stage == "semantic":
            ticket.steps = None
        elif ticket.stage == "coarse":
            self._begin_coarse(ticket)
