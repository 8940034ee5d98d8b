"""What all steps share: the shape of the tiny Bark, the folder they work in, and its data."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from minibark.config import BarkConfig, CodecConfig, FineGPTConfig, GenerationConfig, GPTConfig

VOICES = {"male": "en-us+edward", "female": "en-us+f5"}  # the first speaks where none is asked for
SPEEDS = (140, 160, 180)  # espeak-ng's words per minute
USUAL_SPEED = 160
N_TEXT = 64  # WordPieces that a text may have
N_SEMANTIC = 416  # semantic tokens that an utterance may have
MAX_SECONDS = 8.0  # of an utterance, a little less than N_SEMANTIC tokens last
SEMANTIC_RATE_HZ, COARSE_RATE_HZ = 49.9, 75.0


def tiny_config(n_pieces: int, n_semantic: int) -> BarkConfig:
    """The configuration, given the sizes of the two vocabularies that come from the data.

    Args:
        n_pieces: WordPieces; text ids follow the semantic ones in the semantic model's table.
        n_semantic: semantic tokens.
    """
    n_codes = 512
    generation = GenerationConfig(
        semantic_vocab_size=n_semantic,
        semantic_rate_hz=SEMANTIC_RATE_HZ,
        semantic_pad_token=n_semantic,
        text_encoding_offset=n_semantic + 1,
        text_pad_token=n_semantic + 1 + n_pieces,
        semantic_infer_token=n_semantic + 2 + n_pieces,
        max_input_semantic_length=N_TEXT,
        max_new_tokens=N_SEMANTIC,
        codebook_size=n_codes,
        coarse_rate_hz=COARSE_RATE_HZ,
        coarse_semantic_pad_token=n_semantic + 2 * n_codes,
        coarse_infer_token=n_semantic + 2 * n_codes + 1,
        max_coarse_input_length=64,
        max_coarse_history=120,
        sliding_window_len=60,
        max_fine_history_length=128,
        max_fine_input_length=256,
    )
    return BarkConfig(
        semantic=GPTConfig(
            block_size=N_TEXT + N_SEMANTIC,
            input_vocab_size=generation.semantic_infer_token + 1,
            output_vocab_size=n_semantic + 1,
            n_layer=4,
            n_head=4,
            n_embd=256,
        ),
        coarse=GPTConfig(
            block_size=64 + 120 + 60,
            input_vocab_size=generation.coarse_infer_token + 1,
            output_vocab_size=n_semantic + 2 * n_codes,
            n_layer=3,
            n_head=4,
            n_embd=224,
        ),
        fine=FineGPTConfig(
            block_size=256,
            input_vocab_size=n_codes + 1,
            output_vocab_size=n_codes + 1,
            n_layer=3,
            n_head=4,
            n_embd=160,
        ),
        codec=CodecConfig(codebook_size=n_codes, hidden_size=64, num_filters=12),
        generation=generation,
    )


def work_argument(parser: argparse.ArgumentParser) -> None:
    """The `--work` option that every step has."""
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/tiny"),
        help="folder for data, logs and saved states (default: %(default)s)",
    )


@dataclasses.dataclass(frozen=True)
class Data:
    """What step 1 made.

    Attributes:
        sentences: text, kind, split, voice and speed of every utterance.
        audio: all samples, int16, memory-mapped.
        audio_ends: (n,) where each utterance ends in `audio`.
    """

    sentences: list[dict[str, Any]]
    audio: np.ndarray[Any, np.dtype[np.int16]]
    audio_ends: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def load(cls, work: Path) -> Data:
        """The data of a working folder."""
        if not (work / "phones.npz").exists():
            raise FileNotFoundError(f"{work} has no data yet; run data.py first")
        lines = (work / "sentences.json").read_text().splitlines()
        audio = np.memmap(work / "audio.i16", dtype=np.int16, mode="r")
        return cls(
            [json.loads(line) for line in lines], audio, np.load(work / "phones.npz")["audio_ends"]
        )

    def samples(self, i: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Utterance i, (N,) float32 in [-1, 1]."""
        start = self.audio_ends[i - 1] if i else 0
        return self.audio[start : self.audio_ends[i]].astype(np.float32) / 32_768

    def of_split(self, split: str) -> list[int]:
        """The numbers of the utterances of a split, in an order of no meaning."""
        found = [i for i, s in enumerate(self.sentences) if s["split"] == split]
        random.Random(split).shuffle(found)
        return found


def n_semantic_of(n_samples: int) -> int:
    """How many whole semantic frames a recording has."""
    return int(n_samples / 24_000 * SEMANTIC_RATE_HZ)
