"""Step 8: everything trained, as one checkpoint in minibark's own layout.

The transformers are stored in int8 with a scale per row, the codec in float16. Voices are token
triples of utterances that no step was trained on. `SHA256SUMS` lets `sha256sum -c` check the files.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from codec import Codec
from codes import encode
from corpus import Corpus
from tiny import SPEEDS, USUAL_SPEED, VOICES, Data, work_argument
from torch import Tensor
from training import load_averaged, start_from

from minibark.checkpoint.opened import Checkpoint
from minibark.checkpoint.saving import convert, save_checkpoint
from minibark.checkpoint.voices import Voices
from minibark.coarse import n_coarse_steps
from minibark.model import GPT, FineGPT
from minibark.voice import Voice

# The semantic head is made steeper, so that Bark's usual temperature of 0.7 draws as 0.4 would: a
# small model's unlikely tokens are mistakes more often than variety.
SHARPER = 1.75
VOICE_S = (2.2, 3.2)  # how long a voice's utterance may be


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work_argument(parser)
    out = Path(__file__).parents[1] / "tiny"
    parser.add_argument("--out", type=Path, default=out, help="default: %(default)s")
    parser.add_argument(
        "--sharper", type=float, default=SHARPER, help="factor of the semantic logits (%(default)s)"
    )
    parser.add_argument(
        "--start-from", type=Path, metavar="DIR",
        help="a checkpoint whose GPTs stand in where the working folder has none, as they are",
    )  # fmt: skip
    args = parser.parse_args()
    corpus = Corpus.load(args.work)
    data, config = corpus.data, corpus.config
    codec = load_averaged("codec", Codec(config.codec, freeze_at=0), args.work)
    assert isinstance(codec, Codec)
    codec_state = {"codebooks": codec.quantizer.books}
    codec_state |= {f"decoder.{name}": t for name, t in codec.decoder.state_dict().items()}
    states: dict[str, dict[str, Tensor]] = {
        "codec": {name: tensor.half() for name, tensor in codec_state.items()}
    }
    for stage, model in (
        ("semantic", GPT(config.semantic)),
        ("coarse", GPT(config.coarse)),
        ("fine", FineGPT(config.fine)),
    ):
        if args.start_from and not (args.work / f"{stage}.pt").exists():
            start_from(args.start_from, stage, model)
        else:
            load_averaged(stage, model, args.work)
            if stage == "semantic":
                with torch.no_grad():
                    model.lm_head.weight.mul_(args.sharper)
        states[stage] = model.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for (speaker, speed), i in voice_utterances(data).items():
            semantic = corpus.semantic[i]
            n_frames = n_coarse_steps(len(semantic), config.generation) // 2
            fine = torch.from_numpy(encode(codec, data.samples(i))[:, :n_frames]).contiguous()
            pace = {-1: "_slow", 0: "", 1: "_fast"}[int(np.sign(speed - USUAL_SPEED))]
            voice = Voice(semantic, fine[:2], fine).check(config.generation)
            (place / "voices").mkdir(exist_ok=True)
            voice.save(place / "voices" / f"{speaker}{pace}.npz")
        voices = Voices.from_directory(place / "voices")
        checkpoint = Checkpoint("tiny", config, states, corpus.tokenizer, voices, "plain")
        save_checkpoint(checkpoint, place / "float", list(voices))
        convert(place / "float", place / "int8", precision="int8")
        publish(place / "int8", args.out)


def voice_utterances(data: Data) -> dict[tuple[str, int], int]:
    """The utterance that each speaker's voice is made of, at each speed."""
    found: dict[tuple[str, int], int] = {}
    for i in data.of_split("dev"):
        s, length_s = data.sentences[i], len(data.samples(i)) / 24_000
        style = (s["voice"], s["speed"])
        if s["kind"] == "example" and VOICE_S[0] <= length_s <= VOICE_S[1]:
            found.setdefault(style, i)
    missing = {(v, s) for v in VOICES for s in SPEEDS} - set(found)
    if missing:
        raise ValueError(f"too few sentences: no voice for {sorted(missing)}; make more in step 1")
    return found


def publish(source: Path, out: Path) -> None:
    """Put the checkpoint's files in place and write their checksums; the model card stays."""
    shutil.copytree(source, out, dirs_exist_ok=True)
    files = sorted(p for p in source.rglob("*") if p.is_file())
    names = [p.relative_to(source).as_posix() for p in files]
    sums = [hashlib.sha256((source / name).read_bytes()).hexdigest() for name in names]
    lines = [f"{digest}  {name}\n" for digest, name in zip(sums, names, strict=True)]
    (out / "SHA256SUMS").write_text("".join(lines))
    total = sum((source / name).stat().st_size for name in names)
    print(f"{out}: {len(names)} files, {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
