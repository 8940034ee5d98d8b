"""Draw `flow.svg`, Bark's four stages with the tokens of one utterance, and write it as `tiny.mp3`.

    python docs/make_pictures.py            # both anew, from the tokens in docs/tiny.npz
    python docs/make_pictures.py --speak    # those too, as `tiny` says them here

The tokens are kept because another processor's rounding may draw others. They are a voice, as all
output of Bark is.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import soundfile
import torch

import minibark
from minibark.pipeline import Audio

HERE = Path(__file__).parent
TEXT = "Hello, my name is Bark. I read your words and speak them."
VOICE, SEED = "female", 0

# Pixels. A frame of the codec is two wide, a semantic token three, which is near its 75 / 49.9.
WIDTH, LEFT, FRAME, GAP = 728, 158, 2, 34
LOUDEST = 30  # half the height of the loudest frame

# All of them can be read on white and on black.
GREY = "#78808c"
TEAL = ("#0f6b6c", "#168486", "#2a9d9e", "#4cb3b3", "#73c6c5", "#9bd7d5")
ORANGE = ("#a8480c", "#c25a14", "#d9701f", "#e78a3f", "#efa566", "#f5c08f")
PURPLE = ("#5b3fa0", "#6d52b5", "#8268c7", "#9881d4", "#af9ce0", "#c6b8ea")
BLUE = "#3b82d6"
MONO = 'font-family="ui-monospace,Menlo,Consolas,monospace" font-size="12"'


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="directory (default: %(default)s)")
    parser.add_argument("--speak", action="store_true", help="draw the tokens anew too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bark = minibark.Bark.from_pretrained("tiny", device="cpu", precision="float32")
    if args.speak:
        bark.generate_voice(TEXT, VOICE, seed=SEED).save(HERE / "tiny.npz")
    said = minibark.Voice.load(HERE / "tiny.npz")
    audio = bark.decode(said.fine)
    pieces = [bark.tokenizer.decode([i]) for i in bark.tokenizer.encode(TEXT)]
    svg = picture(pieces, said, audio, bark.config)
    (args.out / "flow.svg").write_text(svg, encoding="utf-8", newline="\n")
    soundfile.write(args.out / "tiny.mp3", audio, bark.sample_rate)


def picture(
    pieces: Sequence[str], said: minibark.Voice, audio: Audio, config: minibark.BarkConfig
) -> str:
    """The picture, as SVG."""
    n_ids, n_codes = config.generation.semantic_vocab_size, config.generation.codebook_size
    n_coarse, n_frames = said.coarse.shape
    rows = said.fine.tolist()
    out: list[str] = []
    y = 18
    out += [label("text", "", y), f'<text x="{LEFT}" y="{y}" {MONO}>"{escape(TEXT)}"</text>']
    y += 2
    out += [stage("tokenizer", "WordPiece", y)]
    y += GAP
    out += [label("ids", f"({len(pieces)},)", y + 13), *boxes(pieces, y)]
    y += 18
    out += [stage("semantic", "causal GPT; the voice is added to the text", y)]
    y += GAP
    out += [label("semantic tokens", f"({len(said.semantic)},)  49.9 Hz", y + 8)]
    out += cells([said.semantic.tolist()], TEAL, n_ids, y, 3, 20)
    y += 20
    out += [stage("coarse", "causal GPT, in windows of 60 steps", y)]
    y += GAP
    out += [label("coarse codes", f"({n_coarse}, {n_frames})  75 Hz", y + 8)]
    out += cells(rows[:n_coarse], ORANGE, n_codes, y, FRAME, 10)
    y += 10 * n_coarse
    out += [stage("fine", "non-causal GPT, one codebook after the other", y)]
    y += GAP
    out += [label("fine codes", f"({len(rows)}, {n_frames})  75 Hz", y + 36)]
    out += cells(rows[:n_coarse], ORANGE, n_codes, y, FRAME, 10)
    out += cells(rows[n_coarse:], PURPLE, n_codes, y + 10 * n_coarse, FRAME, 10)
    y += 10 * len(rows)
    out += [stage("codec", "EnCodec's decoder", y)]
    y += GAP
    out += [label("audio", f"({len(audio):,},)  24 kHz", y + LOUDEST)]
    out += [wave(audio, n_frames, y + LOUDEST)]
    y += 2 * LOUDEST + 4
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" '
        f'height="{y}" font-family="system-ui,Segoe UI,Helvetica,Arial,sans-serif" '
        f'font-size="13" fill="{GREY}">'
    )
    title = "<title>Text, ids, semantic tokens, coarse codes, fine codes, audio</title>"
    return "\n".join((head, title, *out, "</svg>", ""))


def label(name: str, shape: str, y: int) -> str:
    """What a row is, at the left of it: its name, and its shape below."""
    first = f'<text x="0" y="{y}" font-weight="600">{name}</text>'
    return first + (f'<text x="0" y="{y + 15}" font-size="11">{shape}</text>' if shape else "")


def stage(name: str, what: str, y: int) -> str:
    """An arrow from a row that ends at y to the next, and which stage it is."""
    x, top = LEFT + 6, y + 7
    arrow = f'<path d="M{x} {top}v14m-4-5l4 6l4-6" fill="none" stroke="{GREY}" stroke-width="1.5"/>'
    bold = f'<tspan font-weight="600">{name}</tspan>'
    return f'{arrow}<text x="{x + 14}" y="{y + 21}">{bold}  {what}</text>'


def boxes(pieces: Sequence[str], y: int) -> list[str]:
    """A box around each piece."""
    out, x = [], LEFT
    for piece in pieces:
        width = 7 * len(piece) + 6
        out.append(
            f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{width}" height="17" rx="3" fill="none" '
            f'stroke="{GREY}"/><text x="{x + 3.5}" y="{y + 13}" {MONO} '
            f'textLength="{7 * len(piece)}" lengthAdjust="spacingAndGlyphs">{escape(piece)}</text>'
        )
        x += width + 2
    return out


def cells(
    rows: Sequence[Sequence[int]], colours: Sequence[str], n_ids: int, y: int, width: int, size: int
) -> list[str]:
    """Rows of ids in [0, n_ids), a cell each, coloured by their size; equal colours are joined."""
    lines: dict[str, list[str]] = defaultdict(list)
    for row, ids in enumerate(rows):
        x = LEFT
        for level, same in groupby(one * len(colours) // n_ids for one in ids):
            length = width * len(list(same))
            lines[colours[level]].append(f"M{x} {y + row * size + size // 2}h{length}")
            x += length
    return [
        f'<path stroke="{colour}" stroke-width="{size}" d="{"".join(lines[colour])}"/>'
        for colour in colours
    ]


def wave(audio: Audio, n_frames: int, middle: int) -> str:
    """The loudest sample of each frame, up and down from the middle."""
    peaks = abs(audio).reshape(n_frames, -1).max(1)
    heights = [1 + int(peak * (LOUDEST - 1)) for peak in (peaks / peaks.max()).tolist()]
    bars = (f"M{LEFT + i * FRAME + 1} {middle - h}v{2 * h}" for i, h in enumerate(heights))
    return f'<path stroke="{BLUE}" stroke-width="{FRAME}" d="{"".join(bars)}"/>'


if __name__ == "__main__":
    main()
