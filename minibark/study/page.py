"""A trace as one HTML file, which needs no network, no library and, to be read, no JavaScript."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from importlib import resources
from string import Template

from ..files import replacing
from .markup import text
from .numbers import numbers
from .settings import command_of
from .shown_sound import part_costs, part_depths, part_settings, part_sound, sound
from .shown_tokens import part_alignment, part_codes, part_semantic, part_text
from .trace import Trace


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
        title=text(f"{trace.text[:80]} - minibark inspect"),
        heading=text(trace.text),
        facts=text(facts),
        style=style,
        script=script,
        sound=sound(trace.audio, trace.config.codec.sampling_rate, ".flac"),
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
    content = page(trace, command).encode("utf-8")
    with replacing(path) as part:
        part.write_bytes(content)


def save_numbers(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write `numbers` as JSON, whole or not at all; OSError where it cannot be written."""
    content = json.dumps(numbers(trace), allow_nan=False).encode("ascii")
    with replacing(path) as part:
        part.write_bytes(content + b"\n")


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """What a Content Security Policy calls this content of an element."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
