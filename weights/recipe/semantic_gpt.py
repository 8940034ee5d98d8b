"""Step 3: the semantic GPT, text and a voice's last tokens -> semantic tokens.

Every example is a prompt as generation makes it (`semantic_prompt`), followed by the utterance and
the end token. The history in the prompt is the end of another utterance of the same voice and
speed; without one the first voice speaks, at the usual speed.

What is hard to learn is which letters come next, and most frames say nothing about that: they go on
with a phone. So in the first part of the training every other step has one frame a phone, and with
that three times as many sentences; two rates also teach it to read by content and not by the clock.
Where a phone may end counts more in the loss than where it cannot: a weight that
depends on what is given only, so that the model's probabilities are not bent by it.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from corpus import Corpus
from tiny import N_SEMANTIC, N_TEXT, USUAL_SPEED, VOICES, work_argument
from torch import Tensor, nn
from training import Batch, Losses, length_batches, start_from, top1, train, training_arguments

from minibark.model import GPT
from minibark.semantic import semantic_prompt

POSITIONS = 4_000  # of a batch, about
NOISE = 0.03  # share of semantic inputs that are replaced, so that text is trusted more than past
RATES = ("phone", "full")  # by turns, in the first part of the training
AT_END = 3.0  # weight of a frame that follows the last third of a phone; of others, a half
NO_HISTORY = 0.7  # share of the default voice's examples that have no history
FIGURES = 3  # times that an utterance about figures counts: they are few, and each must be right


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work_argument(parser)
    training_arguments(parser, steps=16_000, rate=1.5e-3)
    parser.add_argument(
        "--fast-steps",
        type=int,
        default=14_000,
        help="first steps, half of them fast (%(default)s)",
    )
    args = parser.parse_args()
    examples = Examples(Corpus.load(args.work), args.fast_steps)
    torch.manual_seed(0)
    model = GPT(examples.config.semantic)
    start_from(args.start_from, "semantic", model)
    train(
        "semantic",
        model,
        examples.batch,
        examples.losses,
        args.work,
        args,
        validation=examples.validation(),
    )


class Examples:
    """Batches of the semantic GPT."""

    def __init__(self, corpus: Corpus, fast_steps: int) -> None:
        self.corpus, self.config, self.fast_steps = corpus, corpus.config, fast_steps
        self.text = [torch.tensor(corpus.tokenizer.encode(s["text"])) for s in corpus.sentences]
        self.train, self.dev = corpus.data.of_split("train"), corpus.data.of_split("dev")
        numbers = [i for i in self.train if corpus.sentences[i]["kind"] == "numbers"]
        self.train += numbers * (FIGURES - 1)
        self.styles: dict[tuple[str, int], list[int]] = {}
        for i in self.train:
            self.styles.setdefault(corpus.style(i), []).append(i)
        names = [name.split() for name in corpus.names]
        phones = {phone: number for number, phone in enumerate(sorted({n[0] for n in names}))}
        phone_of = torch.tensor([phones[name[0]] for name in names])
        self.third = torch.tensor([*(int(name[1]) for name in names), 0])  # and of the end token
        self.begins = [self._begins(phone_of[said], self.third[said]) for said in corpus.semantic]
        n_frames = {"phone": [int(mask.sum()) for mask in self.begins]}
        n_frames["full"] = [len(said) for said in corpus.semantic]
        self.choose = {
            rate: length_batches([n_frames[rate][i] for i in self.train], N_TEXT + 1, POSITIONS)
            for rate in RATES
        }

    @staticmethod
    def _begins(phone: Tensor, third: Tensor) -> Tensor:
        """Which frames (S,) begin a phone: the first, another phone's, or an earlier third."""
        begins = torch.ones(len(phone), dtype=torch.bool)
        begins[1:] = (phone.diff() != 0) | (third.diff() < 0)
        return begins

    def at(self, rate: str, i: int) -> Tensor:
        """Semantic tokens of utterance i: all, or the first of each phone."""
        said = self.corpus.semantic[i]
        return (said[self.begins[i]] if rate == "phone" else said)[:N_SEMANTIC]

    def batch(self, step: int) -> Batch:
        """Inputs (B, 2 * N_TEXT + 1 + S) and targets (B, S + 1) of one step."""
        rate = RATES[step % len(RATES)] if step < self.fast_steps else "full"
        return self.make([self.train[i] for i in self.choose[rate](step)], step, NOISE, rate)

    def make(self, chosen: list[int], seed: int, noise: float, rate: str = "full") -> Batch:
        """A batch of the given utterances."""
        rng = np.random.default_rng((seed, 1))
        end = self.config.generation.semantic_pad_token
        said = [self.at(rate, i) for i in chosen]
        longest = max(map(len, said))
        inputs, targets = [], []
        for i, semantic in zip(chosen, said, strict=True):
            style = self.corpus.style(i)
            history: Tensor | None = None
            usual = style == (next(iter(VOICES)), USUAL_SPEED) or rate != "full"
            if not usual or rng.random() > NO_HISTORY:
                other = self.corpus.semantic[rng.choice(self.styles[style])]
                cut = len(other) if rng.random() < 0.7 else rng.integers(8, len(other) + 8)
                history = other[:cut]
            prompt = semantic_prompt(self.text[i], history, self.config.generation)
            given = semantic.clone()
            if noise:
                replaced = torch.from_numpy(rng.random(len(given)) < noise)
                given[replaced] = torch.from_numpy(rng.integers(end, size=int(replaced.sum())))
            pad = longest - len(semantic)
            inputs.append(torch.cat((prompt, F.pad(given, (0, pad), value=end))))
            target = torch.cat((semantic, torch.tensor([end])))
            targets.append(F.pad(target, (0, pad), value=-100))
        return torch.stack(inputs), torch.stack(targets)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        """Cross-entropy of the tokens and the end."""
        inputs, targets = batch
        logits = model(inputs, N_TEXT)[:, N_TEXT:].flatten(0, 1)
        flat = targets.flatten()
        given = inputs[:, 2 * N_TEXT + 1 :]  # (B, S): what each target but the first follows
        may_end = F.pad(self.third[given] == 2, (1, 0), value=True).flatten()
        weight = torch.where(may_end, AT_END, 0.5) * (flat >= 0)
        each = F.cross_entropy(logits.float(), flat, reduction="none")
        found = {"loss": (each * weight).sum() / weight.sum()}
        found["top1"] = top1(logits.detach(), flat)
        found["top1_at_end"] = top1(logits.detach(), flat.where(may_end, -100))
        return found

    def validation(self) -> list[Batch]:
        """Sentences that no step sees."""
        dev = sorted(self.dev[:256], key=lambda i: len(self.corpus.semantic[i]))
        return [self.make(dev[k : k + 32], 10**9 + k, 0.0) for k in range(0, len(dev), 32)]


if __name__ == "__main__":
    main()
