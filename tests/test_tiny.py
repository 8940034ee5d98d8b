"""The checkpoint in the box: its bytes, what it says, who says it, and the same on every path."""

import hashlib
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import minibark
from minibark import Bark
from minibark.coarse import generate_coarse
from minibark.decoding import UncachedDecoder
from minibark.sampling import Sampling
from minibark.semantic import generate_semantic, semantic_prompt

WEIGHTS = Path(__file__).parents[1] / "weights"
SENTENCES = (
    "The weather will be fine in the morning.",
    "My brother wrote a long letter to the king.",
    "Please open the window and close the door.",
    "We walked slowly along the river.",
    "The doctor told her to stay in bed.",
    "How many people live in your village?",
    "A small bird sat on the garden wall.",
    "They bought bread and butter at the market.",
    "The children played with a yellow ball.",
    "Winter nights are cold and dark.",
)
# espeak-ng's own speech in these two voices has a median pitch of 100 and 203 Hz in its vowels.
PITCH_HZ = {"male": (85, 115), "female": (172, 234)}
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def bark():
    return Bark.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def hearing():
    sys.path.insert(0, str(WEIGHTS / "recipe"))
    try:
        import hearing

        return hearing
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def spoken(bark):
    """Every sentence by every one of the two speakers, seeds fixed."""
    return {
        (voice, text): bark.generate(text, voice=voice, seed=seed)
        for voice in PITCH_HZ
        for seed, text in enumerate(SENTENCES)
    }


def test_files_have_their_checksums():
    lines = (WEIGHTS / "tiny" / "SHA256SUMS").read_text().splitlines()
    names = set()
    for line in lines:
        digest, name = line.split("  ")
        names.add(name)
        assert hashlib.sha256((WEIGHTS / "tiny" / name).read_bytes()).hexdigest() == digest, name
    assert names >= {"config.json", "model.safetensors", "vocab.txt", "voices/male.npz"}
    assert sum((WEIGHTS / "tiny" / name).stat().st_size for name in names) < 20e6


@pytest.mark.parametrize("voice", PITCH_HZ)
def test_sentences_are_heard(hearing, spoken, voice):
    ear, heard = hearing.Ear(), []
    for text in SENTENCES:
        words = re.findall("[a-z]+", text.lower())
        heard += ear.words(spoken[voice, text], words, random.Random(text))
    assert np.mean(heard) > 0.8, f"{np.mean(heard):.0%} of words; chance is 20 %"


@pytest.mark.parametrize("voice", PITCH_HZ)
def test_a_voice_stays_itself(hearing, spoken, voice):
    low, high = PITCH_HZ[voice]
    pitches = [hearing.mean_pitch_hz(spoken[voice, text]) for text in SENTENCES]
    assert low < np.median(pitches) < high, pitches
    inside = [0.8 * low < pitch < 1.2 * high for pitch in pitches]
    assert np.mean(inside) >= 0.8, pitches


def test_without_a_voice_the_first_one_speaks(bark, hearing):
    low, high = PITCH_HZ["male"]
    pitches = [hearing.mean_pitch_hz(bark.generate(text, seed=1)) for text in SENTENCES[:3]]
    assert low < np.median(pitches) < high, pitches


def test_utterances_end_by_themselves(bark, spoken):
    limit_s = bark.config.generation.max_new_tokens / bark.config.generation.semantic_rate_hz
    lengths_s = np.array([len(audio) / 24_000 for audio in spoken.values()])
    assert np.mean((lengths_s > 1) & (lengths_s < 0.8 * limit_s)) >= 0.9, lengths_s


def test_figures_and_signs_and_shouting_are_read(bark):
    for text in ("4 7 1", "IT'S 5:30 P.M. -- GO!!!", "naïve 😀 “quoted”", "a", "Hmm..."):
        audio = bark.generate(text, seed=3)
        assert np.isfinite(audio).all() and 0 < len(audio) < 8.4 * 24_000, text


@pytest.mark.parametrize("voice", [None, "female"])
def test_greedy_tokens_are_the_same_on_every_path(bark, voice):
    g = bark.config.generation
    loaded = bark.load_voice(voice)
    texts = [torch.tensor(bark.tokenizer.encode(text)) for text in SENTENCES[:2]]
    prompts = [semantic_prompt(text, loaded.semantic if voice else None, g) for text in texts]
    model = bark.model("semantic")

    def generate(prompts, **options):
        none = [None] * len(prompts)
        return generate_semantic(model, prompts, g, GREEDY, none, max_duration_s=1, **options)

    batch = generate(prompts)
    alone = [generate([prompt])[0] for prompt in prompts]
    plain = generate(prompts, decoder=UncachedDecoder)
    for one, two, three in zip(batch, alone, plain, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)
    semantics = [bark.text_to_semantic(text, voice, temperature=0) for text in texts]
    short = [semantic[:45] for semantic in semantics]  # over one window's end and the history's
    model = bark.model("coarse")

    def generate(rows, **options):
        none = [None] * len(rows)
        return generate_coarse(model, rows, [loaded] * len(rows), g, GREEDY, none, **options)

    batch = generate(short)
    alone = [generate([semantic])[0] for semantic in short]
    plain = generate(short, decoder=UncachedDecoder)
    for one, two, three in zip(batch, alone, plain, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


@pytest.mark.parametrize("precision", [pytest.param("bfloat16", marks=pytest.mark.torture), "int8"])
def test_lower_precision_says_the_same(bark, hearing, precision):
    fast = Bark.from_pretrained("tiny", device="cpu", precision=precision)
    ear, heard = hearing.Ear(), []
    for seed, text in enumerate(SENTENCES[:4]):
        words = re.findall("[a-z]+", text.lower())
        heard += ear.words(fast.generate(text, seed=seed), words, random.Random(text))
    assert np.mean(heard) > 0.75, f"{np.mean(heard):.0%} of words"


def test_its_own_output_is_a_voice(bark, hearing, tmp_path):
    said = bark.generate_voice(SENTENCES[0], voice="female", seed=0)
    said.save(tmp_path / "again.npz")
    low, high = PITCH_HZ["female"]
    audio = bark.generate(SENTENCES[1], voice=str(tmp_path / "again.npz"), seed=0)
    assert low < hearing.mean_pitch_hz(audio) < high


def test_the_command_speaks_without_a_network(tmp_path):
    env = {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "minibark", "say", "Hello.", "--model", "tiny", "-o", "hello.wav"],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "hello.wav").stat().st_size > 10_000
    assert list(minibark.Bark.from_pretrained("tiny").voices) == [
        "female", "female_fast", "female_slow", "male", "male_fast", "male_slow",
    ]  # fmt: skip
