"""Step 7: the fine GPT, the codebooks below -> one of codebooks 2 to 7, all frames at once.

Every example is a buffer of generation: frames of a voice, all codebooks known; frames of the
utterance, the wanted codebook not filled yet; pads. At times the first of the utterance's frames
are filled already, as they are where two buffers overlap.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from codes import Coded
from tiny import work_argument
from torch import nn
from training import Batch, Losses, start_from, top1, train, training_arguments

from minibark.model import FineGPT

BUFFERS = 20  # per step
NOISE = 0.03  # share of given codes that are replaced


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work_argument(parser)
    training_arguments(parser, steps=3500, rate=2e-3)
    args = parser.parse_args()
    coded = Coded.load(args)
    config, g = coded.config, coded.config.generation
    torch.manual_seed(0)
    length, pad = g.max_fine_input_length, g.codebook_size

    def make(chosen: list[int], seed: int, noise: float) -> Batch:
        rng = np.random.default_rng((seed, 3))
        book = int(rng.integers(g.n_coarse_codebooks, g.n_fine_codebooks))
        inputs, targets = [], []
        for i in chosen:
            codes = coded.streams[i].fine
            first = int(rng.integers(codes.shape[1])) if rng.random() < 0.5 else 0
            voice = coded.history(i, rng)
            if first:  # a later buffer: what is before is the utterance's own
                history = codes[:, max(0, first - g.max_fine_history_length) : first]
            else:
                history = codes[:, :0] if voice is None else voice.fine
                history = history[:, -g.max_fine_history_length :]
            whole = torch.cat((history, codes[:, first:]), dim=1)[:, :length]
            whole = F.pad(whole, (0, length - whole.shape[1]), value=pad)
            target = whole[book].where(whole[book] < pad, -100)
            target[: history.shape[1]] = -100
            given = whole.clone()
            if noise:
                others = torch.from_numpy(rng.integers(pad, size=given.shape))
                replaced = torch.from_numpy(rng.random(given.shape) < noise) & (given < pad)
                given = torch.where(replaced, others, given)
            filled = history.shape[1]
            if rng.random() < 0.2:
                filled += int(rng.integers(length - filled))
            given[book, filled:] = pad
            inputs.append(given.T)
            targets.append(target)
        return torch.stack(inputs), torch.stack(targets), torch.tensor(book)

    def batch(step: int) -> Batch:
        rng = np.random.default_rng(step)
        return make(
            [coded.train[k] for k in rng.integers(len(coded.train), size=BUFFERS)], step, NOISE
        )

    def losses(model: nn.Module, batch: Batch) -> Losses:
        inputs, targets, book = batch
        logits = model(inputs, int(book))[..., : g.codebook_size].flatten(0, 1)
        flat = targets.flatten()
        return {"loss": F.cross_entropy(logits, flat), "top1": top1(logits.detach(), flat)}

    validation = [make(coded.dev[k : k + 20], 10**9 + k, 0.0) for k in range(0, 240, 20)]
    model = FineGPT(config.fine)
    start_from(args.start_from, "fine", model)
    train("fine", model, batch, losses, args.work, args, validation=validation)


if __name__ == "__main__":
    main()
