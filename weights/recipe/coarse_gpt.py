"""Step 6: the coarse GPT, semantic tokens and coarse ids so far -> the next coarse ids.

Every example is a window of generation: the prompt that `window_prompt` makes at a multiple of 60
steps, with a voice's last ids in front or without, and the 60 ids that follow. All coarse ids of an
example are trained, those of the history too.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from codes import Coded, noisy
from tiny import work_argument
from torch import nn
from training import Batch, Losses, start_from, top1, train, training_arguments

from minibark.coarse import start_row, window_prompt
from minibark.model import GPT

WINDOWS = 18  # per step
NOISE = 0.03  # share of coarse inputs that are replaced, so that a slip is not fatal


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work_argument(parser)
    training_arguments(parser, steps=10_500, rate=2e-3)
    args = parser.parse_args()
    coded = Coded.load(args)
    config, g = coded.config, coded.config.generation
    torch.manual_seed(0)
    first_id = g.semantic_vocab_size
    last_id = first_id + g.n_coarse_codebooks * g.codebook_size

    def make(chosen: list[int], seed: int, noise: float) -> Batch:
        rng = np.random.default_rng((seed, 2))
        inputs, targets = [], []
        for i in chosen:
            said = coded.streams[i]
            voice = coded.history(i, rng)
            row = start_row(said.semantic, voice, g)
            offsets = torch.arange(g.n_coarse_codebooks)[:, None] * g.codebook_size + first_id
            row.coarse[row.n_history :] = (said.coarse + offsets).T.flatten()
            step = g.sliding_window_len * int(
                rng.integers((row.n_steps - 1) // g.sliding_window_len + 1)
            )
            prompt = window_prompt(row, step, g)
            here = row.n_history + step
            ids = torch.cat((prompt, row.coarse[here : here + g.sliding_window_len]))
            n_before = g.max_coarse_input_length + 1
            target = torch.full((config.coarse.block_size,), -100)
            target[n_before - 1 : len(ids) - 1] = ids[n_before:] - first_id
            if noise:
                ids[n_before:] = noisy(ids[n_before:], noise, first_id, last_id, rng)
            inputs.append(F.pad(ids[:-1], (0, config.coarse.block_size - len(ids) + 1)))
            targets.append(target)
        return torch.stack(inputs), torch.stack(targets)

    def batch(step: int) -> Batch:
        rng = np.random.default_rng(step)
        return make(
            [coded.train[k] for k in rng.integers(len(coded.train), size=WINDOWS)], step, NOISE
        )

    def losses(model: nn.Module, batch: Batch) -> Losses:
        inputs, targets = batch
        n_before = g.max_coarse_input_length
        logits = model(inputs)[:, n_before:, first_id:last_id]
        targets = targets[:, n_before:]
        found = {"loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten())}
        for book in range(g.n_coarse_codebooks):
            of_book = targets.where(targets // g.codebook_size == book, -100)
            found[f"top1_{book}"] = top1(logits.detach().flatten(0, 1), of_book.flatten())
        return found

    validation = [make(coded.dev[k : k + 32], 10**9 + k, 0.0) for k in range(0, 256, 32)]
    model = GPT(config.coarse)
    start_from(args.start_from, "coarse", model)
    train("coarse", model, batch, losses, args.work, args, validation=validation)


if __name__ == "__main__":
    main()
