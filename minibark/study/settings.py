"""All that decides what is made: options, model, voice, and where it ran; and how to ask again."""

from __future__ import annotations

import platform
import shlex
from typing import Any

import numpy as np
import torch

from .._version import __version__
from ..bark import Bark
from ..options import Options, knobs
from ..speech.clips import voice_checksum
from ..voice import Voice


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
    checkpoint = bark.checkpoint()
    named = voice if isinstance(voice, str) else getattr(voice, "origin", "") or None
    seed = options.seed
    return {
        "text": text,
        "model": checkpoint.name,
        "model_checksum": checkpoint.checksum(),
        "voice": str(named) if named else None,
        "voice_checksum": voice_checksum(loaded) if loaded else None,
        "options": {name: getattr(options, name) for name, _ in knobs() if name != "seed"},
        "seed": seed if isinstance(seed, int) else None,
        "normalize": options.normalize or bark.normalize,
        "device": str(bark.device),
        "precision": bark.precision,
        "backend": bark.backend,
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


def command_of(settings: dict[str, Any], output: str = "inspect.html") -> str | None:
    """The command that makes the same; None where ids were given, which no command takes."""
    if settings["text"] is None:
        return None
    words = ["minibark", "inspect", "--model", settings["model"]]
    if settings["voice"]:
        words += ["--voice", settings["voice"]]
    if settings["seed"] is not None:
        words += ["--seed", str(settings["seed"])]
    for name, knob in knobs():
        value = settings["options"].get(name, getattr(Options, name))
        if value == getattr(Options, name):
            continue
        flag = knob.flag or "--" + name.replace("_", "-")
        if knob.kind is bool:
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words.append(f"{flag}={'none' if value is None else value}")
    for name in ("device", "precision", "backend"):
        words += [f"--{name}", settings[name]]
    return shlex.join([*words, "-o", output, "--", settings["text"]])
