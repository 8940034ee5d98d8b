"""HTML in small parts. Whatever is text becomes text: nothing that it holds is read as markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

HEIGHTS = (10, 14, 20, 40, 64, 96, 160)  # of lanes, in pixels; the style sheet has a class for each


def text(value: object) -> str:
    """A value as it may stand between tags and in quoted attributes.

    What cannot be encoded, and control characters but white space, come out as U+FFFD.
    """
    words = str(value).encode("utf-8", "replace").decode("utf-8")
    seen = "".join(
        char if (ord(char) >= 32 and not 127 <= ord(char) < 160) or char in "\t\n\r" else "\ufffd"
        for char in words
    )
    # A browser would read a bare carriage return as a line end.
    return escape(seen, quote=True).replace("\r", "&#13;")


def short(value: str, most: int = 200) -> str:
    """The beginning of a long text, with a sign that it goes on."""
    return value if len(value) <= most else f"{value[:most]}\u2026"


def counted(n: int, what: str) -> str:
    """So many of something: "1 token", "2,000 tokens"."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def said(value: str) -> str:
    """A stranger's words, whose direction of writing stays their own."""
    return f'<bdi dir="auto">{text(value)}</bdi>'


def table(
    name: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    caption: str = "",
    rate_hz: float | None = None,
) -> str:
    """A table of escaped cells; those that are already HTML are `Html`.

    Of rows that come at a rate it is told exactly, for JavaScript; their times are rounded.
    """
    head = "".join(f'<th scope="col">{text(one)}</th>' for one in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    rate = "" if rate_hz is None else f' data-rate="{rate_hz!r}"'
    return (
        f'<div class="table"><table id="{name}"{rate}>{title}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


class Html(str):
    """A cell that is HTML already."""


def _cell(value: object) -> str:
    return value if isinstance(value, Html) else text(value)


def folded(summary: str, content: str) -> str:
    """Something long behind a line that opens it; it opens without JavaScript too."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def lane(
    name: str,
    content: str,
    height: int = 20,
    note: str = "",
    ends: tuple[str, str] = ("", ""),
    is_time: bool = True,
) -> str:
    """A row of a plot.

    Args:
        name: what it shows.
        content: HTML that fills it.
        height: one of `HEIGHTS`, or 0 for what the content has.
        note: of the unit, or the like.
        ends: what the top and the bottom stand for.
        is_time: whether it goes along the time line, so that the cursor is in it.
    """
    kind = "lane" if is_time else "lane still"
    size = f" h{height}" if height else ""
    small = f"<small>{text(note)}</small>" if note else ""
    high, low = map(text, ends)
    return (
        f'<div class="row"><div class="label"><span>{text(name)}</span>{small}</div>'
        f'<div class="ends"><span>{high}</span><span>{low}</span></div>'
        f'<div class="{kind}{size}">{content}</div></div>'
    )


def plot(lanes: Iterable[str], readout: str = "") -> str:
    """Lanes under one another, on one time line; `readout` names what JavaScript tells below."""
    told = f'<p class="readout" data-readout="{readout}"></p>' if readout else ""
    return f'<div class="plot">{"".join(lanes)}</div>{told}'


def image(source: str, alt: str, width: float = 100.0, height: int | None = None) -> str:
    """A picture that fills its lane; its width is in percent of it."""
    tall = f' height="{height}"' if height else ""
    return f'<img src="{source}" alt="{text(alt)}" width="{width:.3f}%"{tall}>'


def spans(parts: Iterable[tuple[float, float, str, str]], duration_s: float) -> str:
    """Named stretches of time as SVG: (start_s, end_s, name, attributes) each."""
    found = []
    for start_s, end_s, name, attributes in parts:
        x, width = 100 * start_s / duration_s, 100 * max(0.0, end_s - start_s) / duration_s
        found.append(
            f"<g {attributes}><title>{text(name)}</title>"
            f'<rect x="{x:.3f}%" width="{width:.3f}%" y="1" height="18" rx="2"/>'
            f'<svg x="{x:.3f}%" width="{width:.3f}%" height="20">'
            f'<text x="3" y="14">{text(name)}</text></svg></g>'
        )
    return f'<svg class="spans" width="100%" height="20">{"".join(found)}</svg>'
