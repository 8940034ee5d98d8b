"""How long `minibark detect` takes to judge a clip, beside transformers' HubertModel.

    python benchmarks/bench_detect.py --seconds 10 --threads 2

All sides have the same random weights of base's shape, and their features are compared first. The
notebook runs all twelve layers of transformers' model and looks at the sixth's output;
`transformers-6` is the same model without the other six. minibark also resamples, from 24 kHz.
Prints the medians, and at the end one line of JSON.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    add_options,
    close,
    machine_card,
    one_line,
    parse,
    positive,
    print_card,
    show,
    spread,
    timed,
)

from minibark.detect import Classifier, Detector
from minibark.detect.pretrained import open_hubert

RATE = 24_000
SMALL = {
    "hidden_size": 96,
    "intermediate_size": 128,
    "conv_dim": [32] * 7,
}  # for a try of the script
Side = Callable[[], Any]


def sides(args: argparse.Namespace) -> dict[str, Side]:
    """What judges the clip, or makes its features; each by the same weights."""
    from transformers import HubertConfig, HubertModel, logging

    logging.set_verbosity_error()  # it would list the six layers that it leaves out

    torch.manual_seed(args.seed)
    model = HubertModel(HubertConfig(**SMALL if args.small else {})).eval()
    with tempfile.TemporaryDirectory(prefix="minibark-bench-") as folder:
        model.save_pretrained(folder)
        hubert = open_hubert(Path(folder))
        cut = HubertModel.from_pretrained(folder, num_hidden_layers=6).eval()
    width = hubert.config.hidden_size
    detector = Detector(hubert, Classifier(np.zeros((1, width)), np.zeros(1)))
    clip = np.random.default_rng(args.seed).normal(0, 0.1, RATE * args.seconds).astype(np.float32)
    heard = torch.from_numpy(clip)[: 16_000 * args.seconds][None]

    def by_transformers(model: HubertModel) -> torch.Tensor:
        states = model(heard, output_hidden_states=True).hidden_states
        return states[6].mean(1)

    ours = hubert(heard).mean(1)
    for theirs in (model, cut):
        distance = float((by_transformers(theirs) - ours).abs().max())
        if not distance < 1e-4:
            raise ValueError(f"the features differ by {distance:.2g}: nothing is timed")
    return {
        "minibark": lambda: detector.probability(clip, RATE),
        "transformers": lambda: by_transformers(model),
        "transformers-6": lambda: by_transformers(cut),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="The last line is JSON."
    )
    parser.add_argument("--seconds", type=positive, default=10, help="of audio (%(default)s)")
    parser.add_argument("--small", action="store_true", help="a narrow model, to try the script")
    add_options(parser, "threads repeats warmup seed json")
    args = parse(parser)
    with one_line("bench_detect"), torch.inference_mode():
        card = machine_card(torch.device("cpu"))
        print_card(card)
        calls = sides(args)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for i in range(args.warmup + args.repeats):
            for name, call in calls.items():
                seconds = timed(call, torch.device("cpu"))[0]
                if i >= args.warmup:
                    times[name].append(seconds)
        results = {name: spread(found) for name, found in times.items()}
        for name, found in results.items():
            ratios = [b / a for a, b in zip(times["minibark"], times[name], strict=True)]
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            print(f"{name:<15} {show(found)} s for {args.seconds} s, {mean:.2f} x minibark")
        close("detect", args, card=card, results=results)


if __name__ == "__main__":
    main()
