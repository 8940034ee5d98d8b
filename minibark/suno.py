"""suno/bark's own functions over `Bark`: a script for it runs after a change of its import lines.

    from bark import SAMPLE_RATE, generate_audio, preload_models
    from bark.generation import generate_text_semantic
    from bark.api import semantic_to_waveform

    from minibark.suno import SAMPLE_RATE, generate_audio, preload_models
    from minibark.suno import generate_text_semantic
    from minibark.suno import semantic_to_waveform

As there, the models are module-wide and load at first use, random numbers are torch's own
(`torch.manual_seed`), and arrays are NumPy's. `SUNO_USE_SMALL_MODELS`, `SUNO_OFFLOAD_CPU` and
`SUNO_ENABLE_MPS` are read when models load. Suno's own folder of downloads
(`$XDG_CACHE_HOME/suno/bark_v0`) is used if all requested files are in it; else the hub is asked.

Source: suno-ai/bark, bark/api.py and bark/generation.py.
"""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import numpy as np
import torch

from . import SAMPLE_RATE as SAMPLE_RATE
from .bark import Bark
from .checkpoint.suno_files import SUNO_NAMES
from .checkpoint.voices import LANGUAGES
from .commands.bars import Bars
from .config import STAGES, GenerationConfig
from .files import user_cache
from .options import Options
from .voice import Voice, VoiceError

SUPPORTED_LANGS = [(language, code) for code, language in LANGUAGES.items()]
ALLOWED_PROMPTS = {"announcer"} | {
    f"{folder}{code}_speaker_{n}"
    for folder in ("", "v2/")
    for _, code in SUPPORTED_LANGS
    for n in range(10)
}
CONTEXT_WINDOW_SIZE = 1024
SEMANTIC_RATE_HZ = GenerationConfig.semantic_rate_hz
SEMANTIC_VOCAB_SIZE = GenerationConfig.semantic_vocab_size
CODEBOOK_SIZE = GenerationConfig.codebook_size
N_COARSE_CODEBOOKS = GenerationConfig.n_coarse_codebooks
N_FINE_CODEBOOKS = GenerationConfig.n_fine_codebooks
COARSE_RATE_HZ = GenerationConfig.coarse_rate_hz

Array = np.ndarray[Any, Any]
History = dict[str, Array] | str | os.PathLike[str] | None
"""A voice: a name, an `.npz` file, or the dictionary that `output_full` returns."""

_STAGES = {"text": "semantic", "coarse": "coarse", "fine": "fine", "codec": "codec"}
_bark: Bark | None = None
_opening = threading.RLock()
_small: dict[str, bool] = {}  # whether a transformer is the small one, if it was loaded here


def use(bark: Bark) -> None:
    """Take this Bark for all functions below, in place of the released checkpoints."""
    global _bark
    _bark = bark
    _small.clear()


def preload_models(
    text_use_gpu: bool = True,
    text_use_small: bool = False,
    coarse_use_gpu: bool = True,
    coarse_use_small: bool = False,
    fine_use_gpu: bool = True,
    fine_use_small: bool = False,
    codec_use_gpu: bool = True,
    force_reload: bool = False,
) -> None:
    """Fetch and load the released checkpoints, each stage large unless asked for small.

    minibark runs all stages on one device: the GPU only if all four may use it.

    Raises:
        FileNotFoundError: not cached and no network.
    """
    gpu = text_use_gpu and coarse_use_gpu and fine_use_gpu and codec_use_gpu
    small = {"semantic": text_use_small, "coarse": coarse_use_small, "fine": fine_use_small}
    with _opening:
        if _bark is not None and not force_reload:
            return
        _open(small, gpu)
    for stage in STAGES:
        _loaded().model(stage)


def load_model(
    use_gpu: bool = True,
    use_small: bool = False,
    force_reload: bool = False,
    model_type: str = "text",
) -> Any:
    """One transformer: a module, for `"text"` a dictionary with `"model"` and `"tokenizer"`.

    Raises:
        ValueError: `model_type` is none of `"text"`, `"coarse"`, `"fine"`.
        FileNotFoundError: not cached and no network.
    """
    if model_type not in ("text", "coarse", "fine"):
        raise ValueError(f"model_type must be text, coarse or fine, got {model_type!r}")
    stage = _STAGES[model_type]
    wanted = use_small or _is_set("SUNO_USE_SMALL_MODELS")
    with _opening:
        if _bark is None or force_reload or _small.get(stage, wanted) != wanted:
            _open(_small | {stage: use_small}, use_gpu)
    model = _loaded().model(stage)
    return {"model": model, "tokenizer": _loaded().tokenizer} if stage == "semantic" else model


def load_codec_model(use_gpu: bool = True, force_reload: bool = False) -> Any:
    """The codec's module; `use_gpu` counts where nothing else has been loaded."""
    with _opening:
        if _bark is None or force_reload:
            _open(_small, use_gpu)
    return _loaded().model("codec")


def clean_models(model_key: str | None = None) -> None:
    """Free `"text"`, `"coarse"`, `"fine"` or `"codec"`, or all of them; they load again if used."""
    if _bark is not None:
        for key, stage in _STAGES.items():
            if model_key in (None, key):
                _bark.pipeline.unload(stage)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def generate_text_semantic(
    text: str,
    history_prompt: History = None,
    temp: float | None = Options.temperature,
    top_k: int | None = None,
    top_p: float | None = None,
    silent: bool = False,
    min_eos_p: float | None = Options.min_eos_p,
    max_gen_duration_s: float | None = None,
    allow_early_stop: bool = True,
    use_kv_caching: bool = False,
) -> Array:
    """Semantic tokens (S,) int64 of a text. The cache is always used."""
    with Bars(silent) as bars:
        semantic = _loaded().text_to_semantic(
            text,
            history_prompt,
            temperature=temp,
            top_k=top_k,
            top_p=top_p,
            min_eos_p=min_eos_p,
            max_duration_s=max_gen_duration_s,
            allow_early_stop=allow_early_stop,
            on_step=bars.step,
        )
    return semantic.numpy()


def generate_coarse(
    x_semantic: Array,
    history_prompt: History = None,
    temp: float | None = Options.waveform_temperature,
    top_k: int | None = None,
    top_p: float | None = None,
    silent: bool = False,
    max_coarse_history: int = GenerationConfig.max_coarse_history,
    sliding_window_len: int = GenerationConfig.sliding_window_len,
    use_kv_caching: bool = False,
) -> Array:
    """Coarse codes (2, T) int64 of semantic tokens (S,). The cache is always used.

    A smaller model's own windows take the place of longer ones.
    """
    own = _loaded().config.generation
    with Bars(silent) as bars:
        coarse = _loaded().semantic_to_coarse(
            x_semantic,
            history_prompt,
            temperature=temp,
            top_k=top_k,
            top_p=top_p,
            max_coarse_history=min(max_coarse_history, own.max_coarse_history),
            sliding_window_len=min(sliding_window_len, own.sliding_window_len),
            on_step=bars.step,
        )
    return coarse.numpy()


def generate_fine(
    x_coarse_gen: Array,
    history_prompt: History = None,
    temp: float | None = Options.fine_temperature,
    silent: bool = True,
) -> Array:
    """All codes (8, T) int64 of coarse codes (2, T)."""
    with Bars(silent) as bars:
        fine = _loaded().coarse_to_fine(
            x_coarse_gen, history_prompt, temperature=temp, on_step=bars.step
        )
    return fine.numpy()


def codec_decode(fine_tokens: Array) -> Array:
    """Audio (N,) float32 of codes (8, T)."""
    return _loaded().decode(fine_tokens)


def text_to_semantic(
    text: str,
    history_prompt: History = None,
    temp: float | None = Options.temperature,
    silent: bool = False,
) -> Array:
    """Semantic tokens (S,) int64 of a text, for `semantic_to_waveform`."""
    return generate_text_semantic(text, history_prompt, temp, silent=silent)


def semantic_to_waveform(
    semantic_tokens: Array,
    history_prompt: History = None,
    temp: float | None = Options.waveform_temperature,
    silent: bool = False,
    output_full: bool = False,
) -> Any:
    """Audio (N,) float32 of semantic tokens; with `output_full`, the voice dictionary before it."""
    coarse = generate_coarse(semantic_tokens, history_prompt, temp, silent=silent)
    fine = generate_fine(coarse, history_prompt, silent=silent)
    audio = codec_decode(fine)
    full = {"semantic_prompt": semantic_tokens, "coarse_prompt": coarse, "fine_prompt": fine}
    return (full, audio) if output_full else audio


def generate_audio(
    text: str,
    history_prompt: History = None,
    text_temp: float | None = Options.temperature,
    waveform_temp: float | None = Options.waveform_temperature,
    silent: bool = False,
    output_full: bool = False,
) -> Any:
    """Audio (N,) float32 of a text; with `output_full`, the voice dictionary before it."""
    semantic = text_to_semantic(text, history_prompt, text_temp, silent)
    return semantic_to_waveform(semantic, history_prompt, waveform_temp, silent, output_full)


def save_as_prompt(filepath: str | os.PathLike[str], full_generation: dict[str, Array]) -> None:
    """Write a voice dictionary as an `.npz` voice.

    Raises:
        ValueError: the name does not end in `.npz`.
        VoiceError: not a dictionary with the three arrays.
    """
    if not isinstance(full_generation, dict):
        raise VoiceError(f"expected a dictionary of three arrays, got {type(full_generation)}")
    Voice.from_arrays(full_generation).save(filepath)


def _loaded() -> Bark:
    with _opening:
        if _bark is None:
            _open(_small, gpu=True)
        assert _bark is not None
        return _bark


def _open(small: dict[str, bool], gpu: bool) -> None:
    """Make a Bark of the released checkpoints, each transformer large unless it is to be small."""
    all_small = _is_set("SUNO_USE_SMALL_MODELS")
    small = {stage: all_small or small.get(stage, False) for stage in SUNO_NAMES}
    device = None if gpu else "cpu"
    if gpu and not torch.cuda.is_available() and _is_set("SUNO_ENABLE_MPS"):
        device = "mps" if torch.backends.mps.is_available() else None
    main, stages = _places(small)
    use(
        Bark.from_pretrained(
            main, stages=stages, device=device, offload=_is_set("SUNO_OFFLOAD_CPU")
        )
    )
    _small.update(small)


def _places(small: dict[str, bool]) -> tuple[str, dict[str, str]]:
    """A model and where single stages are: in Suno's own folder if it has all, or on the hub."""
    folder = user_cache() / "suno" / "bark_v0"
    files = {
        stage: folder / f"{SUNO_NAMES[stage]}{'' if is_small else '_2'}.pt"
        for stage, is_small in small.items()
    }
    if all(file.is_file() for file in files.values()):
        return str(folder), {stage: str(file) for stage, file in files.items()}
    if all(small.values()):
        return "suno/bark-small", {}
    return "suno/bark", {stage: "suno/bark-small" for stage, is_small in small.items() if is_small}


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1", "t")
