"""`minibark info`: what a checkpoint holds."""

from __future__ import annotations

import argparse
from collections import Counter

from .shared import checkpoint_options


def run_info(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Show what a checkpoint holds."""
    from ..bark import describe_running
    from ..checkpoint.layouts import open_checkpoint
    from ..config import STAGES

    checkpoint = open_checkpoint(args.model, **checkpoint_options(args))
    columns = "{:<9} {:>13} {:>6} {:>6} {:>6} {:>17} {:>14}  {}"
    print(
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
        print(columns.format(stage, f"{parameters:,}", *shape, f"{n_bytes:,}", largest_first))
    print(columns.format("total", f"{totals[0]:,}", "", "", "", "", f"{totals[1]:,}", "").rstrip())
    print(
        f"text vocabulary {len(checkpoint.tokenizer):,}, voices {len(checkpoint.voices)}, "
        f"{checkpoint.config.codec.sampling_rate:,} Hz"
    )
    print(f"runs here {describe_running()}")
