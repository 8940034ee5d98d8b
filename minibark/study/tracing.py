"""One utterance and all that happened on its way: the tokens of `generate`, and why they are so.

The stages run as they do in `Bark.generate`, under watching decoders (`watch.py`), so the same seed
gives the same samples. Attention is read off afterwards (`attention.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch

from ..bark import Bark
from ..checkpoint.voices import VoiceLike
from ..coarse import start_row
from ..config import BarkConfig, GenerationConfig
from ..options import GenerateOptions, TokensLike, token_ids
from ..pipeline import Audio, Row, warn_of_ends
from ..semantic import semantic_prompt
from ..speech.plan import one_utterance
from ..surroundings import plainly
from ..text import readable_words
from ..voice import Voice
from .align import Alignment, align
from .attention import text_attention
from .costs import Clock, Cost
from .draws import Array, Draws, draws_of, draws_of_fine, end_probabilities
from .settings import settings_of
from .watch import Call, watch
from .words import ReadText, Word, placed_words, words_of_ids

DEPTHS = (1, 2, 4)  # codebooks that the sound is decoded with, beside all


@dataclass(frozen=True)
class Window:
    """What the coarse model saw before a window of steps.

    Tokens and steps count from the utterance's own first; those of a voice are below 0.

    Attributes:
        step: its first step; steps go through the codebooks of a frame, then of the next.
        end: the step after its last.
        semantic: (first, end) of the semantic tokens in its prompt.
        coarse: (first, end) of the steps whose ids are in its prompt.
        is_read: whether the model read the prompt; if not, its cache held it already.
    """

    step: int
    end: int
    semantic: tuple[int, int]
    coarse: tuple[int, int]
    is_read: bool


@dataclass(frozen=True)
class Histories:
    """How much of a voice went into each prompt.

    Attributes:
        semantic: tokens, added to the text's slots.
        coarse_semantic: semantic tokens before the coarse stage's own.
        coarse: coarse ids before the first window.
        fine: frames before the first buffer.
    """

    semantic: int
    coarse_semantic: int
    coarse: int
    fine: int


@dataclass(frozen=True, eq=False)
class Trace:
    """What happened in one generation.

    Attributes:
        text: as it was read; of ids, their pieces.
        words: its words, with their slots.
        histories: the voice's part of each prompt.
        voice: the tokens, as `Bark.generate_voice` returns them.
        audio: (N,) float32, as `Bark.generate` returns it.
        semantic: (S,) draws.
        end_p: (S,) or, where the text ended by itself, (S + 1,) float32: the probability of the end
            at each step. Empty where no end was allowed.
        ended: why the text stage stopped: `"probable"` (P(end) reached `min_eos_p`), `"drawn"` or
            `"limit"`.
        attention: (n_layer, n_head, S, n) float32, of each step to each slot that holds text.
        alignment: which heads follow the text, and when each word is said.
        coarse: (n_coarse_codebooks, T) draws.
        windows: of the coarse stage.
        fine: (n_fine_codebooks - n_coarse_codebooks, T) draws of the later codebooks.
        n_predicted: (T,) int64, how often the fine stage predicted each frame.
        depths: codebooks -> (N,) float32, the sound of the first so many.
        costs: of each stage.
        config: of the model.
        settings: all that decides what was made, by name.
    """

    text: str
    words: tuple[Word, ...]
    histories: Histories
    voice: Voice
    audio: Audio
    semantic: Draws
    end_p: Array
    ended: str
    attention: Array
    alignment: Alignment
    coarse: Draws
    windows: tuple[Window, ...]
    fine: Draws
    n_predicted: Array
    depths: dict[int, Audio]
    costs: tuple[Cost, ...]
    config: BarkConfig
    settings: dict[str, Any]

    @property
    def duration_s(self) -> float:
        """Length of the sound."""
        return len(self.audio) / self.config.codec.sampling_rate


def trace(
    bark: Bark,
    text: str | TokensLike | ReadText,
    voice: VoiceLike = None,
    **options: Unpack[GenerateOptions],
) -> Trace:
    """All that happens when `bark.generate(text, voice, **options)` makes one utterance.

    The steps are taken one by one, which in float32 on a CPU takes wide models twice as long; the
    text model reads the result once more, and the codec decodes a few times more.

    Args:
        bark: any, in every precision and on every device.
        text: what to say, or its token ids; or what `read_text` has made of them.
        voice: how to sound.
        **options: as of `Bark.generate`; the same seed gives the same samples.

    Raises:
        ValueError, VoiceError, FileNotFoundError: as from `Bark.generate`.
    """
    with plainly(bark.device):
        return _trace(bark, text, voice, {**options})


def _trace(
    bark: Bark, text: str | TokensLike | ReadText, voice: VoiceLike, knobs: dict[str, Any]
) -> Trace:
    on_step = knobs.pop("on_step", None)
    checked = one_utterance(knobs)
    g, history = bark.pipeline.windowed(checked), bark.load_voice(voice)
    read = text if isinstance(text, ReadText) else read_text(bark, text, checked.normalize)
    ids = torch.tensor([index for word in read.words for index in word.ids])
    settings = settings_of(bark, read.given, voice, history, checked)
    pipeline, seen = watch(bark.pipeline)
    row = Row(ids, history, checked.generator(bark.device))
    clock = Clock(pipeline, seen)
    with clock.running("semantic"):
        (semantic,) = pipeline.semantic([row], checked, on_step)
    with clock.running("coarse"):
        (coarse,) = pipeline.coarse([semantic], [history], [row.generator], checked, on_step)
    with clock.running("fine"):
        (fine,) = pipeline.fine([coarse], [history], [row.generator], checked, on_step)
    with clock.running("codec"):
        audio = pipeline.decode(fine)
    warn_of_ends([semantic], checked, g)
    n_text = min(len(ids), g.max_input_semantic_length)
    prompt = semantic_prompt(ids[:n_text], history.semantic if history else None, g)
    with pipeline.on_device("semantic") as model:
        slots = g.max_input_semantic_length
        attention = text_attention(model, prompt, semantic, slots, n_text).numpy()
    logits = {stage: watched.logits for stage, watched in seen.items()}
    end_p = np.zeros(0, np.float32)
    if checked.allow_early_stop:
        end_p = end_probabilities(logits["semantic"], checked.text_sampling)
    histories = _histories(history, g)
    steps = draws_of(logits["coarse"], coarse.T.flatten(), checked.coarse_sampling)
    fine_draws, n_predicted = draws_of_fine(
        logits["fine"], fine, len(coarse), histories.fine, checked.fine_sampling, g
    )
    return Trace(
        text=read.text,
        words=read.words,
        histories=histories,
        voice=Voice(semantic, coarse, fine),
        audio=audio,
        semantic=draws_of(logits["semantic"], semantic, checked.text_sampling),
        end_p=end_p,
        ended=_why_ended(len(semantic), end_p, checked.min_eos_p),
        attention=attention,
        alignment=align(
            attention, read.words, g.semantic_rate_hz, len(audio) / bark.config.codec.sampling_rate
        ),
        coarse=Draws(*(values.reshape(-1, len(coarse)).T for values in vars(steps).values())),
        windows=tuple(_windows(seen["coarse"].calls, len(semantic), histories, g)),
        fine=fine_draws,
        n_predicted=n_predicted,
        depths={k: pipeline.decode(fine[:k]) for k in DEPTHS if k < len(fine)} | {len(fine): audio},
        costs=tuple(clock.costs),
        config=bark.config,
        settings=settings,
    )


def read_text(bark: Bark, text: str | TokensLike, normalize: str | None = None) -> ReadText:
    """A text, or token ids, as `trace` reads it with the option `normalize`; warns as it does.

    Raises:
        ValueError: as from `Bark.generate`.
    """
    n_slots = bark.config.generation.max_input_semantic_length
    if isinstance(text, str):
        read, found = readable_words(text, bark.tokenizer, normalize or bark.normalize)
        return ReadText(text, read, placed_words(found, bark.tokenizer, n_slots))
    n_ids = bark.config.semantic.input_vocab_size - bark.config.generation.text_encoding_offset
    ids = token_ids(text, "text", 1, n_ids)
    if not len(ids):
        raise ValueError("text holds no ids; give at least one")
    words = words_of_ids(ids.tolist(), bark.tokenizer, n_slots)
    return ReadText(None, " ".join(word.text for word in words), words)


def _histories(voice: Voice | None, config: GenerationConfig) -> Histories:
    if voice is None:
        return Histories(0, 0, 0, 0)
    start = start_row(torch.zeros(0, dtype=torch.int64), voice, config)
    return Histories(
        semantic=min(len(voice.semantic), config.max_input_semantic_length),
        coarse_semantic=start.n_semantic_history,
        coarse=start.n_history,
        fine=min(voice.fine.shape[1], config.max_fine_history_length),
    )


def _why_ended(n_tokens: int, end_p: Array, min_eos_p: float | None) -> str:
    """Why the text stage stopped; where it did by itself there is a step more than tokens."""
    if len(end_p) <= n_tokens:
        return "limit"
    is_probable = min_eos_p is not None and end_p[-1] >= np.float32(min_eos_p)
    return "probable" if is_probable else "drawn"


def _windows(
    calls: Sequence[Call], n_semantic: int, histories: Histories, config: GenerationConfig
) -> Iterator[Window]:
    """The windows, as `coarse.window_prompt` cuts them; each call was a step."""
    ratio, most = config.semantic_to_coarse_ratio, config.max_coarse_history
    for step in range(0, len(calls), config.sliding_window_len):
        here = histories.coarse_semantic + round(step / ratio)
        first = max(0, here - int(most / ratio)) - histories.coarse_semantic
        yield Window(
            step=step,
            end=min(step + config.sliding_window_len, len(calls)),
            semantic=(first, min(first + config.max_coarse_input_length, n_semantic)),
            coarse=(max(-histories.coarse, step - most), step),
            is_read=calls[step].n_positions > 1,
        )
