"""Parts 5 to 8 of the page: the sound, what it took, and how to make it again."""

from __future__ import annotations

import json

import numpy as np

from ..audio import encode_audio
from ..pipeline import Audio
from .draws import Array
from .markup import Html, image, lane, plot, short, table, text
from .pictures import BLUE, ink, ticks, uri, wave
from .settings import TEXT_FILE
from .sound import RANGE_DB, difference, envelope, mel_db
from .tracing import Trace

_KINDS = {".opus": "audio/ogg", ".wav": "audio/wav"}
_RED = (235, 75, 75)  # seen on white and on black
_MOST_APART_DB = 15


def sound(audio: Audio, rate_hz: int, suffix: str) -> str:
    """An audio file as a data URI; WAV where the format has no such rate."""
    try:
        return uri(encode_audio(audio, rate_hz, suffix), _KINDS[suffix])
    except ValueError:
        return uri(encode_audio(audio, rate_hz, ".wav"), _KINDS[".wav"])


def part_depths(trace: Trace) -> str:
    """5. The sound of the first 1, 2, 4 and of all codebooks."""
    rate_hz, rows, cards = trace.config.codec.sampling_rate, [], []
    full = trace.audio
    whole = _small(full, rate_hz)
    top = float(whole.max())
    for depth, audio in trace.depths.items():
        name = "1 codebook" if depth == 1 else f"{depth} codebooks"
        mel = whole if audio is full else _small(audio, rate_hz)
        pictures = image(ink(mel[::-1], BLUE, top - RANGE_DB, top), f"spectrogram, {name}")
        shown = np.abs(np.maximum(mel, top - RANGE_DB) - np.maximum(whole, top - RANGE_DB))
        red = ink(shown[::-1], _RED, 0, _MOST_APART_DB)
        pictures += f'<img src="{red}" alt="difference of {name}">'
        told, figures = "the sound itself", ("-", "-")
        if audio is not full:
            apart = difference(audio, full, rate_hz)
            figures = (f"{apart.error_db:.1f}", f"{apart.spectral_db:.1f}")
            told = f"error {figures[0]} dB; spectra {figures[1]} dB apart"
        source = sound(audio, rate_hz, ".opus")
        cards.append(
            f'<figure class="depth"><figcaption><b>{name}</b> {text(told)}</figcaption>'
            f'<audio controls preload="metadata" src="{source}" data-depth="{depth}" '
            f'aria-label="The sound of {name}"></audio>'
            f'<div class="pictures">{pictures}</div></figure>'
        )
        rows.append((depth, *figures))
    numbers = table(
        "depth-data",
        ("codebooks", "error, dB", "spectra apart, dB"),
        rows,
        "Against all codebooks: the energy of the difference over that of the sound, and the "
        "distance of the mel spectrograms",
    )
    return f'<div class="depths">{"".join(cards)}</div>{numbers}'


def _small(audio: Audio, rate_hz: int) -> Array:
    return mel_db(audio, rate_hz, 48, 0.02)


def part_sound(trace: Trace) -> str:
    """6. Wave and mel spectrogram."""
    rate_hz, audio = trace.config.codec.sampling_rate, trace.audio
    mel = mel_db(audio, rate_hz)
    top = float(mel.max())
    hop_s = 0.01
    width = 100 * mel.shape[1] * hop_s / trace.duration_s
    loudest = float(np.abs(audio).max())
    rows = [
        lane("wave", wave(*envelope(audio, 900)), 64, "", (f"{loudest:.2f}", f"-{loudest:.2f}")),
        lane(
            "mel spectrogram",
            image(ink(mel[::-1], BLUE, top - RANGE_DB, top), "mel spectrogram", width),
            160,
            f"{RANGE_DB} dB from clear to full",
            (f"{rate_hz / 2000:g} kHz", "0"),
        ),
        lane("", ticks(trace.duration_s), 0),
    ]
    told = (
        f"{len(audio):,} samples at {rate_hz:,} Hz, {trace.duration_s:.2f} s; the loudest is "
        f"{20 * np.log10(max(loudest, 1e-9)):.1f} dB below full scale."
    ).replace("-", "", 1)
    return f"{plot(rows)}<p>{text(told)}</p>"


def part_costs(trace: Trace) -> str:
    """7. Time, calls, tokens a second, memory."""
    counts = {
        "semantic": len(trace.semantic.tokens),
        "coarse": trace.coarse.tokens.size,
        "fine": trace.fine.tokens.size,
        "codec": trace.voice.fine.shape[1],
    }
    total_s = sum(cost.seconds for cost in trace.costs)
    rows = []
    for cost in trace.costs:
        n = counts[cost.stage]
        share = cost.bandwidth_share
        rows.append(
            (
                cost.stage,
                f"{cost.seconds:.2f}",
                Html(
                    '<svg class="bar" width="100%" height="10"><rect class="bar" height="10" '
                    f'width="{100 * cost.seconds / total_s:.1f}%"/></svg>'
                ),
                f"{cost.n_calls:,}",
                f"{cost.n_positions:,}" if cost.n_positions else "-",
                f"{n:,}",
                f"{n / cost.seconds:,.0f}",
                f"{1000 * cost.step_s:.2f}" if cost.step_s else "-",
                f"{cost.step_bytes / 1e6:.1f}" if cost.step_bytes else "-",
                f"{100 * share:.0f} %" if share else "-",
                f"{cost.memory_bytes / 1e6:,.0f}" if cost.memory_bytes else "-",
            )
        )
    heads = (
        *("stage", "seconds", "", "calls", "positions", "tokens", "tokens/s", "ms a step"),
        *("MB a step reads", "of the memory's speed", "MB held at most"),
    )
    told = (
        f"{total_s:.2f} s of work for {trace.duration_s:.2f} s of sound, RTF "
        f"{total_s / trace.duration_s:.2f}, loading not counted; fine tokens are those of the "
        "filled codebooks, the codec's are frames."
    )
    return f"<p>{text(told)}</p>{table('cost-data', heads, rows)}"


def part_settings(trace: Trace, command: str | None) -> str:
    """8. All that decides what was made."""
    settings = trace.settings
    flat = {}
    for name, value in settings.items():
        for key, one in value.items() if isinstance(value, dict) else [("", value)]:
            flat[f"{name}.{key}" if key else name] = one
    rows = [
        (name, short(value if isinstance(value, str) else json.dumps(value), 1000))
        for name, value in flat.items()
    ]
    again = "<p>Its ids were given, not a text: no command makes this page.</p>"
    if command:
        again = (
            "<p>This makes the page again (times aside):</p>"
            f'<pre><code id="command">{text(command)}</code></pre>'
        )
    if command and f"-i {TEXT_FILE}" in command:
        again += f"<p>The text is too long for a command; put it into {TEXT_FILE} first.</p>"
    if settings["voice_checksum"] and not settings["voice"]:
        again += (
            "<p>The voice had no name, so the command lacks it: save it (<code>Voice.save</code>) "
            "and add <code>--voice FILE.npz</code>.</p>"
        )
    if settings["generator"]:
        again += (
            "<p>A torch.Generator was given as the seed; no command can have its state, so it will "
            "be another sound.</p>"
        )
    elif settings["seed"] is None:
        again += "<p>No seed was given, so it will be another sound.</p>"
    return f"{again}{table('setting-data', ('setting', 'value'), rows)}"
