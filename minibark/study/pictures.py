"""Pictures for a page: PNG of a few colours, and SVG laid out in percent of the time line."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# All can be seen on white and on black; a stage has one colour everywhere.
TEAL, ORANGE, PURPLE, BLUE = (22, 132, 134), (214, 112, 31), (130, 104, 199), (59, 130, 214)
SHADES = {
    TEAL: ("#0f6b6c", "#168486", "#2a9d9e", "#4cb3b3", "#73c6c5", "#9bd7d5"),
    ORANGE: ("#a8480c", "#c25a14", "#d9701f", "#e78a3f", "#efa566", "#f5c08f"),
    PURPLE: ("#5b3fa0", "#6d52b5", "#8268c7", "#9881d4", "#af9ce0", "#c6b8ea"),
}
Colour = tuple[int, int, int]
LEVELS = 32  # of a ramp


def png(indices: Array, palette: Sequence[tuple[int, int, int, int]]) -> bytes:
    """A PNG file.

    Args:
        indices: (height, width) whole numbers in [0, len(palette)).
        palette: red, green, blue and opacity, at most 256 of them.

    Source: the PNG specification, third edition, colour type 3.
    """
    height, width = indices.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each begins with its filter, which is none
    rows[:, 1:] = indices
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", b"".join(bytes(colour[:3]) for colour in palette)),
        (b"tRNS", bytes(colour[3] for colour in palette)),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    written = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def uri(content: bytes, kind: str) -> str:
    """A data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def ink(values: Array, colour: Colour, low: float = 0.0, high: float = 1.0) -> str:
    """Values (height, width) as one colour, which is clear at `low` and full at `high`.

    The first row is at the top. A data URI.
    """
    levels = np.clip((values - low) / (high - low), 0, 1) * (LEVELS - 1)
    palette = [(*colour, round(255 * level / (LEVELS - 1))) for level in range(LEVELS)]
    return uri(png(np.rint(np.nan_to_num(levels)).astype(np.uint8), palette), "image/png")


def codes(rows: Array, colours: Sequence[Colour], n_ids: int) -> str:
    """Rows (height, width) of ids in [0, n_ids), each in shades of its colour. A data URI."""
    kinds = list(dict.fromkeys(colours))
    palette = [(*bytes.fromhex(shade[1:]), 255) for colour in kinds for shade in SHADES[colour]]
    n = len(SHADES[kinds[0]])
    first = np.array([kinds.index(colour) * n for colour in colours])
    indices = rows * n // n_ids + first[:, None]
    return uri(png(indices, [(r, g, b, a) for r, g, b, a in palette]), "image/png")


def curve(values: Array, width: float, low: float, high: float, kind: str = "") -> str:
    """Steps of equal length, from `low` at the bottom to `high` at the top, as SVG.

    Args:
        values: (n,).
        width: of all of them, in percent of the lane.
        low: what is at the bottom.
        high: what is at the top.
        kind: the class of the path.
    """
    heights = 100 - 100 * np.clip((values - low) / (high - low or 1), 0, 1)
    path = "".join(
        f"{'M' if i == 0 else 'L'}{i} {height:.4g}h1" for i, height in enumerate(heights.tolist())
    )
    return (
        f'<svg width="{width:.3f}%" height="100%" viewBox="0 -2 {max(1, len(values))} 104" '
        f'preserveAspectRatio="none"><path class="{kind}" d="{path}"/></svg>'
    )


def wave(low: Array, high: Array) -> str:
    """The outline of a sound between its lowest and highest samples (n,), as SVG."""
    loudest = max(1e-9, float(np.abs(high).max(initial=0)), float(np.abs(low).max(initial=0)))
    path = "".join(
        f"M{i} {50 - 49 * b / loudest:.1f}V{50 - 49 * a / loudest + 0.5:.1f}"
        for i, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True))
    )
    return (
        f'<svg width="100%" height="100%" viewBox="0 0 {len(low)} 100" '
        f'preserveAspectRatio="none"><path class="wave" d="{path}"/></svg>'
    )


def ticks(duration_s: float) -> str:
    """An axis in seconds, as SVG; where there is little room every other label is left out."""
    step = next((s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if duration_s / s <= 12), 10.0)
    marks = []
    for i in range(int(duration_s / step) + 1):
        x, name = 100 * i * step / duration_s, f"{i * step:.3g}" + (" s" if i == 0 else "")
        anchor = "start" if i == 0 else "end" if x > 97 else "middle"
        kind = ' class="between"' if i % 2 else ""
        marks.append(
            f'<line x1="{x:.3f}%" x2="{x:.3f}%" y1="0" y2="5"/>'
            f'<text{kind} x="{x:.3f}%" y="17" text-anchor="{anchor}">{name}</text>'
        )
    return f'<svg class="axis" width="100%" height="20">{"".join(marks)}</svg>'
