"""Step 5: the codes of many utterances, by the encoder and codebooks of step 4.

They stand still in the last steps of step 4, so this may run beside those.

    codes.npz   codes (8, m) int16, ends (n,), utterances (n,): which of step 1's they are
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from codec import Codec
from corpus import Corpus
from tiny import SPEEDS, USUAL_SPEED, VOICES, Data, tiny_config, work_argument
from torch import Tensor

from minibark.coarse import n_coarse_steps
from minibark.config import BarkConfig
from minibark.voice import Voice

N_TRAIN, N_DEV = 8_000, 320
N_NUMBERS = 3_000  # more for training, about figures: each must be heard out of ten


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work_argument(parser)
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = Data.load(args.work)
    semantic_ends = np.load(args.work / "semantic.npz")["ends"]
    n_semantic = np.diff(semantic_ends, prepend=0)
    config = tiny_config(1, 1)
    codec = Codec(config.codec, freeze_at=0)
    state = torch.load(args.work / "codec.pt", weights_only=True, map_location="cpu")["model"]
    codec.load_state_dict(state)
    codec.eval()
    train = data.of_split("train")
    numbers = [i for i in train[N_TRAIN:] if data.sentences[i]["kind"] == "numbers"]
    chosen = train[:N_TRAIN] + numbers[:N_NUMBERS] + data.of_split("dev")[:N_DEV]
    found, ends = [], []
    for done, i in enumerate(chosen):
        n_frames = n_coarse_steps(int(n_semantic[i]), config.generation) // 2
        found.append(encode(codec, data.samples(i))[:, :n_frames])
        ends.append(n_frames)
        if done % 2000 == 0:
            print(f"{done}/{len(chosen)}", flush=True)
    np.savez(
        args.work / "codes.npz",
        codes=np.concatenate(found, axis=1).astype(np.int16),
        ends=np.cumsum(ends),
        utterances=np.array(chosen),
    )


@torch.inference_mode()
def encode(codec: Codec, audio: np.ndarray) -> np.ndarray:
    """The codes (8, T) of audio (N,), its last frame filled up with silence."""
    hop = codec.encoder.hop
    padded = np.pad(audio, (0, -len(audio) % hop))
    latent = codec.encoder(torch.from_numpy(padded)[None, None])
    codes: np.ndarray = codec.quantizer.encode(latent)[0].numpy()
    return codes


@dataclass(frozen=True)
class Coded:
    """Utterances as token triples.

    Attributes:
        config: of the whole Bark.
        streams: utterance -> its three token streams.
        styles: (voice, speed) -> its utterances among those for training.
        train: utterances for training.
        dev: utterances for validation.
        style: utterance -> its (voice, speed).
    """

    config: BarkConfig
    streams: dict[int, Voice]
    styles: dict[tuple[str, int], list[int]]
    train: list[int]
    dev: list[int]
    style: dict[int, tuple[str, int]]

    @classmethod
    def load(cls, args: argparse.Namespace) -> Coded:
        """What steps 1, 2 and 5 left in the working folder."""
        corpus = Corpus.load(args.work)
        saved = np.load(args.work / "codes.npz")
        parts = np.split(torch.from_numpy(saved["codes"].astype(np.int64)), saved["ends"][:-1], 1)
        utterances = saved["utterances"].tolist()
        streams = {
            i: Voice(corpus.semantic[i], torch.as_tensor(codes[:2]), torch.as_tensor(codes))
            for i, codes in zip(utterances, parts, strict=True)
        }
        is_train = {i: corpus.sentences[i]["split"] == "train" for i in utterances}
        style = {i: corpus.style(i) for i in utterances}
        train = [i for i in utterances if is_train[i]]
        styles = {(v, s): [i for i in train if style[i] == (v, s)] for v in VOICES for s in SPEEDS}
        dev = [i for i in utterances if not is_train[i]]
        return cls(corpus.config, streams, styles, train, dev, style)

    def history(self, i: int, rng: np.random.Generator) -> Voice | None:
        """Another utterance of the same style; for the default style at times none."""
        if self.style[i] == (next(iter(VOICES)), USUAL_SPEED) and rng.random() < 0.5:
            return None
        return self.streams[rng.choice(self.styles[self.style[i]])]


def noisy(tokens: Tensor, share: float, low: int, high: int, rng: np.random.Generator) -> Tensor:
    """Tokens (n,), a share of them replaced by others in [low, high)."""
    replaced = torch.from_numpy(rng.random(len(tokens)) < share)
    others = torch.from_numpy(rng.integers(low, high, size=len(tokens)))
    return torch.where(replaced, others, tokens)


if __name__ == "__main__":
    main()
