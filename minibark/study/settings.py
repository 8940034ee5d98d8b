"""All that decides what is made: options, model, voice, and where it ran; and how to ask again."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from .._version import __version__
from ..bark import Bark
from ..options import Options, flag_of, knobs
from ..speech.clips import voice_checksum
from ..voice import Voice

MOST_BYTES = 30_000
"""Of a text in a command; systems take no longer words."""

TEXT_FILE = "text.txt"
"""The file that a longer text is to be put in."""


def settings_of(
    bark: Bark, text: str | None, voice: object, loaded: Voice | None, options: Options
) -> dict[str, Any]:
    """Plain values, ready for JSON.

    Args:
        bark: what runs.
        text: as it was given; None where ids were.
        voice: as it was given.
        loaded: what that stands for.
        options: all.
    """
    checkpoint, places = bark.checkpoint(), bark.opened_with()
    is_named = isinstance(voice, (str, os.PathLike))
    named = voice if is_named else getattr(voice, "origin", "")
    seed = options.seed
    return {
        "text": text,
        "model": checkpoint.name,
        "model_checksum": checkpoint.checksum(),
        "revision": places.get("revision"),
        "stages": {stage: os.fspath(at) for stage, at in places.get("stages", {}).items()},
        "voices_dir": places.get("voices_dir"),
        "voice": str(named) if named else None,
        "voice_checksum": voice_checksum(loaded) if loaded else None,
        "options": {name: getattr(options, name) for name, _ in knobs() if name != "seed"},
        "seed": seed if isinstance(seed, int) else None,
        "generator": isinstance(seed, torch.Generator),
        "normalize": options.normalize or bark.normalize,
        "device": str(bark.device),
        "precision": bark.precision,
        "backend": bark.backend,
        "offload": bark.pipeline.offload,
        "runs": bark.describe(),
        "threads": torch.get_num_threads(),
        "versions": {
            "minibark": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
        },
    }


def command_of(settings: Mapping[str, Any], output: str = "inspect.html") -> str | None:
    """The command that makes the same; None where ids were given, which no command takes.

    A voice that has no name, and a state of a `torch.Generator`, are not in it.
    """
    text = settings["text"]
    if text is None:
        return None
    names = ("model", "revision", "voices_dir", "voice", "seed", "device", "precision", "backend")
    flags = {name: settings[name] for name in names}
    if settings["device"] == "cpu":
        flags["threads"] = settings["threads"]
    flags["offload"] = settings["offload"]
    words = [*words_of_flags(flags, settings["stages"]), *words_of_options(settings["options"])]
    return shlex.join(["minibark", "inspect", *words, "-o", output, *words_of_text(text)])


def words_of_flags(flags: Mapping[str, Any], stages: Mapping[str, Any]) -> Iterator[str]:
    """The words of options of the command line by their names; what is None or False is off."""
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            yield flag
        elif value is not None and value is not False:
            # A value that begins with a dash would be taken for an option.
            yield from (f"{flag}={value}",) if str(value)[:1] == "-" else (flag, str(value))
    for stage, place in stages.items():
        yield from ("--stage", f"{stage}={os.fspath(place)}")


def words_of_options(options: Mapping[str, Any]) -> Iterator[str]:
    """The words of all fields of `Options` that are not as they are by default, but the seed."""
    for name, knob in knobs():
        default = getattr(Options, name)
        value = options.get(name, default)
        if value == default or name == "seed":
            continue
        flag = flag_of(name, knob)
        if knob.kind is bool:
            yield flag if value else flag.replace("--", "--no-", 1)
        else:
            yield f"{flag}={'none' if value is None else value}"


def words_of_text(text: str) -> tuple[str, str]:
    """The words that give a text, or the file that it is to be put in, if it is a long one."""
    if len(text.encode("utf-8", "replace")) > MOST_BYTES:
        return "-i", TEXT_FILE
    trimmed = text.strip("\r\n")
    return "--", text if trimmed == "-" else trimmed  # which would be standard input
