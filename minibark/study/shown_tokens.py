"""Parts 1 to 4 of the page: the text, the semantic tokens, the alignment, the codes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .draws import Array
from .markup import Html, folded, image, lane, plot, said, spans, table, text
from .pictures import ORANGE, PURPLE, TEAL, codes, curve, ink, ticks
from .trace import Trace

_ROW = 13  # pixels of a slot in the map of attention
_LEAST_P = 1e-9  # what the curve of P(end) goes down to
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
    for word in trace.words:
        notes = []
        if word.is_unknown:
            notes.append("unknown: no piece stands for it, so it is not spoken")
        if word.n_cut:
            notes.append(f"{word.n_cut} of its pieces are cut off: the prompt is full")
        pieces = " ".join(
            f'<span class="piece">{said(piece)}<small>{index}</small></span>'
            for piece, index in zip(word.pieces, word.ids, strict=True)
        )
        first, last = word.slot, word.slot + word.n_slots - 1
        slots = "none" if not word.n_slots else f"{first}" if first == last else f"{first}-{last}"
        rows.append((Html(said(word.text)), Html(pieces), slots, "; ".join(notes)))
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
    facts = [f"{len(trace.words)} words and marks, {n_ids} word pieces."]
    if changed:
        facts.append("The text was made readable first; below it stands as it was read.")
    facts.append(f"{len(lost)} cannot be read." if lost else "All of it can be read.")
    facts.append(f"{n_cut} pieces are cut off." if n_cut else "Nothing is cut off.")
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
    width = _width(trace, len(draws.tokens), g.semantic_rate_hz)
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
    ended = f"It stopped after {len(draws.tokens)} tokens: {_WHY[trace.ended]}."
    if len(trace.end_p):
        low = math.log10(_LEAST_P)
        end_p = np.log10(np.maximum(trace.end_p, _LEAST_P))
        wide = min(100.0, _width(trace, len(end_p), g.semantic_rate_hz))  # the last is told
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
    rows.append(_axis(trace))
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
    data = folded(f"All {len(draws.tokens)} semantic tokens", table("semantic-data", heads, lines))
    return f"{plot(rows, 'semantic')}<p>{text(ended)}</p>{data}"


def part_alignment(trace: Trace) -> str:
    """3. Which heads follow the text, and when each word is said."""
    found = trace.alignment
    if not found.heads:
        return "<p>There is nothing to align.</p>"
    duration_s, rate_hz = trace.duration_s, trace.config.generation.semantic_rate_hz
    pieces = [piece for word in trace.words for piece in word.pieces][: found.weights.shape[1]]
    width = _width(trace, len(found.weights), rate_hz)
    height = _ROW * len(pieces)
    chips = "".join(
        f'<li><button type="button" data-from="{time.start_s:.3f}" data-to="{time.end_s:.3f}">'
        f"{said(trace.words[time.word].text)}</button></li>"
        for time in found.words
    )
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
            trace.words[time.word].text,
            f'class="word" data-from="{time.start_s:.3f}" data-to="{time.end_s:.3f}"',
        )
        for time in found.words
    ]
    picture = image(ink(found.weights.T, TEAL), "attention over slots and time", width, height)
    rows = [
        lane("words", spans(parts, duration_s), 0),
        _map_lane("together", pieces, picture + path, height),
        _axis(trace),
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
        ("word", "from, s", "to, s", "weight on it"),
        (
            (Html(said(trace.words[t.word].text)), f"{t.start_s:.2f}", f"{t.end_s:.2f}",
             f"{t.weight:.2f}")
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
        f'<p>Click a word to hear it.</p><ol class="words">{chips}</ol>{plot(rows, "word")}'
        f"<p>The heads that follow the text here: {text(names)}.</p>{times}"
        f"{folded('The score of every head', scores)}"
    )


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


def part_codes(trace: Trace) -> str:
    """4. Coarse and fine codes."""
    g, fine = trace.config.generation, trace.voice.fine.numpy()
    n_coarse, n_frames = trace.coarse.tokens.shape
    colours = [ORANGE] * n_coarse + [PURPLE] * (len(fine) - n_coarse)
    seconds = 1 / g.coarse_rate_hz
    edges = "".join(
        f'<line class="edge" x1="{x:.3f}%" x2="{x:.3f}%" y1="0" y2="100%"/>'
        for x in (100 * w.step / n_coarse / max(1, n_frames) for w in trace.windows)
    )
    over = f'<svg width="100%" height="100%">{edges}</svg>'
    coarse = codes(trace.coarse.tokens, colours[:n_coarse], g.codebook_size)
    seen = "".join(_seen(trace, i) for i in range(len(trace.windows)))
    first = [
        lane("codes", image(coarse, "coarse codes") + over, 40, f"books 1-{n_coarse}"),
        lane("probability", image(ink(trace.coarse.p, ORANGE), "probabilities"), 40, "full is 1"),
        lane(
            "windows saw",
            f'<svg width="100%" height="{7 * len(trace.windows) + 3}">{seen}</svg>',
            0,
            "semantic, coarse",
        ),
        _axis(trace),
    ]
    twice = ink((trace.n_predicted > 1)[None].astype(np.float32), PURPLE)
    second = [
        lane("codes", image(codes(fine, colours, g.codebook_size), "all codes"), 96,
             f"books 1-{len(fine)}"),
        lane("probability", image(ink(trace.fine.p, PURPLE), "probabilities"), 96,
             f"books {n_coarse + 1}-{len(fine)}"),
        lane("twice", image(twice, "frames that were predicted twice"), 10),
        _axis(trace),
    ]  # fmt: skip
    windows = table(
        "windows",
        ("steps", "from, s", "semantic tokens", "coarse frames seen", "prompt"),
        (
            (
                f"{w.step}-{w.end - 1}",
                f"{w.step / n_coarse * seconds:.2f}",
                f"{w.semantic[0]} to {w.semantic[1] - 1}",
                f"{w.coarse[0] / n_coarse:g} to {w.coarse[1] / n_coarse:g}",
                "read" if w.is_read else "in the cache already",
            )
            for w in trace.windows
        ),
        "What each window saw; the voice's tokens are below 0",
    )
    some = int((trace.n_predicted > 1).sum())
    told = (
        f"Of {len(fine)} codebooks {n_coarse} were given and {len(fine) - n_coarse} filled in; "
        f"{some} of {n_frames} frames were predicted twice, and the later prediction stays."
    )
    return (
        f"<h3>Coarse: the first {n_coarse} codebooks</h3>{plot(first, 'frame')}"
        f"{folded('Every window', windows)}<h3>Fine: the others</h3>{plot(second)}"
        f"<p>{text(told)}</p>{folded(f'All {n_frames} frames', _frames(trace, fine))}"
    )


def _seen(trace: Trace, index: int) -> str:
    """A window's line: the semantic tokens and the coarse ids in its prompt, and its own steps."""
    window, g = trace.windows[index], trace.config.generation
    n_coarse, y = len(trace.coarse.tokens), 7 * index + 2
    step_s = 1 / g.coarse_rate_hz / n_coarse
    found = ""
    for kind, (first, end), unit_s, offset in (
        ("teal", window.semantic, 1 / g.semantic_rate_hz, 0),
        ("orange", window.coarse, step_s, 3),
        ("own", (window.step, window.end), step_s, 3),
    ):
        x, till = (100 * max(0, at) * unit_s / trace.duration_s for at in (first, end))
        if till > x:
            found += (
                f'<rect class="{kind}" x="{x:.3f}%" width="{till - x:.3f}%" y="{y + offset}" '
                'height="2"/>'
            )
    return found


def _frames(trace: Trace, fine: Array) -> str:
    """Every frame: its codes, and what each had as its probability."""
    p = np.concatenate((trace.coarse.p, trace.fine.p))
    n = len(fine)
    heads = (
        *("frame", "seconds", *(f"code {k + 1}" for k in range(n))),
        *(*(f"p {k + 1}" for k in range(n)), "predicted"),
    )
    rows = (
        (
            *(t, f"{t / trace.config.generation.coarse_rate_hz:.2f}", *fine[:, t].tolist()),
            *(*(f"{value:.2f}" for value in p[:, t].tolist()), int(trace.n_predicted[t])),
        )
        for t in range(fine.shape[1])
    )
    return table("frame-data", heads, rows)


def _axis(trace: Trace) -> str:
    return lane("", ticks(trace.duration_s), 0)


def _width(trace: Trace, n: int, rate_hz: float) -> float:
    """How many percent of the time line so many tokens take."""
    return 100 * n / rate_hz / trace.duration_s
