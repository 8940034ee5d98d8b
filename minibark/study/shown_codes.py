"""Part 4 of the page: the codes, coarse and fine."""

from __future__ import annotations

import numpy as np

from .draws import Array
from .markup import counted, folded, image, lane, plot, table, text
from .pictures import ORANGE, PURPLE, codes, ink
from .shown_tokens import axis
from .tracing import Trace


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
        axis(trace),
    ]
    twice = ink((trace.n_predicted > 1)[None].astype(np.float32), PURPLE)
    second = [
        lane("codes", image(codes(fine, colours, g.codebook_size), "all codes"), 96,
             f"books 1-{len(fine)}"),
        lane("probability", image(ink(trace.fine.p, PURPLE), "probabilities"), 96,
             f"books {n_coarse + 1}-{len(fine)}"),
        lane("twice", image(twice, "frames that were predicted twice"), 10),
        axis(trace),
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
    every = f"All {counted(n_frames, 'frame')}"
    return (
        f"<h3>Coarse: the first {n_coarse} codebooks</h3>{plot(first, 'frame')}"
        f"{folded('Every window', windows)}<h3>Fine: the others</h3>{plot(second)}"
        f"<p>{text(told)}</p>{folded(every, _frames(trace, fine))}"
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
    return table("frame-data", heads, rows, rate_hz=trace.config.generation.coarse_rate_hz)
