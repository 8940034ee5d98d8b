"""`BarkModel`: ids and a voice to audio.

Source: transformers, models/bark/modeling_bark.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import fast
from ..checkpoint.layouts import opener
from ..checkpoint.opened import Checkpoint, Reopening
from ..checkpoint.voices import VoiceLike
from ..config import BarkConfig, CodecConfig, FineGPTConfig, GPTConfig
from ..options import Options, Seed, TokensLike, token_ids
from ..pipeline import Pipeline, Row, warn_of_ends
from ..precision import FLOATS
from .keywords import Place, device_of, precision_of, refuse_unknown, stage_options
from .processor import BarkProcessor


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants that scripts read, under transformers' names; rates in Hz."""

    sample_rate: int
    codebook_size: int
    semantic_config: GPTConfig
    coarse_acoustics_config: GPTConfig
    fine_acoustics_config: FineGPTConfig
    codec_config: CodecConfig
    model_type: str = "bark"

    @classmethod
    def of(cls, config: BarkConfig) -> ModelConfig:
        """The configuration of a Bark."""
        stages = (config.semantic, config.coarse, config.fine, config.codec)
        return cls(config.codec.sampling_rate, config.generation.codebook_size, *stages)


class BarkModel:
    """A Bark with transformers' methods.

    Attributes:
        config: shapes and constants.
        generation_config: the same, with `sample_rate`.
        processor: text -> ids, and the voices.
    """

    def __init__(
        self, reopen: Callable[[], Checkpoint], choice: fast.Choice, backend: str | None = None
    ) -> None:
        """`reopen` gives the checkpoint, now and after each move; see `from_pretrained`."""
        checkpoint = reopen()
        generation = checkpoint.config.generation
        self.config = self.generation_config = ModelConfig.of(checkpoint.config)
        self.processor = BarkProcessor(checkpoint.tokenizer, checkpoint.voices, generation)
        self._reopen, self._backend = reopen, backend
        self._pipeline = Pipeline(checkpoint.config, Reopening(checkpoint, reopen), choice)

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device_map: Place | Mapping[str, Place] = None,
        precision: str | None = None,
        backend: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **ignored: Any,
    ) -> BarkModel:
        """A Bark with trained weights, on the CPU in float32 unless told otherwise.

        Args:
            name_or_dir: what `minibark.Bark.from_pretrained` takes: a hub repository, a directory
                in any layout, `"tiny"` or `"random"`.
            dtype: of the transformers' weights; None and `"auto"` are float32.
            torch_dtype: its older name.
            device_map: a device for the whole model; `"auto"` is CUDA where there is one.
            precision: minibark's own, for `"int8"` and `"int4"`.
            backend: minibark's own; None is the fastest that can run.
            cache_dir: the hub's cache and ours; None is the usual place of each.
            revision: branch, tag or commit on the hub.
            local_files_only: never ask the hub, use what is cached.
            **ignored: what transformers takes and nothing here needs, such as
                `attn_implementation`; for `token`, log in or set `HF_TOKEN`.

        Raises:
            FileNotFoundError: no such model, a file of it is missing, or no network.
            CheckpointError: files that are damaged or do not fit together.
            ValueError: an unknown keyword or dtype, or a device that this machine does not have.
        """
        refuse_unknown(ignored, cls.from_pretrained.__annotations__)
        reopen = opener(
            name_or_dir, cache_dir=cache_dir, revision=revision, offline=local_files_only
        )
        precision = precision or precision_of(torch_dtype if dtype is None else dtype)
        return cls(reopen, fast.choose(device_of(device_map), precision, backend), backend)

    @property
    def device(self) -> torch.device:
        """Where the stages run."""
        return self._pipeline.choice.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformers' weights; where those are int8 or int4, of all else."""
        return FLOATS.get(self._pipeline.choice.precision, torch.float32)

    def __repr__(self) -> str:
        return f"<BarkModel {self._pipeline.choice}>"

    def to(
        self, *places: Any, device: Place = None, dtype: torch.dtype | None = None, **_: Any
    ) -> BarkModel:
        """Run on another device, in another dtype, or both: `.to("cuda", torch.float16)`.

        Stages are read again when they are next used.
        """
        for place in places:
            if isinstance(place, torch.dtype):
                dtype = place
            else:
                device = place
        return self._run(device, dtype, self._pipeline.offload)

    def half(self) -> BarkModel:
        """Run in float16."""
        return self.to(torch.float16)

    def bfloat16(self) -> BarkModel:
        """Run in bfloat16."""
        return self.to(torch.bfloat16)

    def float(self) -> BarkModel:
        """Run in float32."""
        return self.to(torch.float32)

    def cuda(self, device: Place = None) -> BarkModel:
        """Run on a GPU."""
        return self.to("cuda" if device is None else device)

    def cpu(self) -> BarkModel:
        """Run on the CPU."""
        return self.to("cpu")

    def eval(self) -> BarkModel:
        """Nothing to do: there is no other mode."""
        return self

    def to_bettertransformer(self) -> BarkModel:
        """Nothing to do: attention is fused already."""
        return self

    def enable_cpu_offload(self, accelerator_id: int | None = 0, **_: Any) -> None:
        """Keep only the running stage on the GPU; without a GPU nothing changes."""
        if torch.cuda.is_available():
            self._run(accelerator_id or 0, None, offload=True)

    def generate(
        self,
        input_ids: TokensLike | None = None,
        history_prompt: VoiceLike = None,
        return_output_lengths: bool | None = None,
        *,
        attention_mask: TokensLike | None = None,
        seed: Seed = None,
        **keywords: Any,
    ) -> Any:
        """Audio of texts: what a processor gives, unpacked, and how to choose tokens.

        Args:
            input_ids: (B, n) ids of the tokenizer.
            history_prompt: how all rows sound; a name or a path will do.
            return_output_lengths: whether to give the lengths, too.
            attention_mask: (B, n), 0 where an id is a pad; None is 1 everywhere.
            seed: minibark's own: each row gets what it gets alone with this seed.
            **keywords: `do_sample` (False is greedy), `temperature`, `top_k`, `top_p`, for one
                stage with the prefix `semantic_`, `coarse_` or `fine_`; `min_eos_p`,
                `max_new_tokens`, for the text stage with or without its prefix.

        Returns:
            (B, N) float32 in about [-1, 1] on the model's device, zeros behind the shorter rows;
            with `return_output_lengths` a tuple of it and a list of the B lengths.

        Raises:
            ValueError: ids or a mask that do not fit, an empty row, or a keyword that is unknown,
                out of range or has no meaning here.
            VoiceError: a voice that this model cannot use.
        """
        options = stage_options(keywords, self._pipeline.config.generation)
        voice = self.processor.voice(history_prompt)
        drawn = Options(seed=seed)
        rows = [
            Row(ids, voice, drawn.generator(self.device))
            for ids in self._texts(input_ids, attention_mask)
        ]
        voices, streams = [voice] * len(rows), [row.generator for row in rows]
        semantics = self._pipeline.semantic(rows, options["semantic"])
        warn_of_ends(semantics, options["semantic"], self._pipeline.config.generation)
        coarses = self._pipeline.coarse(semantics, voices, streams, options["coarse"])
        fines = self._pipeline.fine(coarses, voices, streams, options["fine"])
        audios = [torch.from_numpy(self._pipeline.decode(codes)) for codes in fines]
        audio = torch.nn.utils.rnn.pad_sequence(audios, batch_first=True).to(self.device)
        return (audio, [len(each) for each in audios]) if return_output_lengths else audio

    def _texts(self, input_ids: Any, attention_mask: Any) -> list[Tensor]:
        """Each row's ids (n,) without the pads behind them; a pad among them stays one."""
        if input_ids is None:
            raise ValueError("generate needs input_ids; a processor makes them of a text")
        config = self._pipeline.config
        g = config.generation
        n_ids = config.semantic.input_vocab_size - g.text_encoding_offset
        ids = token_ids(input_ids, "input_ids", 2, n_ids)
        mask = torch.ones_like(ids)
        if attention_mask is not None:
            mask = token_ids(attention_mask, "attention_mask", 2, 2)
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_ids, {tuple(ids.shape)}, "
                f"got {tuple(mask.shape)}"
            )
        ids = ids.masked_fill(mask == 0, g.text_pad_token - g.text_encoding_offset)
        lengths = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in mask]
        if 0 in lengths or not lengths:
            where = f"row {lengths.index(0)}" if lengths else "input_ids"
            raise ValueError(f"{where} has no text; give at least one word")
        return [row[:length] for row, length in zip(ids, lengths, strict=True)]

    def _run(self, device: Place, dtype: torch.dtype | None, offload: bool) -> BarkModel:
        old = self._pipeline
        precision = old.choice.precision if dtype is None else precision_of(dtype)
        place = old.choice.device if device is None else device_of(device)
        choice = fast.choose(place, precision, self._backend)
        if (choice, offload) != (old.choice, old.offload):
            states = Reopening(self._reopen(), self._reopen)
            self._pipeline = Pipeline(old.config, states, choice, offload)
        return self
