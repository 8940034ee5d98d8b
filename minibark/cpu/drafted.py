"""Steps in float32 that are drafted in int8: the tokens of float32, in half the time.

A step reads every weight for one position, and is bound by that. So an int8 copy of the model,
which has a quarter to read, takes several steps first, with the noise that float32's would have.
Then one pass in float32 over these positions, which reads the weights once, tells what float32
chooses behind each:

    newest token   t0
    drafted        t0 -> d1 -> d2 -> d3 -> d4
    one pass       t0 -> e1    d1 -> e2    d2 -> e3    d3 -> e4    d4 -> e5

e1 is right whatever was drafted, e2 if d1 = e1, and so on up to the first draft that differs; from
there it starts again. Since both divide by the same noise, they differ once in a hundred steps or
so, not as often as two draws would. What the draft is like changes how long it takes, and nothing
else.

Source: Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding",
2023; there a draft is accepted at random, so that the distribution is kept. Here tokens are.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..checkpoint.shapes import empty_module
from ..model import GPT, Cache, KVCache
from ..sampling import Sampling, probabilities
from . import abilities
from .reduce import reduce
from .row_sums import RowSumCache
from .scriptable import parts_of
from .scripted import AT_ONCE, ScriptedDecoder

# Steps in one pass, by how many rows there are: over 16 positions it takes little more than over 8.
# Three rows gain nothing: they share what is read anyway, and a draft is wrong in one more often.
DRAFTED = {1: 16, 2: 8}
LEAST_GAIN = 2  # times that int8's products must be faster than float32's
# Once JUDGED_AFTER steps have been asked of passes, a decoder goes on without drafts unless
# LEAST_MADE of these steps were made by them: with less, drafts take longer than they save.
LEAST_MADE, JUDGED_AFTER = 0.5, 64

Weights = list[tuple[int, int]]

# Drafts, and the state of the weights that they are of.
_DRAFTS: weakref.WeakKeyDictionary[GPT, tuple[Weights, GPT | None]] = weakref.WeakKeyDictionary()
NONE = None, None
_DRAFTING = threading.Lock()


class DraftedDecoder(ScriptedDecoder):
    """A `ScriptedDecoder` of a float32 model that drafts the steps of one or two rows.

    Drafts of a step are right if they are in every row, so that rows stay side by side.
    """

    def __init__(
        self, model: GPT, n_merged: int = 0, new_cache: Callable[[GPT, int], Cache] = KVCache
    ) -> None:
        super().__init__(model, n_merged, new_cache)
        self._drafter: ScriptedDecoder | None = None
        self._find: Callable[[GPT], GPT | None] | None = None  # a draft, when steps ask for one
        self._n_asked = self._n_made = 0

    def keep(self, rows: list[int]) -> bool:
        """See `Decoder`."""
        kept = super().keep(rows)
        self._begin_drafts(made_draft)  # what is left of a batch is not worth making one
        return kept

    def join(self, prompts: Sequence[Tensor], ids: slice) -> Tensor:
        """See `Decoder`."""
        logits = super().join(prompts, ids)
        self._n_asked = self._n_made = 0
        self._begin_drafts(draft_of)
        return logits

    def choose(
        self, tokens: Tensor, ids: Sequence[slice], sampling: Sampling, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `ScriptedDecoder`."""
        chosen, last_p = list[Tensor](), list[Tensor]()
        done = 0
        if self._find is not None and len(ids) > 1:
            self._look_for_draft(self._find)
        while done < len(ids):
            if self._drafter is None or len(ids) == 1:
                made, p = super().choose(tokens, ids[done:], sampling, noise[done:])
            else:
                now = slice(done, done + DRAFTED[self.n_rows])
                made, p = self._draft_and_check(tokens, ids[now], sampling, noise[now])
            tokens, done = made[-1], done + len(made)
            chosen.append(made)
            last_p.append(p)
        if not self._pays:
            self._forget_draft()
        return torch.cat(chosen), torch.cat(last_p)

    def _draft_and_check(
        self, tokens: Tensor, ids: Sequence[slice], sampling: Sampling, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One or more of the first steps: tokens (m, B) and the last id's probability (m, B)."""
        cache, drafter = self.cache, self._drafter
        assert isinstance(cache, RowSumCache) and drafter is not None
        given, before = tokens[None], cache.lengths.copy()
        # Whatever goes wrong with a draft, there is the plain way.
        with contextlib.suppress(Exception):
            if len(ids) > 1:
                drafted, _ = drafter.choose(tokens, ids[:-1], sampling, noise[:-1])
                given = torch.cat((given, drafted))
        cache.lengths = before
        if (n := len(given)) < len(ids):
            self._forget_draft()
            ids, noise = ids[:n], noise[:n]
        p = probabilities(self._pass(given, ids), sampling)  # (n, B, V)
        chosen = (p / noise).argmax(-1) + torch.tensor([[own.start] for own in ids])
        n_right = int((chosen[:-1] == given[1:]).all(1).cumprod(0).sum())
        self._n_asked, self._n_made = self._n_asked + n, self._n_made + n_right + 1
        # The tokens up to the last that is right have been given, and the newest has not.
        cache.take_back(n - 1 - n_right)
        return chosen[: n_right + 1], p[: n_right + 1, :, -1]

    def _pass(self, tokens: Tensor, ids: Sequence[slice]) -> Tensor:
        """Append tokens (n, B) to the rows, as `GPT.decode_one` does one; logits (n, B, V)."""
        model, cache = self.model, self.cache
        assert isinstance(cache, RowSumCache)
        positions = cache.begin_many(len(tokens))
        x = model.transformer.wte(tokens.T) + model.transformer.wpe.weight[positions]  # (B, n, C)
        for layer, block in enumerate(model.transformer.blocks):
            x = block(x, partial(cache.attend_many, layer))
        x = model.transformer.ln_f(x)
        logits: Tensor = x.new_empty(*tokens.shape, ids[0].stop - ids[0].start)
        for own in {(one.start, one.stop) for one in ids}:
            at = [step for step, one in enumerate(ids) if (one.start, one.stop) == own]
            logits[at] = model.lm_head(x[:, at], slice(*own)).float().transpose(0, 1)
        return logits

    @property
    def _pays(self) -> bool:
        return self._n_asked < JUDGED_AFTER or self._n_made >= LEAST_MADE * self._n_asked

    def _begin_drafts(self, find: Callable[[GPT], GPT | None]) -> None:
        """Let the next steps be drafted, if they may be, by what `find` finds."""
        self._forget_draft()
        # Not for a model with hooks and the like, which are to see step after step.
        is_plain = type(self.cache) is RowSumCache and bool(parts_of(self.model))
        if self.n_rows in DRAFTED and is_plain and self._pays:
            self._find, self.steps_at_once = find, DRAFTED[self.n_rows]

    def _look_for_draft(self, find: Callable[[GPT], GPT | None]) -> None:
        if (draft := find(self.model)) is None:
            self._forget_draft()
            return
        self._drafter, self._find = ScriptedDecoder(draft, 0, self.new_cache), None
        self._drafter.take_over(self.cache)

    def _forget_draft(self) -> None:
        self._drafter, self._find, self.steps_at_once = None, None, AT_ONCE


def made_draft(model: GPT) -> GPT | None:
    """The draft of a model as it is now, if there is one."""
    state, draft = _DRAFTS.get(model, NONE)
    return draft if state == _state_of(model) else None


def draft_of(model: GPT) -> GPT | None:
    """The int8 copy that drafts a float32 model's steps, made when first asked for.

    None where int8 is not fast enough here to be worth it, or where no copy can be made: of modules
    that somebody put in, of damaged weights, or for want of memory.
    """
    state = _state_of(model)
    if _DRAFTS.get(model, NONE)[0] != state:
        with _DRAFTING:
            if _DRAFTS.get(model, NONE)[0] != state:
                _DRAFTS[model] = state, _make_draft(model)
    return _DRAFTS[model][1]


def _state_of(model: GPT) -> Weights:
    return [
        (one.data_ptr(), -1 if one.is_inference() else one._version) for one in model.parameters()
    ]


@torch.inference_mode()
def _make_draft(model: GPT) -> GPT | None:
    if not abilities.has_int8_linear():
        return None
    # Whatever goes wrong with it, there is the plain way.
    with contextlib.suppress(Exception):
        draft = empty_module("coarse", model.config)
        assert isinstance(draft, GPT)
        state, table = model.state_dict(), "transformer.wte.weight"
        # Its table is the model's own, of which a step reads one row; so none is made in int8.
        reduce(draft, state | {table: state[table][:1]}, "int8")
        draft.eval().requires_grad_(False)
        draft.transformer.wte = model.transformer.wte
        abilities.give_memory_back()
        if LEAST_GAIN * _product_s(draft) < _product_s(model):
            return draft
    return None


def _product_s(model: GPT) -> float:
    """Seconds of a step's large products, of any numbers: the processor's and the memory's."""
    x, taken = model.transformer.wpe.weight.new_zeros(1, 1, model.config.n_embd), []
    for _ in range(3):
        start = time.perf_counter()
        for block in model.transformer.blocks:
            block.mlp(block.attn.c_proj(block.attn.c_attn(x)[..., : x.shape[-1]].float()).float())
        taken.append(time.perf_counter() - start)
    return min(taken)
