"""`minibark voices`: list voices, or check one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..checkpoint.layouts import open_voices
from ..config import GenerationConfig
from ..files import shown
from ..voice import Voice
from .shared import add_model

if TYPE_CHECKING:
    from .shared import Commands


def add_to(commands: Commands, parent: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    voices = commands.add_parser("voices", parents=[parent], help="list voices, or check one")
    voices.set_defaults(run=_run)
    voices.add_argument("name", nargs="?", metavar="NAME|FILE", help="the voice to check")
    add_model(voices)


def _run(args: argparse.Namespace) -> None:
    name = args.name
    if name is not None and name.endswith(".npz"):
        voice, config = Voice.load(name), GenerationConfig()
    else:
        voices, config = open_voices(
            args.model,
            cache_dir=args.cache_dir,
            revision=args.revision,
            offline=args.offline,
            voices_dir=args.voices_dir,
        )
        if name is None:
            print(
                "\n".join(map(shown, voices))
                if len(voices)
                else f"{args.model} comes with no voices"
            )
            return
        voice = voices.load(name)
    voice.check(config)
    n_semantic, n_frames = len(voice.semantic), voice.fine.shape[1]
    print(
        f"{name}: a sound voice of {n_frames / config.coarse_rate_hz:.1f} s: "
        f"{n_semantic} semantic tokens, {n_frames} frames of {len(voice.fine)} codes"
    )
