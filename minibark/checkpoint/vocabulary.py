"""The vocabulary of a checkpoint, from wherever it is."""

from __future__ import annotations

import dataclasses

from ..config import CheckpointError
from ..files import naming, read_json
from ..tokenizer import Tokenizer
from .hub import Source

VOCAB_REPO = "google-bert/bert-base-multilingual-cased"
_OTHER_REPOS = ("bert-base-multilingual-cased", "suno/bark-small", "suno/bark")
"""Where the same file may lie in the cache already; the first is the old name."""


def find_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a checkpoint, of BERT's vocabulary if it brings none.

    Raises:
        FileNotFoundError: it brings none, and BERT's is not to be had.
        CheckpointError, ValueError: damaged.
    """
    if source.is_random:
        return Tokenizer.characters()
    vocab = source.find("vocab.txt")
    if vocab is None and (packed := source.find("tokenizer.json")) is not None:
        content = read_json(packed)
        model = content.get("model") if isinstance(content, dict) else None
        ids = model.get("vocab") if isinstance(model, dict) else None
        if not isinstance(ids, dict) or not all(type(index) is int for index in ids.values()):
            raise CheckpointError(f"{packed} has no WordPiece vocabulary")
        if sorted(ids.values()) != list(range(len(ids))):
            raise CheckpointError(f"{packed}: the ids of its vocabulary are not 0, 1, 2 ...")
        with naming(packed):
            return Tokenizer(sorted(ids, key=ids.__getitem__))
    if vocab is None:
        cached = dataclasses.replace(source, offline=True, root=None)
        places = [source.elsewhere(VOCAB_REPO), *map(cached.elsewhere, _OTHER_REPOS)]
        causes = []
        for place in places:
            try:
                return Tokenizer.from_file(place.need("vocab.txt"))
            except FileNotFoundError as error:
                causes.append(error)
        raise FileNotFoundError(
            f"{source.name} has no vocab.txt; put the one of {VOCAB_REPO} there ({causes[0]})"
        ) from causes[0]
    return Tokenizer.from_file(vocab)
