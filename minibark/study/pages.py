"""A trace as one HTML file, which needs no network, no library and, to be read, no JavaScript."""

from __future__ import annotations

import base64
import hashlib
import os
from importlib import resources
from string import Template

from ..files import replacing
from .document import check_place
from .markup import folded, short, text
from .settings import command_of
from .shown_codes import part_codes
from .shown_sound import part_costs, part_depths, part_settings, part_sound, sound
from .shown_tokens import part_alignment, part_semantic, part_text
from .tracing import Trace
from .words import MOST_TEXT


def page(trace: Trace, command: str | None = None) -> str:
    """The page that shows a trace.

    Args:
        trace: of an utterance that has sound.
        command: the one that makes the page again; None makes it of the trace's settings.

    Raises:
        ValueError: there is no sound.
    """
    if not len(trace.audio):
        raise ValueError("no audio was made, so there is nothing to show; try another seed")
    style, script, template = (_resource(f"page.{kind}") for kind in ("css", "js", "html"))
    settings = trace.settings
    voice = settings["voice"] or ("a voice" if settings["voice_checksum"] else "no voice")
    seed = "no seed" if settings["seed"] is None else f"seed {settings['seed']}"
    seed = "a random stream" if settings["generator"] else seed
    facts = (
        f"{trace.duration_s:.2f} s of sound by {settings['model']}, {voice}, {seed}, "
        f"{settings['runs']}; minibark {settings['versions']['minibark']}"
    )
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    return Template(template).substitute(
        policy=policy,
        title=text(f"{short(trace.text, 80)} - minibark inspect"),
        heading=text(short(trace.text)),
        whole=_whole(trace.text),
        facts=text(facts),
        style=style,
        script=script,
        # WAV, since Chromium cannot seek in a FLAC that lies in the page.
        sound=sound(trace.audio, trace.config.codec.sampling_rate, ".wav"),
        part_text=part_text(trace),
        part_semantic=part_semantic(trace),
        part_alignment=part_alignment(trace),
        part_codes=part_codes(trace),
        part_depths=part_depths(trace),
        part_sound=part_sound(trace),
        part_costs=part_costs(trace),
        part_settings=part_settings(trace, command or command_of(settings)),
    )


def save_page(trace: Trace, path: str | os.PathLike[str], command: str | None = None) -> None:
    """Write `page`, whole or not at all; its errors, and OSError where it cannot be written."""
    check_place(path)
    content = page(trace, command).encode("utf-8")
    with replacing(path) as part:
        part.write_bytes(content)


def _whole(words: str) -> str:
    """A text that the heading has only the beginning of, up to a length."""
    if short(words) == words:
        return ""
    more = len(words) - MOST_TEXT
    rest = f"<p>{more:,} characters more.</p>" if more > 0 else ""
    shown = f'<p><bdi dir="auto">{text(short(words, MOST_TEXT))}</bdi></p>'
    return folded(f"The whole text, {len(words):,} characters", shown + rest)


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """What a Content Security Policy calls this content of an element."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
