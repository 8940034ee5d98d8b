"""`Bark`: the four stages, joined."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checkpoint.layouts import open_checkpoint
from .checkpoint.shapes import new_module
from .checkpoint.voices import Voices
from .coarse import generate_coarse
from .config import BarkConfig
from .cpu.reduce import lay_out, reduce, warn_if_slow
from .decoding import CachedDecoder, Decoder
from .fine import generate_fine
from .gpu.backend import choose_backend, describe_backend
from .gpu.decoder import GraphDecoder, GraphFine
from .model import GPT, FineGPT
from .precision import FLOATS, check_precision, is_reduced
from .sampling import OnStep, Sampling
from .semantic import generate_semantic, semantic_prompt
from .tokenizer import Tokenizer
from .voice import Voice, VoiceError

VoiceLike = Voice | str | os.PathLike[str] | Mapping[str, Any] | None
"""A voice by name or `.npz` path, as a `Voice`, as Suno's dictionary, or None for none."""

Seed = int | torch.Generator | None
"""Where a random stream starts: a number, a stream to go on with, or None for torch's own."""

TokensLike = Tensor | np.ndarray[Any, Any] | Sequence[int]


Audio = np.ndarray[Any, np.dtype[np.float32]]


class GenerateOptions(TypedDict, total=False):
    """The keywords of `Bark.generate`: those of `Bark.generate_voice`, explained there."""

    temperature: float | None
    waveform_temperature: float | None
    fine_temperature: float | None
    top_k: int | None
    top_p: float | None
    min_eos_p: float | None
    max_duration_s: float | None
    seed: Seed
    on_step: OnStep | None


class Bark:
    """Text to audio. Two jobs: hold the parts of one checkpoint, and pass tokens through them.

    `Bark(config)` has random weights, for tests and trials; `Bark.from_pretrained` has trained
    ones. A stage is loaded when it is first used.

    Attributes:
        config: shapes and constants.
        tokenizer: text -> ids.
        voices: the checkpoint's voices by name.
        device: where the stages run.
        precision: of the three transformers' weights; logits and codec are float32 always.
        backend: what decodes, `"torch"` or `"triton"`.
    """

    def __init__(
        self,
        config: BarkConfig | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        voices: Voices | None = None,
        device: str | torch.device | None = None,
        precision: str | None = None,
        backend: str | None = None,
        offload: bool = False,
        seed: int = 0,
    ) -> None:
        """A Bark with random weights.

        Args:
            config: shapes; None is the released small size.
            tokenizer: None is a vocabulary of single characters.
            voices: voices by name; None is none.
            device: as for `torch.device`; None is CUDA where there is one, else the CPU.
            precision: `"float32"`, `"float16"`, `"bfloat16"`, on a CPU or CUDA `"int8"`, on a CPU
                `"int4"`; None is bfloat16 on CUDA, else float32.
            backend: `"torch"`, or `"triton"` for fused kernels on an NVIDIA GPU; None is the
                fastest that can run. On CUDA either replays recorded steps: the first call of a
                stage warms up.
            offload: keep only the running stage on the device, the others on the CPU.
            seed: of the random weights.

        Raises:
            ValueError: an unknown precision, or a device that this machine does not have.
            BackendError: a backend that cannot run on the device.
        """
        self.config = config if config is not None else BarkConfig()
        self.tokenizer = tokenizer if tokenizer is not None else Tokenizer.characters()
        self.voices = voices if voices is not None else Voices({}, Path)
        self.device = _device(device)
        self.precision = precision or _usual_precision(self.device)
        self.offload = offload
        check_precision(self.precision, self.device)
        warn_if_slow(self.precision, self.device)
        self.backend = choose_backend(backend, self.device)
        self._modules: dict[str, nn.Module] = {}
        self._recorded: dict[str, Any] = {}  # a `GraphDecoder` a stage, for fine a `GraphFine`
        self._build: Callable[[str], nn.Module] = self._random_module
        self._seed = seed

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        precision: str | None = None,
        backend: str | None = None,
        offload: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        offline: bool = False,
        stages: Mapping[str, str | os.PathLike[str]] | None = None,
        voices_dir: str | os.PathLike[str] | None = None,
    ) -> Bark:
        """A Bark with trained weights.

        Args:
            name_or_dir: `"tiny"`, which ships with minibark (a directory of that name is
                `"./tiny"`), a hub repository (`"suno/bark-small"`, `"suno/bark"`) or a directory
                in Hugging Face's, Suno's or our own layout.
            device: as for `torch.device`; None is CUDA where there is one, else the CPU.
            precision: `"float32"`, `"float16"`, `"bfloat16"`, on a CPU or CUDA `"int8"`, on a CPU
                `"int4"`; None is bfloat16 on CUDA, else float32.
            backend: `"torch"`, or `"triton"` for fused kernels on an NVIDIA GPU; None is the
                fastest that can run. On CUDA either replays recorded steps: the first call of a
                stage warms up.
            offload: keep only the running stage on the device, the others on the CPU.
            cache_dir: the hub's cache and ours; None is the usual place of each.
            revision: branch, tag or commit on the hub.
            offline: never ask the hub, use what is cached.
            stages: other places to take single stages from, by `"semantic"`, `"coarse"`, `"fine"`
                and `"codec"`: a repository, a directory, or Suno's `.pt` (codec: `.th`) file.
            voices_dir: directory of `.npz` voices to use in place of the checkpoint's own.

        Raises:
            FileNotFoundError: no such model, a file of it is missing, or no network.
            CheckpointError: files that are damaged or do not fit together.
            ValueError: an unknown precision or stage, or a device that this machine does not have.
            BackendError: a backend that cannot run on the device.
        """
        place = _device(device)
        if precision is not None:
            check_precision(precision, place)
        backend = choose_backend(backend, place)
        checkpoint = open_checkpoint(
            name_or_dir,
            cache_dir=cache_dir,
            revision=revision,
            offline=offline,
            stages=stages,
            voices_dir=voices_dir,
        )
        bark = cls(
            checkpoint.config,
            tokenizer=checkpoint.tokenizer,
            voices=checkpoint.voices,
            device=device,
            precision=precision,
            backend=backend,
            offload=offload,
        )
        states = dict(checkpoint.states)
        checkpoint = dataclasses.replace(checkpoint, states=states)

        def build(stage: str) -> nn.Module:
            if is_reduced(bark.precision, bark.device):
                module = checkpoint.build_reduced(stage, bark.precision, bark.device)
            else:
                module = checkpoint.build(stage, FLOATS[bark.precision])
            del states[stage]  # once no stage needs it, the mapped file goes
            return module

        bark._build = build
        return bark

    def generate(
        self, text: str | TokensLike, voice: VoiceLike = None, **options: Unpack[GenerateOptions]
    ) -> Audio:
        """Audio of a text: `decode(generate_voice(text, voice, **options).fine)`.

        Args:
            text: what to say, or its token ids.
            voice: how to sound.
            **options: as for `generate_voice`.

        Returns:
            (N,) float32 in about [-1, 1], 24 kHz. Empty, with a warning, where the model ends the
            text at its first step.
        """
        return self.decode(self.generate_voice(text, voice, **options).fine)

    def generate_voice(
        self,
        text: str | TokensLike,
        voice: VoiceLike = None,
        *,
        temperature: float | None = 0.7,
        waveform_temperature: float | None = 0.7,
        fine_temperature: float | None = 0.5,
        top_k: int | None = None,
        top_p: float | None = None,
        min_eos_p: float | None = 0.2,
        max_duration_s: float | None = None,
        seed: Seed = None,
        on_step: OnStep | None = None,
    ) -> Voice:
        """The three token streams of a text, which are a voice to go on with.

        Args:
            text: what to say, or its token ids.
            voice: how to sound.
            temperature: of the semantic stage; 0 is greedy, here and below.
            waveform_temperature: of the coarse stage.
            fine_temperature: of the fine stage.
            top_k: semantic and coarse stage: keep the k likeliest tokens; None or 0 is all.
            top_p: semantic and coarse stage: keep the likeliest tokens up to this probability.
            min_eos_p: the text ends when the end token is at least so likely; None: when drawn.
            max_duration_s: limit in seconds; None is the model's own (15.4 s).
            seed: of the random stream, set once before the first stage; None is torch's own.
            on_step: called as (stage, done, total) while a stage runs.

        Raises:
            ValueError: empty text, or an option out of range.
            VoiceError: the voice is unknown or damaged.
            FileNotFoundError: the voice's file is not there.
        """
        voice = self.load_voice(voice)
        shared: Any = {"seed": self._generator(seed), "on_step": on_step}
        choice: Any = {"top_k": top_k, "top_p": top_p, **shared}
        Sampling(waveform_temperature), Sampling(fine_temperature)  # refuse bad values early
        semantic = self.text_to_semantic(
            text,
            voice,
            temperature=temperature,
            min_eos_p=min_eos_p,
            max_duration_s=max_duration_s,
            **choice,
        )
        coarse = self.semantic_to_coarse(
            semantic, voice, temperature=waveform_temperature, **choice
        )
        fine = self.coarse_to_fine(coarse, voice, temperature=fine_temperature, **shared)
        return Voice(semantic, coarse, fine)

    def text_to_semantic(
        self,
        text: str | TokensLike,
        voice: VoiceLike = None,
        *,
        temperature: float | None = 0.7,
        top_k: int | None = None,
        top_p: float | None = None,
        min_eos_p: float | None = 0.2,
        max_duration_s: float | None = None,
        allow_early_stop: bool = True,
        seed: Seed = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Semantic tokens of a text: (S,) int64 in [0, 10_000), 49.9 Hz, on the CPU.

        Args:
            text: what to say, or its token ids (n,) from `tokenizer.encode`.
            voice: how to sound.
            temperature: 0 is greedy.
            top_k: keep the k likeliest tokens; None or 0 is all.
            top_p: keep the likeliest tokens up to this probability; None is all.
            min_eos_p: end when the end token is at least so likely; None: when it is drawn.
            max_duration_s: limit in seconds; None is the model's own (15.4 s).
            allow_early_stop: False runs to the limit.
            seed: of the random stream, or a `torch.Generator` to go on with; None is torch's own.
            on_step: called as (stage, done, total).

        Raises:
            ValueError: empty text, ids or options out of range.
        """
        voice = self.load_voice(voice)
        sampling = Sampling(temperature, top_k, top_p)
        if min_eos_p is not None and not 0 <= min_eos_p <= 1:
            raise ValueError(f"min_eos_p must be in [0, 1], got {min_eos_p}")
        if max_duration_s is not None and not max_duration_s > 0:
            raise ValueError(f"max_duration_s must be positive, got {max_duration_s}")
        g = self.config.generation
        if isinstance(text, str) and not text.strip():
            raise ValueError("the text is empty; give at least one word")
        ids = self.tokenizer.encode(text) if isinstance(text, str) else text
        n_ids = self.config.semantic.input_vocab_size - g.text_encoding_offset
        tokens = _ids(ids, "text", 1, n_ids)
        if not len(tokens):
            raise ValueError("the text holds nothing that can be read (only control characters?)")
        prompt = semantic_prompt(tokens, voice.semantic if voice else None, g)
        with self._stage("semantic") as model:
            (semantic,) = generate_semantic(
                model,
                [prompt],
                g,
                sampling,
                [self._generator(seed)],
                min_eos_p=min_eos_p,
                max_duration_s=max_duration_s,
                allow_early_stop=allow_early_stop,
                on_step=on_step,
                decoder=self._decoder("semantic", on_step),
            )
        if not len(semantic):
            warnings.warn(
                "the model ended the text at its first step: no audio. Another seed, a higher "
                "min_eos_p or another wording may help",
                stacklevel=2,
            )
        return semantic

    def semantic_to_coarse(
        self,
        semantic: TokensLike,
        voice: VoiceLike = None,
        *,
        temperature: float | None = 0.7,
        top_k: int | None = None,
        top_p: float | None = None,
        max_coarse_history: int | None = None,
        sliding_window_len: int | None = None,
        seed: Seed = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """The first two codebooks: (2, T) int64 in [0, 1024), 75 Hz, on the CPU.

        Args:
            semantic: (S,) ids in [0, 10_000); may be empty.
            voice: how to sound.
            temperature: 0 is greedy.
            top_k: keep the k likeliest codes; None or 0 is all.
            top_p: keep the likeliest codes up to this probability; None is all.
            max_coarse_history: coarse ids in front of a window; None is the config's (630).
            sliding_window_len: coarse ids made per window; None is the config's (60).
            seed: of the random stream, or a `torch.Generator` to go on with; None is torch's own.
            on_step: called as (stage, done, total).

        Raises:
            ValueError: ids or options out of range.
        """
        voice = self.load_voice(voice)
        sampling = Sampling(temperature, top_k, top_p)
        g = self.config.generation
        tokens = _ids(semantic, "semantic", 1, g.semantic_vocab_size)
        with self._stage("coarse") as model:
            (codes,) = generate_coarse(
                model,
                [tokens],
                [voice],
                g,
                sampling,
                [self._generator(seed)],
                max_coarse_history=max_coarse_history,
                sliding_window_len=sliding_window_len,
                on_step=on_step,
                decoder=self._decoder("coarse", on_step),
            )
        return codes

    def coarse_to_fine(
        self,
        coarse: TokensLike,
        voice: VoiceLike = None,
        *,
        temperature: float | None = 0.5,
        seed: Seed = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """All codebooks: (8, T) int64 in [0, 1024), 75 Hz, on the CPU.

        Args:
            coarse: (K, T) codes in [0, 1024), K from 1 to 7 codebooks; T may be 0.
            voice: how to sound.
            temperature: 0 is greedy.
            seed: of the random stream, or a `torch.Generator` to go on with; None is torch's own.
            on_step: called as (stage, done, total).

        Raises:
            ValueError: codes or options out of range.
        """
        voice = self.load_voice(voice)
        sampling = Sampling(temperature)
        g = self.config.generation
        codes = _ids(coarse, "coarse", 2, g.codebook_size)
        least = self.config.fine.n_codes_given
        if not least <= len(codes) < g.n_fine_codebooks:
            raise ValueError(
                f"coarse must be (K, T) with K from {least} to {g.n_fine_codebooks - 1}, "
                f"got {tuple(codes.shape)}"
            )
        with self._stage("fine") as model:
            if self.device.type == "cuda" and "fine" not in self._recorded:
                self._recorded["fine"] = GraphFine(model, backend=self.backend)
            (fine,) = generate_fine(
                model,
                [codes],
                [voice],
                g,
                sampling,
                [self._generator(seed)],
                on_step=on_step,
                forward=self._recorded.get("fine"),
            )
        return fine

    def decode(self, fine: TokensLike) -> Audio:
        """Audio of codes: (320 * T,) float32 in about [-1, 1], 24 kHz.

        Args:
            fine: (8, T) codes in [0, 1024); T may be 0.

        Raises:
            ValueError: codes out of range or of another shape.
        """
        g = self.config.generation
        codes = _ids(fine, "fine", 2, g.codebook_size)
        if len(codes) != g.n_fine_codebooks:
            raise ValueError(f"fine must be ({g.n_fine_codebooks}, T), got {tuple(codes.shape)}")
        # cuDNN would round convolutions to TF32 by default.
        exact = torch.backends.cudnn.flags(allow_tf32=False)
        with self._stage("codec") as codec, torch.inference_mode(), exact:
            audio: Tensor = codec(codes[None].to(self.device))[0]
            return audio.cpu().numpy()

    def load_voice(self, voice: VoiceLike) -> Voice | None:
        """The voice that a name, path, dictionary or `Voice` stands for, checked; None stays None.

        Raises:
            VoiceError: an unknown name, or a voice that this model cannot use.
            FileNotFoundError: no such file.
        """
        if voice is None:
            return None
        if isinstance(voice, Mapping):
            voice = Voice.from_arrays(voice)
        elif isinstance(voice, (str, os.PathLike)):
            name = os.fspath(voice)
            voice = Voice.load(name) if name.endswith(".npz") else self.voices.load(name)
        if not isinstance(voice, Voice):
            raise VoiceError(
                f"a voice is a name, an .npz path, a Voice or a dictionary, not {type(voice)}"
            )
        return voice.check(self.config.generation)

    def _generator(self, seed: Seed) -> torch.Generator | None:
        if seed is None or isinstance(seed, torch.Generator):
            return seed
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
            raise ValueError(f"seed must be a whole number or a torch.Generator, got {seed!r}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {seed}")
        return torch.Generator(self.device).manual_seed(int(seed))

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[Any]:
        """A stage's module, on the device while the block runs."""
        module = self._modules.get(name)
        if module is None:
            module = self._modules[name] = self._build(name)
            if (self.device.type, self.precision, self.backend) == ("cpu", "float32", "torch"):
                lay_out(module)
        module.to(self.device)
        try:
            with _attention_kernels(self.device):
                yield module
        finally:
            if self.offload:
                self._recorded.pop(name, None)  # it knows only where the weights were
                module.to("cpu")

    def _decoder(self, stage: str, on_step: OnStep | None) -> Callable[[GPT, int], Decoder]:
        """What makes, or finds again, the decoder of a stage."""
        if self.device.type != "cuda" and self.backend == "torch":
            return CachedDecoder

        def recorded(model: GPT, n_merged: int) -> Decoder:
            if stage not in self._recorded:
                self._recorded[stage] = GraphDecoder(model, n_merged, backend=self.backend)
            decoder: GraphDecoder = self._recorded[stage]
            decoder.on_step = on_step
            return decoder

        return recorded

    def _random_module(self, stage: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            module = new_module(stage, self.config)
        if isinstance(module, (GPT, FineGPT)) and is_reduced(self.precision, self.device):
            if self.device.type == "cpu":
                reduce(module, module.state_dict(), self.precision)
            else:
                from .gpu.int8 import reduce_to_int8_weights

                reduce_to_int8_weights(module, module.state_dict())
        elif stage != "codec":
            module = module.to(FLOATS[self.precision])
        return module.eval().requires_grad_(False)


def describe_running(device: str | torch.device | None = None) -> str:
    """Where and how a Bark runs on this machine if nothing is asked for, in words."""
    place = _device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else str(place)
    how = describe_backend(choose_backend(None, place), place)
    return f"on {name} in {_usual_precision(place)} by {how}"


def _usual_precision(device: torch.device) -> str:
    return "bfloat16" if device.type == "cuda" else "float32"


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # With its index: which GPU is the current one may change.
        return torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here: {reason}") from error


def _attention_kernels(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Torch's attention on CUDA without cuDNN's, which first makes a plan for every new length."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )


def _ids(tokens: TokensLike, name: str, ndim: int, end: int) -> Tensor:
    """Tokens of a caller as an int64 tensor on the CPU, checked for shape and range."""
    try:
        array = tokens.cpu().numpy() if isinstance(tokens, Tensor) else np.asarray(tokens)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of whole numbers: {error}") from error
    if array.dtype.kind not in "iu" and (array.size or array.dtype.kind != "f"):
        raise ValueError(f"{name} must hold whole numbers, got {array.dtype}")
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {array.shape}")
    if array.size and not 0 <= array.min() <= array.max() < end:
        raise ValueError(f"{name} must hold ids in [0, {end}), got {array.min()} to {array.max()}")
    return torch.from_numpy(array.astype(np.int64, order="C"))
