"""`minibark detect`: was this made by Bark? A hint; and classifiers imported or fitted."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import CheckpointError
from ..files import shown
from .bars import Bars
from .ends import complain
from .shared import DEFAULT_MODEL, check_distinct, check_writable, show, tell

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
        help="recordings of any format and rate, - for standard input; those over 10 s are cut "
        "into equal windows and the mean is given (Suno's notebook takes them whole). With "
        "--import-classifier or --fit the classifier to write",
    )
    parser.add_argument("--json", action="store_true", help="a JSON object on a line for each file")
    parser.add_argument(
        "--classifier", metavar="FILE", help="safetensors file with weight (1, C) and bias (1,)"
    )
    parser.add_argument(
        "--hubert",
        metavar="DIR|REPO",
        help=f"the encoder, of HuBERT base's architecture ({_DEFAULT_HUBERT})",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the HuBERT on the hub")
    parser.add_argument("--offline", action="store_true", help="never ask the hub")
    makes = parser.add_argument_group("making a classifier, which is then the only FILE")
    makes.add_argument(
        "--import-classifier",
        metavar="PKL",
        help="take it out of scikit-learn's pickle, of which nothing is executed",
    )
    makes.add_argument(
        "--fit",
        action="store_true",
        help="fit one to two folders of recordings; its card is written beside it as "
        "OUT.safetensors.md",
    )
    makes.add_argument(
        "--bark",
        metavar="DIR",
        help="recordings that Bark made, in it and in "
        "the folders below: .wav .flac .ogg .opus .mp3 .aiff .au .caf and whatever else soundfile "
        "reads (docs/detect.md lists the suffixes)",
    )
    makes.add_argument("--not-bark", metavar="DIR", help="recordings that it did not make")
    makes.add_argument(
        "--codec-copies",
        action="store_true",
        help="add each recording that is not Bark's sent through the codec of --model, so that the "
        "classifier does not take every voice out of a codec for Bark",
    )
    makes.add_argument(
        "--model",
        help=f"whose codec; an EnCodec by itself will do too ({DEFAULT_MODEL})",
    )


def _run(args: argparse.Namespace) -> None:
    if args.fit and args.import_classifier is not None:
        args.parser.error("--fit and --import-classifier are two ways; name one")
    _check_options(args)
    if args.fit or args.import_classifier is not None:
        if len(args.files) != 1 or not args.files[0].endswith(".safetensors"):
            args.parser.error("name one file to write, OUT.safetensors")
        (_fit if args.fit else _import)(args, args.files[0])
        return
    if not args.classifier:
        args.parser.error(
            "--classifier FILE is needed: minibark ships none. Make one of Suno's pickle "
            "(--import-classifier classifier.pkl OUT.safetensors) or of recordings (--fit)"
        )
    from ..detect import Detector

    _judge(args, Detector.from_pretrained(_hubert(args), args.classifier, **_places(args)))


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that would do nothing."""
    if not args.fit:
        for option in ("bark", "not_bark", "codec_copies"):
            if getattr(args, option):
                args.parser.error(f"--{option.replace('_', '-')} goes with --fit")
    if args.model is not None and not args.codec_copies:
        args.parser.error("--model goes with --fit --codec-copies")
    makes = "--fit" if args.fit else "--import-classifier"
    if args.fit or args.import_classifier is not None:
        for option in ("json", "classifier"):
            if getattr(args, option):
                args.parser.error(f"--{option} goes with recordings to judge, not with {makes}")
    if args.import_classifier is not None:
        for option in ("hubert", "revision", "offline"):
            if getattr(args, option):
                args.parser.error(f"--{option} does not go with --import-classifier")
    if args.revision is not None and os.path.isdir(os.path.expanduser(_hubert(args))):
        args.parser.error(
            f"--revision goes with a HuBERT on the hub; {shown(_hubert(args))} is a folder here"
        )


def _hubert(args: argparse.Namespace) -> str:
    return _DEFAULT_HUBERT if args.hubert is None else args.hubert


def _model(args: argparse.Namespace) -> str:
    return DEFAULT_MODEL if args.model is None else args.model


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
        except CheckpointError:  # of the HuBERT, so all would fail
            raise
        except (ValueError, OSError) as error:
            if len(args.files) == 1:
                raise
            n_failed += 1
            strerror = error.strerror if isinstance(error, OSError) else None
            words = f"{shown(file)}: {strerror}" if strerror else str(error)
            tell(words)
            if args.json:
                show(json.dumps({"file": file, "error": words}))
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
    from ..detect.card import check_no_card
    from ..detect.sklearn_pickles import import_classifier

    if not args.import_classifier:
        args.parser.error("--import-classifier needs a file's name, not ''")
    try:
        check_distinct({"OUT": out}, {"--import-classifier": args.import_classifier})
    except ValueError as error:
        args.parser.error(str(error))
    check_writable(Path(out))
    check_no_card(out)
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
    card.check_card_place(out)
    fitting.check_apart(args.bark, args.not_bark)
    bark, others = (fitting.recordings_in(folder) for folder in (args.bark, args.not_bark))
    copier = _copier(args) if args.codec_copies else None
    if copier is None:
        tell(
            "warning: without --codec-copies a classifier learns the codec, and takes every voice "
            "sent through it for Bark's"
        )
    hubert = open_hubert(_hubert(args), **_places(args))
    with Bars(args.quiet) as bars:
        bark, others = fitting.distinct(bark, others, bars.step)
        examples = fitting.examples_of(hubert, bark, others, copier, bars.step)
    classifier, report = fitting.fit_classifier(examples, hubert)
    assert classifier.fingerprint is not None
    card.write_both(
        classifier,
        out,
        report,
        hubert=_hubert(args),
        revision=args.revision,
        fingerprint=classifier.fingerprint,
        strength=fitting.STRENGTH,
        codec=copier.name if copier else None,
        command=("minibark", *args.parser.prog.split()[1:], *_words(args, out)),
    )
    for name, rates in (("recordings", report.recordings), ("codec copies", report.copies)):
        if rates is not None:
            show(
                f"cross-validated: {rates.n_bark} of Bark, {rates.n_other} {name}: AP "
                f"{rates.average_precision:.3f}, EER {rates.equal_error_rate:.3f}, "
                f"{rates.n_false} taken for Bark, {report.n_missed} of Bark missed"
            )
    if not args.quiet:
        told = shown(card.card_place(out), 1000)
        complain(f"{shown(out, 1000)}; what it can tell and what not: {told}")


def _words(args: argparse.Namespace, out: str) -> list[str]:
    """The options that made a classifier, for its card."""
    words = ["--fit", "--bark", args.bark, "--not-bark", args.not_bark]
    if args.codec_copies:
        words += ["--codec-copies", "--model", _model(args)]
    for option in ("hubert", "revision"):
        if getattr(args, option):
            words += [f"--{option}", getattr(args, option)]
    return [*words, out]


def _copier(args: argparse.Namespace) -> CodecCopier:
    """Sound through the encoder, codebooks and decoder of a Bark's codec."""
    import torch

    from .. import fast
    from ..codec import CodecDecoder
    from ..detect.codec_encoder import open_encoder
    from ..detect.fitting import CodecCopier

    options = {"cache_dir": args.cache_dir, "offline": args.offline}
    model = _model(args)
    checkpoint = _open(model, options)
    config, state = checkpoint.config, checkpoint.states["codec"]
    encoder = open_encoder(model, config.codec, state["codebooks"], **options)
    decoder = fast.build("codec", config, state, fast.choose("cpu", "float32"))
    assert isinstance(decoder, CodecDecoder)

    @torch.inference_mode()
    def copy(audio: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = decoder(encoder(audio))
        return made[0, : len(audio)]

    return CodecCopier(copy, config.codec.sampling_rate, model)


def _open(model: str, options: dict[str, Any]) -> Checkpoint:
    """A Bark; around an EnCodec by itself a random one, of which nothing else is used."""
    from ..checkpoint.hub import RANDOM, Source
    from ..checkpoint.layouts import open_checkpoint
    from ..checkpoint.single import is_single
    from ..files import read_json

    source = Source.of(model, **options).pinned()
    config = None if source.is_random or os.path.isfile(source.path) else source.find("config.json")
    document: Any = read_json(config) if config else None
    if not os.path.isfile(source.path) and not is_single(document):
        return open_checkpoint(model, **options)
    if is_single(document):
        rate, channels = document.get("sampling_rate", 24_000), document.get("audio_channels", 1)
        if (rate, channels) != (24_000, 1):
            raise CheckpointError(
                f"{shown(model)} is a codec of {shown(rate)} Hz and {shown(channels)} channels; "
                "Bark's is the EnCodec of 24 kHz and one channel: facebook/encodec_24khz"
            )
    return open_checkpoint(RANDOM, stages={"codec": model}, **options)
