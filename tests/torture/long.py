"""Reads a page to a recogniser, once as a long text and once sentence by sentence; `make torture`.

    python tests/torture/long.py --voices male female --seeds 0 1000

Words that are lost between the two are what cutting, packing and joining cost. Right is at most two
points of the share of words that are heard. Chance is 20 %.
"""

import argparse
import json
import random
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from minibark import Bark, LongOptions, Options
from minibark.speech.reading import Reading

sys.path.insert(0, str(Path(__file__).parents[2] / "weights" / "recipe"))

from hearing import Ear

MOST_LOST = 0.02
PAGE = """
The old house stood at the end of a narrow road. Nobody had lived in it for many years. The garden
was full of long grass and wild flowers. Every summer the children of the village came to play
there. They climbed the trees and looked for birds. One morning a stranger walked up the hill. He
carried a large black bag in his hand. A small dog followed close behind him. He stopped at the gate
and looked at the windows. Then he took a key from his pocket and opened the door.

The people of the village talked about nothing else that day. Some said that he was a doctor from
the city. Others thought that he had come to sell the house. My mother asked him to dinner on
Sunday. He came at six with a bottle of wine. He told us that his father had built the house. As a
boy he had slept in the room under the roof. He could see the river from his bed. In winter the
water froze and they walked across it. He had never forgotten the sound of the wind.

We asked him why he had come back. He put down his glass and thought for a moment. A man should see
his home again before he is old. My sister wanted to know the name of the dog. He said that the dog
had no name yet. She could choose one if she liked. After dinner he played the piano for us. It was
a slow song about the sea. My father sat by the fire and closed his eyes. When the music stopped
nobody spoke.

The next week the men came to repair the roof. They worked from early morning until dark. New glass
was put in the windows. The walls were painted white and the door was painted green. He planted
apple trees along the wall. In the evening there was a light in the kitchen. The children were
afraid that they could not play there now. But he left the gate open for them. He gave them bread
and honey in the afternoon. So the garden was full of voices again.
"""


def words_of(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())


def heard(ear: Ear, said: list[tuple[str, np.ndarray]]) -> list[bool]:
    found: list[bool] = []
    for text, audio in said:
        found += ear.words(audio, words_of(text), random.Random(text))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voices", nargs="+", default=["male", "female"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1000])
    parser.add_argument("--history", default="fixed", help="of the long text (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bark, ear = Bark.from_pretrained("tiny", device="cpu"), Ear()
    page = "\n\n".join(" ".join(one.split()) for one in PAGE.split("\n\n"))
    sentences = [one.strip() for one in re.findall(r"[^.]+\.", page)]
    assert len(sentences) == 40
    unknown = [word for word in words_of(PAGE) if not ear.knows(word)]
    assert not unknown, unknown
    singly: list[bool] = []
    in_one: list[bool] = []
    n_pieces, n_warnings = 0, 0
    for voice in args.voices:
        for seed in args.seeds:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                reading = Reading(bark, Options(seed=seed), LongOptions(history=args.history))
                spoken = list(reading.text(page, voice).pieces())
            n_warnings += len(told)
            n_pieces += len(spoken)
            alone = [
                (one, bark.generate(one, voice, seed=seed + i)) for i, one in enumerate(sentences)
            ]
            first = heard(ear, [(one.piece.text, one.audio) for one in spoken])
            second = heard(ear, alone)
            assert len(first) == len(second)
            in_one += first
            singly += second
            print(f"{voice:<8} seed {seed:<5} {np.mean(first):7.1%} {np.mean(second):7.1%}")
    result = {
        "history": args.history,
        "n_words": len(in_one),
        "n_pieces": n_pieces,
        "n_warnings": n_warnings,
        "heard_of_the_page": round(float(np.mean(in_one)), 4),
        "heard_of_sentences": round(float(np.mean(singly)), 4),
    }
    print(json.dumps(result))
    return int(np.mean(singly) - np.mean(in_one) > MOST_LOST)


if __name__ == "__main__":
    sys.exit(main())
