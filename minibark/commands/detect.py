"""`minibark detect`: was this made by Bark? A hint; and classifiers imported or fitted."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import shown
from .bars import Bars
from .ends import complain
from .shared import DEFAULT_MODEL, check_writable, show, tell

if TYPE_CHECKING:
    from ..checkpoint.opened import Checkpoint
    from ..detect.detector import Detector, Judgement
    from ..detect.fitting import CodecCopier
    from .shared import Commands

_DEFAULT_HUBERT = "facebook/hubert-base-ls960"
_HINT = "a hint and no proof"


def add_to(commands: Commands, parent: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "detect", parents=[parent], help="say how probable it is that Bark made a recording"
    )
    parser.set_defaults(run=_run, parser=parser)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="recordings of any format and rate, - for standard input; with --import-classifier "
        "or --fit the classifier to write",
    )
    parser.add_argument("--json", action="store_true", help="a JSON object on a line for each file")
    parser.add_argument(
        "--classifier", metavar="FILE", help="safetensors file with weight (1, C) and bias (1,)"
    )
    parser.add_argument(
        "--hubert",
        metavar="DIR|REPO",
        default=_DEFAULT_HUBERT,
        help="the encoder, of HuBERT base's architecture (%(default)s)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the HuBERT on the hub")
    parser.add_argument("--offline", action="store_true", help="never ask the hub")
    makes = parser.add_argument_group("making a classifier, which is then the only FILE")
    makes.add_argument(
        "--import-classifier",
        metavar="PKL",
        help="take it out of scikit-learn's pickle, of which nothing is executed",
    )
    makes.add_argument("--fit", action="store_true", help="fit one to two folders of recordings")
    makes.add_argument("--bark", metavar="DIR", help="recordings that Bark made")
    makes.add_argument("--not-bark", metavar="DIR", help="recordings that it did not make")
    makes.add_argument(
        "--codec-copies",
        action="store_true",
        help="add each recording that is not Bark's sent through the codec of --model, so that the "
        "classifier does not take every voice out of a codec for Bark",
    )
    makes.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="whose codec; an EnCodec by itself will do too (%(default)s)",
    )


def _run(args: argparse.Namespace) -> None:
    if args.fit and args.import_classifier:
        args.parser.error("--fit and --import-classifier are two ways; name one")
    if not args.fit:
        for option in ("bark", "not_bark", "codec_copies"):
            if getattr(args, option):
                args.parser.error(f"--{option.replace('_', '-')} goes with --fit")
    if args.fit or args.import_classifier:
        if len(args.files) != 1 or not args.files[0].endswith(".safetensors"):
            args.parser.error("name one file to write, OUT.safetensors")
        (_fit if args.fit else _import)(args, args.files[0])
        return
    if args.classifier is None:
        args.parser.error(
            "--classifier FILE is needed: minibark ships none. Make one of Suno's pickle "
            "(--import-classifier classifier.pkl OUT.safetensors) or of recordings (--fit)"
        )
    from ..detect import Detector

    _judge(args, Detector.from_pretrained(args.hubert, args.classifier, **_places(args)))


def _places(args: argparse.Namespace) -> dict[str, Any]:
    return {"cache_dir": args.cache_dir, "revision": args.revision, "offline": args.offline}


def _judge(args: argparse.Namespace, detector: Detector) -> None:
    """A line for each file; what cannot be judged among several is told of at once."""
    n_failed = 0
    for file in args.files:
        try:
            if file == "-" and sys.stdin is None:
                raise ValueError("there is no standard input")
            found = detector.judge(sys.stdin.buffer if file == "-" else file)
        except (ValueError, OSError) as error:
            if len(args.files) == 1:
                raise
            n_failed += 1
            words = error.strerror if isinstance(error, OSError) else None
            tell(f"{shown(file)}: {words}" if words else str(error))
            continue
        show(_document(file, found) if args.json else _line(file, found))
    if n_failed:
        raise ValueError(f"{n_failed} of {len(args.files)} files could not be judged")


def _line(file: str, found: Judgement) -> str:
    text = f"{shown(file)}: P(Bark) {found.probability:.3f}, {found.seconds:.1f} s"
    if len(found.windows) > 1:
        highest, at_s = found.highest
        text += f", mean of {len(found.windows)} windows, highest {highest:.3f} at {at_s:.0f} s"
    return f"{text}: {found.verdict} ({_HINT})"


def _document(file: str, found: Judgement) -> str:
    highest, at_s = found.highest
    return json.dumps(
        {
            "file": file,
            "p_bark": found.probability,
            "seconds": found.seconds,
            "windows": list(found.windows),
            "highest": highest,
            "highest_at_s": at_s,
            "verdict": f"{found.verdict}; {_HINT}",
        }
    )


def _import(args: argparse.Namespace, out: str) -> None:
    from ..detect.sklearn_pickles import import_classifier

    check_writable(Path(out))
    classifier = import_classifier(Path(os.path.expanduser(args.import_classifier)))
    classifier.save(out)
    if not args.quiet:
        complain(f"{shown(out)}: a classifier of {classifier.weight.shape[1]} features")


def _fit(args: argparse.Namespace, out: str) -> None:
    if not args.bark or not args.not_bark:
        args.parser.error("--fit needs --bark DIR and --not-bark DIR")
    from ..detect import card, fitting
    from ..detect.pretrained import open_hubert

    for place in (Path(out), card.card_place(out)):
        check_writable(place)
    bark, others = (fitting.recordings_in(folder) for folder in (args.bark, args.not_bark))
    bark, others = fitting.distinct(bark, others)
    copier = _copier(args) if args.codec_copies else None
    if copier is None:
        tell(
            "warning: without --codec-copies a classifier learns the codec, and takes every voice "
            "sent through it for Bark's"
        )
    hubert = open_hubert(args.hubert, **_places(args))
    with Bars(args.quiet) as bars:
        examples = fitting.examples_of(hubert, bark, others, copier, bars.step)
    classifier, report = fitting.fit_classifier(examples, hubert)
    assert classifier.fingerprint is not None
    classifier.save(out)
    card.write_card(
        out,
        report,
        hubert=args.hubert,
        fingerprint=classifier.fingerprint,
        strength=fitting.STRENGTH,
        codec=copier.name if copier else None,
    )
    for name, rates in (("recordings", report.recordings), ("codec copies", report.copies)):
        if rates is not None:
            show(
                f"{rates.n_bark} of Bark, {rates.n_other} {name}: AP "
                f"{rates.average_precision:.3f}, EER {rates.equal_error_rate:.3f}, "
                f"{rates.n_false} taken for Bark"
            )
    if not args.quiet:
        complain(
            f"{shown(out)} and {shown(card.card_place(out).name)}: what it can tell and what not"
        )


def _copier(args: argparse.Namespace) -> CodecCopier:
    """Sound through the encoder, codebooks and decoder of a Bark's codec."""
    import torch

    from .. import fast
    from ..codec import CodecDecoder
    from ..detect.codec_encoder import open_encoder
    from ..detect.fitting import CodecCopier

    options = {"cache_dir": args.cache_dir, "offline": args.offline}
    checkpoint = _open(args.model, options)
    config, state = checkpoint.config, checkpoint.states["codec"]
    encoder = open_encoder(args.model, config.codec, state["codebooks"], **options)
    decoder = fast.build("codec", config, state, fast.choose("cpu", "float32"))
    assert isinstance(decoder, CodecDecoder)

    @torch.inference_mode()
    def copy(audio: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = decoder(encoder(audio))
        return made[0, : len(audio)]

    return CodecCopier(copy, config.codec.sampling_rate, args.model)


def _open(model: str, options: dict[str, Any]) -> Checkpoint:
    """A Bark; around an EnCodec by itself a random one, of which nothing else is used."""
    from ..checkpoint.hub import RANDOM
    from ..checkpoint.layouts import open_checkpoint
    from ..config import CheckpointError

    try:
        return open_checkpoint(model, **options)
    except CheckpointError as error:
        with contextlib.suppress(CheckpointError):
            return open_checkpoint(RANDOM, stages={"codec": model}, **options)
        raise error
