"""The utterances as the GPTs see them: text ids and semantic tokens, after steps 1 and 2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import Data, tiny_config
from torch import Tensor

from minibark.config import BarkConfig
from minibark.tokenizer import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """All utterances.

    Attributes:
        config: of the whole Bark.
        tokenizer: its vocabulary.
        data: what step 1 made.
        names: what each semantic token stands for: a phone, a third of it, a quarter of pitches.
        semantic: the semantic tokens (S,) of every utterance.
    """

    config: BarkConfig
    tokenizer: Tokenizer
    data: Data
    names: list[str]
    semantic: list[Tensor]

    @classmethod
    def load(cls, work: Path) -> Corpus:
        """What steps 1 and 2 left in the working folder."""
        data = Data.load(work)
        if not (work / "semantic.npz").exists():
            raise FileNotFoundError(f"{work} has no semantic tokens; run semantic_tokens.py first")
        saved = np.load(work / "semantic.npz")
        tokenizer = Tokenizer.from_file(work / "vocab.txt")
        parts = np.split(saved["tokens"].astype(np.int64), saved["ends"][:-1])
        names = saved["names"].tolist()
        config = tiny_config(len(tokenizer), len(names))
        return cls(config, tokenizer, data, names, [torch.from_numpy(part) for part in parts])

    @property
    def sentences(self) -> list[dict[str, Any]]:
        """Text, kind, split, voice and speed of every utterance."""
        return self.data.sentences

    def style(self, i: int) -> tuple[str, int]:
        """Voice and speed of utterance i."""
        return self.sentences[i]["voice"], self.sentences[i]["speed"]
