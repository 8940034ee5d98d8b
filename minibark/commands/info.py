"""`minibark info`: what a checkpoint holds."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING

from ..checkpoint.layouts import open_checkpoint
from ..config import STAGES
from ..fast import choose
from .shared import checkpoint_options, show

if TYPE_CHECKING:
    from .shared import Commands


def add_to(commands: Commands, parent: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    info = commands.add_parser("info", parents=[parent], help="show what a checkpoint holds")
    info.set_defaults(run=_run)
    info.add_argument("model", metavar="MODEL", help="hub repository, directory, 'tiny', 'random'")


def _run(args: argparse.Namespace) -> None:
    checkpoint = open_checkpoint(args.model, **checkpoint_options(args))
    columns = "{:<9} {:>13} {:>6} {:>6} {:>6} {:>17} {:>14}  {}"
    show(
        columns.format(
            "stage", "parameters", "layers", "heads", "width", "vocabulary", "bytes", "precision"
        )
    )
    totals = [0, 0]
    for stage in STAGES:
        parameters, kinds = checkpoint.n_parameters(stage), Counter[str]()
        for tensor in checkpoint.states[stage].values():
            kinds[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
        n_bytes = kinds.total()
        totals = [totals[0] + parameters, totals[1] + n_bytes]
        config = getattr(checkpoint.config, stage)
        shape = (
            ("-", "-", config.num_filters, config.codebook_size)
            if stage == "codec"
            else (
                config.n_layer,
                config.n_head,
                config.n_embd,
                f"{config.input_vocab_size}/{config.output_vocab_size}",
            )
        )
        largest_first = ", ".join(kind for kind, _ in kinds.most_common())
        show(columns.format(stage, f"{parameters:,}", *shape, f"{n_bytes:,}", largest_first))
    show(columns.format("total", f"{totals[0]:,}", "", "", "", "", f"{totals[1]:,}", "").rstrip())
    show(
        f"text vocabulary {len(checkpoint.tokenizer):,}, voices {len(checkpoint.voices)}, "
        f"{checkpoint.config.codec.sampling_rate:,} Hz"
    )
    show(f"runs here {choose()}")
