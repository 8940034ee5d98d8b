"""`minibark voices`: list voices, check one, or hear it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..audio import check_suffix, save_audio
from ..bark import Bark
from ..checkpoint.layouts import open_voices
from ..checkpoint.voices import Voices, language
from ..config import GenerationConfig
from ..files import shown
from ..voice import Voice, VoiceError
from .ends import complain
from .shared import DEFAULT_MODEL, add_model, check_writable, checkpoint_options, show

if TYPE_CHECKING:
    from .shared import Commands


def add_to(commands: Commands, parent: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    voices = commands.add_parser(
        "voices", parents=[parent], help="list voices, check one, or hear it"
    )
    voices.set_defaults(run=_run, parser=voices)
    voices.add_argument("name", nargs="?", metavar="NAME|FILE", help="the voice to check")
    voices.add_argument(
        "-o", "--output", metavar="FILE", help="write what the voice NAME sounds like, as audio"
    )
    add_model(voices, None)  # a file of which no model was named is checked against all


def _run(args: argparse.Namespace) -> None:
    if args.output:
        if args.name is None:
            args.parser.error("-o FILE needs the NAME of a voice")
        try:
            check_suffix(args.output)
        except ValueError as error:
            args.parser.error(str(error))
        check_writable(Path(args.output))
    options, model = checkpoint_options(args), DEFAULT_MODEL if args.model is None else args.model
    name, is_file = args.name, args.name is not None and args.name.lower().endswith(".npz")
    if is_file and not args.output and args.model is None:
        voice, config = Voice.load(name), GenerationConfig()
    else:
        places = {key: value for key, value in options.items() if key != "stages"}
        voices, config = open_voices(model, **places)
        if name is None:
            _list(voices, config, model)
            return
        found = voices.resolve(name)
        assert found is not None
        voice = found
    voice.check(config)
    n_semantic, n_frames = len(voice.semantic), voice.fine.shape[1]
    show(
        f"{name}: a sound voice of {n_frames / config.coarse_rate_hz:.1f} s: "
        f"{n_semantic} semantic tokens, {n_frames} frames of {len(voice.fine)} codes"
    )
    if args.output:
        bark = Bark.from_pretrained(model, **options)
        save_audio(args.output, bark.decode(voice.fine), bark.sample_rate)
        if not args.quiet:
            complain(f"{args.output}: what {name} sounds like")


def _list(voices: Voices, config: GenerationConfig, model: str) -> None:
    """A line for each voice: name, seconds where its files are here, language where it is told."""
    if not len(voices):
        show(f"{model} comes with no voices")
    width = max((len(shown(name)) for name in voices), default=0)
    for name in voices:
        seconds = ""
        if voices.is_here(name):
            try:
                n_frames = voices.load(name).check(config).fine.shape[1]
                seconds = f"{n_frames / config.coarse_rate_hz:5.1f} s"
            except PermissionError:
                seconds = "may not be read"
            except (VoiceError, FileNotFoundError):
                seconds = "damaged"
        show(f"{shown(name):<{width}}  {seconds:>7}  {language(name)}".rstrip())
