"""Parts 1 to 3 of the page: the text, the semantic tokens, the alignment."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .align import LEAST_WEIGHT, WordTime
from .markup import (
    Html,
    counted,
    folded,
    image,
    lane,
    plot,
    said,
    short,
    spans,
    table,
    text,
)
from .pictures import TEAL, codes, curve, ink, ticks
from .tracing import Trace
from .words import shown_words

_ROW = 13  # pixels of a slot in the map of attention
_LEAST_P = 1e-9  # what the curve of P(end) goes down to
_DIM = (
    f"A dim word is a guess, with a weight below {LEAST_WEIGHT}: the heads hardly looked at it, so "
    "it may not have been said at all; where no sound is left for it, it has no button."
)
_WHY = {
    "probable": "P(end) reached min_eos_p",
    "drawn": "the end token was drawn",
    "limit": "the limit of its length was reached",
}


def part_text(trace: Trace) -> str:
    """1. The text in word pieces, and the prompt's slots."""
    g, histories = trace.config.generation, trace.histories
    n_slots = g.max_input_semantic_length
    rows: list[Sequence[object]] = []
    shown_first, n_left = shown_words(trace.words)
    for word in shown_first:
        notes = []
        if word.is_unknown:
            notes.append("unknown: no piece stands for it, so it is not spoken")
        if word.n_cut:
            notes.append(
                f"{word.n_cut} of its {counted(len(word.ids), 'piece')} cut off: the prompt is full"
            )
        pieces = " ".join(
            f'<span class="piece">{said(piece)}<small>{index}</small></span>'
            for piece, index in zip(word.pieces, word.ids, strict=True)
        )
        first, last = word.slot, word.slot + word.n_slots - 1
        slots = "none" if not word.n_slots else f"{first}" if first == last else f"{first}-{last}"
        rows.append((Html(said(short(word.text))), Html(pieces), slots, "; ".join(notes)))
    if n_left:
        rows.append(("\u2026", f"{counted(n_left, 'more word')}, cut off", "none", ""))
    n_ids = sum(len(word.ids) for word in trace.words)
    n_cut = sum(word.n_cut for word in trace.words)
    n_text = n_ids - n_cut
    told = (f"{n_text} of {n_slots} slots", f"{histories.semantic} of them")
    strip = [
        lane("text", _filled(n_text, n_slots, "text"), 14, told[0], is_time=False),
        lane("voice", _filled(histories.semantic, n_slots, "voice"), 14, told[1], is_time=False),
    ]
    changed = trace.settings["text"] is not None and trace.settings["text"] != trace.text
    lost = [word.text for word in trace.words if word.is_unknown]
    facts = [f"{len(trace.words):,} words and marks, {counted(n_ids, 'word piece')}."]
    if changed:
        facts.append("The text was made readable first; below it stands as it was read.")
    facts.append(f"{len(lost):,} cannot be read." if lost else "All of it can be read.")
    facts.append(f"{counted(n_cut, 'piece')} cut off." if n_cut else "Nothing is cut off.")
    prompts = table(
        "prompts",
        ("prompt", "of the voice", "beside"),
        (
            (
                "semantic",
                f"{histories.semantic} semantic tokens, added to the slots of the text",
                f"{n_slots - n_text} text pads, {n_slots - histories.semantic} voice pads, infer",
            ),
            (
                "coarse, first window",
                f"{histories.coarse_semantic} semantic tokens, {histories.coarse} coarse ids",
                f"at most {g.max_coarse_input_length} semantic and {g.max_coarse_history} coarse",
            ),
            (
                "fine, first buffer",
                f"{histories.fine} frames of 8 codebooks",
                f"a buffer has {g.max_fine_input_length} frames",
            ),
        ),
        "What of the voice stands in each prompt",
    )
    shown = table("words", ("word", "pieces and their ids", "slots", "note"), rows)
    return f"<p>{text(' '.join(facts))}</p>{plot(strip)}{shown}{prompts}"


def _filled(n: int, total: int, kind: str) -> str:
    share = 100 * n / total
    return (
        f'<svg width="100%" height="100%"><rect class="pad" width="100%" height="100%"/>'
        f'<rect class="{kind}" width="{share:.3f}%" height="100%"/></svg>'
    )


def part_semantic(trace: Trace) -> str:
    """2. Semantic tokens on the time line."""
    g, draws = trace.config.generation, trace.semantic
    width = width_of(trace, len(draws.tokens), g.semantic_rate_hz)
    most_bits = max(1.0, math.ceil(float(draws.entropy.max(initial=0))))
    most_rank = max(2, int(draws.rank.max(initial=1)))
    least = trace.settings["options"]["min_eos_p"]
    picture = codes(draws.tokens[None], [TEAL], g.semantic_vocab_size)
    rows = [
        lane("id", image(picture, "semantic ids", width), 20, f"of {g.semantic_vocab_size:,}"),
        lane("probability", curve(draws.p, width, 0, 1, "teal"), 40, "", ("1", "0")),
        lane(
            "entropy",
            curve(draws.entropy, width, 0, most_bits, "teal"),
            40,
            "bits",
            (f"{most_bits:.0f}", "0"),
        ),
        lane(
            "rank",
            curve(np.log(draws.rank), width, 0, math.log(most_rank), "teal"),
            20,
            "of the draw",
            (str(most_rank), "1"),
        ),
    ]
    ended = f"It stopped after {counted(len(draws.tokens), 'token')}: {_WHY[trace.ended]}."
    if len(trace.end_p):
        low = math.log10(_LEAST_P)
        end_p = np.log10(np.maximum(trace.end_p, _LEAST_P))
        wide = min(100.0, width_of(trace, len(end_p), g.semantic_rate_hz))  # the last is told
        mark = ""
        if least is not None and least > 0:
            y = 100 * math.log10(max(least, _LEAST_P)) / low
            mark = (
                f'<svg width="100%" height="100%"><line class="least" x1="0" x2="100%" '
                f'y1="{y:.2f}%" y2="{y:.2f}%"/></svg>'
            )
        content = curve(end_p, wide, low, 0, "teal") + mark
        rows.append(lane("P(end)", content, 40, "log scale", ("1", f"{_LEAST_P:.0e}")))
        peak = float(trace.end_p.max())
        ended += f" The highest P(end) was {peak:.3g}; min_eos_p is {least} (the dashed line)."
    else:
        ended += " No end was allowed."
    rows.append(axis(trace))
    lines = (
        (
            i,
            f"{i / g.semantic_rate_hz:.2f}",
            int(draws.tokens[i]),
            f"{draws.p[i]:.4f}",
            f"{draws.own_p[i]:.4f}",
            f"{draws.entropy[i]:.2f}",
            int(draws.rank[i]),
            f"{trace.end_p[i]:.1e}" if i < len(trace.end_p) else "",
        )
        for i in range(len(draws.tokens))
    )
    heads = (
        *("token", "seconds", "id", "probability", "at temperature 1", "entropy, bits"),
        *("rank", "P(end)"),
    )
    data = folded(
        f"All {counted(len(draws.tokens), 'semantic token')}",
        table("semantic-data", heads, lines, rate_hz=g.semantic_rate_hz),
    )
    return f"{plot(rows, 'semantic')}<p>{text(ended)}</p>{data}"


def part_alignment(trace: Trace) -> str:
    """3. Which heads follow the text, and when each word is said."""
    found = trace.alignment
    if not found.heads:
        return "<p>There is nothing to align.</p>"
    duration_s, rate_hz = trace.duration_s, trace.config.generation.semantic_rate_hz
    heard, _ = shown_words(trace.words)
    pieces = [piece for word in heard for piece in word.pieces][: found.weights.shape[1]]
    width = width_of(trace, len(found.weights), rate_hz)
    height = _ROW * len(pieces)
    chips = "".join(_chip(trace.words[time.word].text, time) for time in found.words)
    steps = "".join(
        f"{'M' if i == 0 else 'L'}{i} {slot + 0.5}h1" for i, slot in enumerate(found.slots.tolist())
    )
    path = (
        f'<svg width="{width:.3f}%" height="{height}" viewBox="0 0 {len(found.slots)} '
        f'{len(pieces)}" preserveAspectRatio="none"><path class="path" d="{steps}"/></svg>'
    )
    parts = [
        (
            time.start_s,
            time.end_s,
            short(trace.words[time.word].text),
            f'class="word{" guess" if time.is_guess else ""}" {_data(time)}',
        )
        for time in found.words
        if time.has_time
    ]
    picture = image(ink(found.weights.T, TEAL), "attention over slots and time", width, height)
    rows = [
        lane("words", spans(parts, duration_s), 0),
        _map_lane("together", pieces, picture + path, height),
        axis(trace),
    ]
    for head in found.heads:
        one = ink(trace.attention[head.layer, head.head].T, TEAL)
        name = f"layer {head.layer}, head {head.head}"
        small = image(one, f"attention of {name}", width, max(40, height // 2))
        rows.append(lane(name, small, 0, f"score {head.score:.2f}"))
    names = ", ".join(
        f"layer {head.layer} head {head.head} ({head.score:.2f})" for head in found.heads
    )
    times = table(
        "word-times",
        ("word", "from, s", "to, s", "weight on it", "note"),
        (
            (Html(said(short(trace.words[t.word].text))), f"{t.start_s:.2f}", f"{t.end_s:.2f}",
             f"{t.weight:.2f}", _note(t))
            for t in found.words
        ),
        "When each word is said",
    )  # fmt: skip
    scores = table(
        "heads",
        ("layer", *(f"head {h}" for h in range(found.scores.shape[1]))),
        ((layer, *(f"{s:.2f}" for s in row)) for layer, row in enumerate(found.scores.tolist())),
    )
    return (
        f'<p><span class="js">Click a word to hear it.</span> {_DIM}</p>'
        f'<ol class="words">{chips}</ol>{plot(rows, "word")}'
        f"<p>The heads that follow the text here: {text(names)}.</p>{times}"
        f"{folded('The score of every head', scores)}"
    )


def _chip(name: str, time: WordTime) -> str:
    """A word's button; where there is nothing to hear, the word alone."""
    note = f'<span class="unseen"> ({text(_note(time))})</span>' if _note(time) else ""
    content = said(short(name)) + note
    if not time.has_time:
        return f'<li><span class="chip guess">{content}</span></li>'
    kind = ' class="guess"' if time.is_guess else ""
    return f'<li><button type="button"{kind} {_data(time)}>{content}</button></li>'


def _data(time: WordTime) -> str:
    return f'data-from="{time.start_s:.6f}" data-to="{time.end_s:.6f}"'


def _note(time: WordTime) -> str:
    """What is doubtful about a word's time; "" if nothing is."""
    if not time.has_time:
        return "no sound is left for it"
    return "a guess" if time.is_guess else ""


def _map_lane(name: str, pieces: Sequence[str], content: str, height: int) -> str:
    """A lane whose rows are slots, with their pieces beside them."""
    labels = "".join(
        f'<text x="100%" y="{_ROW * i + 10}" text-anchor="end">{text(piece)}</text>'
        for i, piece in enumerate(pieces)
    )
    return (
        f'<div class="row"><div class="label"><span>{text(name)}</span></div>'
        f'<div class="ends wide"><svg class="slots" width="100%" height="{height}">'
        f"{labels}</svg></div>"
        f'<div class="lane">{content}</div></div>'
    )


def axis(trace: Trace) -> str:
    """The seconds under a plot."""
    return lane("", ticks(trace.duration_s), 0)


def width_of(trace: Trace, n: int, rate_hz: float) -> float:
    """How many percent of the time line so many tokens take."""
    return 100 * n / rate_hz / trace.duration_s
