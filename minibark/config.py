"""Shapes, vocabularies and lengths of a Bark, as frozen dataclasses.

Every number that a stage needs is a field here, under the name that the released `config.json` or
`generation_config.json` gives it and with the released value as default, so that a smaller Bark
with other lengths and another vocabulary runs through the same code.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from reprlib import repr as brief
from typing import Any

STAGES = ("semantic", "coarse", "fine", "codec")


class CheckpointError(ValueError):
    """A checkpoint, or the configuration inside one, that cannot be used; the text says why."""


@dataclass(frozen=True)
class GPTConfig:
    """Shape of one causal GPT."""

    block_size: int = 1024  # positions
    input_vocab_size: int = 10_048
    output_vocab_size: int = 10_048
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    bias: bool = False  # in every Linear and, causal models only, every LayerNorm

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.n_embd % self.n_head:
            raise CheckpointError(
                f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})"
            )

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.n_embd // self.n_head


@dataclass(frozen=True)
class FineGPTConfig(GPTConfig):
    """Shape of the non-causal GPT that predicts codebook after codebook."""

    input_vocab_size: int = 1056
    output_vocab_size: int = 1056
    n_codes_total: int = 8
    n_codes_given: int = 1  # codebooks that have no head, because they are always given

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_vocab_size != self.output_vocab_size:
            raise CheckpointError(
                "the fine model's heads are its embeddings, so its input_vocab_size "
                f"({self.input_vocab_size}) and output_vocab_size ({self.output_vocab_size}) "
                "must be equal"
            )
        if not 1 <= self.n_codes_given < self.n_codes_total <= 64:
            raise CheckpointError(
                f"expected 1 <= n_codes_given < n_codes_total <= 64, got n_codes_given "
                f"{self.n_codes_given} and n_codes_total {self.n_codes_total}"
            )


@dataclass(frozen=True)
class CodecConfig:
    """Shape of the EnCodec decoder."""

    sampling_rate: int = 24_000  # Hz
    codebook_size: int = 1024
    n_codebooks: int = 8  # the released codec has 32, of which Bark uses the first 8
    hidden_size: int = 128  # channels of a codebook entry and of the latent
    num_filters: int = 32  # channels before the last convolution
    upsampling_ratios: tuple[int, ...] = (8, 5, 4, 2)
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    num_residual_layers: int = 1
    num_lstm_layers: int = 2
    compress: int = 2  # how much narrower a residual block is inside

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not 1 <= len(self.upsampling_ratios) <= 8:
            raise CheckpointError(
                f"expected 1 to 8 upsampling_ratios, got {self.upsampling_ratios}"
            )
        if self.compress > self.num_filters:
            raise CheckpointError(
                f"compress ({self.compress}) must be at most num_filters ({self.num_filters})"
            )

    @property
    def hop_length(self) -> int:
        """Samples per frame of codes."""
        return math.prod(self.upsampling_ratios)


@dataclass(frozen=True)
class GenerationConfig:
    """Token ids, prompt lengths and windows of the three token loops."""

    # text -> semantic
    semantic_vocab_size: int = 10_000
    semantic_rate_hz: float = 49.9
    semantic_pad_token: int = 10_000  # pads the history block; as an output it ends the utterance
    semantic_infer_token: int = 129_599
    text_encoding_offset: int = 10_048  # text id t enters the model as t + offset
    text_pad_token: int = 129_595
    max_input_semantic_length: int = 256  # ids in the text block, and in the history block
    max_new_tokens: int = 768
    # semantic -> coarse
    codebook_size: int = 1024
    n_coarse_codebooks: int = 2
    coarse_rate_hz: float = 75  # frames of codes per second
    coarse_semantic_pad_token: int = 12_048
    coarse_infer_token: int = 12_050
    max_coarse_input_length: int = 256  # semantic ids in front of a window
    max_coarse_history: int = 630  # coarse ids in front of a window
    sliding_window_len: int = 60  # coarse ids made per window
    # coarse -> fine
    n_fine_codebooks: int = 8
    max_fine_history_length: int = 512  # frames of a voice; also the hop between two buffers
    max_fine_input_length: int = 1024  # frames in a buffer

    def __post_init__(self) -> None:
        _check_numbers(self)

    @property
    def semantic_to_coarse_ratio(self) -> float:
        """Coarse ids per semantic id, all coarse codebooks counted (3.006 in the released Bark)."""
        return self.coarse_rate_hz / self.semantic_rate_hz * self.n_coarse_codebooks


@dataclass(frozen=True)
class BarkConfig:
    """Everything that tells one Bark from another, checked to fit together."""

    semantic: GPTConfig = field(default_factory=lambda: GPTConfig(input_vocab_size=129_600))
    coarse: GPTConfig = field(
        default_factory=lambda: GPTConfig(input_vocab_size=12_096, output_vocab_size=12_096)
    )
    fine: FineGPTConfig = field(default_factory=FineGPTConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        g, codec = self.generation, self.codec
        semantic, coarse, fine = self.semantic, self.coarse, self.fine
        coarse_ids = g.semantic_vocab_size + g.n_coarse_codebooks * g.codebook_size
        text_ids = max(g.semantic_infer_token, g.text_pad_token, g.text_encoding_offset)
        window = g.max_coarse_input_length + g.max_coarse_history + g.sliding_window_len
        rules = {
            "semantic_pad_token is semantic_vocab_size, and an output of the semantic model": (
                g.semantic_pad_token == g.semantic_vocab_size < semantic.output_vocab_size
            ),
            "text and infer ids are in the semantic input_vocab_size": (
                text_ids < semantic.input_vocab_size
            ),
            "max_input_semantic_length + max_new_tokens fit the semantic block_size": (
                g.max_input_semantic_length + g.max_new_tokens <= semantic.block_size
            ),
            "semantic ids and coarse codes fit the coarse vocabularies": (
                coarse_ids <= min(coarse.input_vocab_size, coarse.output_vocab_size)
            ),
            "coarse pad and infer ids are in the coarse input_vocab_size": (
                max(g.coarse_semantic_pad_token, g.coarse_infer_token) < coarse.input_vocab_size
            ),
            "max_coarse_input_length + max_coarse_history + sliding_window_len fit the coarse "
            "block_size": window <= coarse.block_size,
            "n_coarse_codebooks <= max_coarse_history": (
                g.n_coarse_codebooks <= g.max_coarse_history
            ),
            "codes and a pad fit the fine vocabulary": g.codebook_size < fine.input_vocab_size,
            "max_fine_history_length < max_fine_input_length <= fine block_size": (
                g.max_fine_history_length < g.max_fine_input_length <= fine.block_size
            ),
            "n_codes_given <= n_coarse_codebooks < n_fine_codebooks": (
                fine.n_codes_given <= g.n_coarse_codebooks < g.n_fine_codebooks
            ),
            "fine model and codec have the same codebooks": (
                g.n_fine_codebooks == fine.n_codes_total == codec.n_codebooks
                and g.codebook_size == codec.codebook_size
            ),
            "sampling_rate / product of upsampling_ratios is coarse_rate_hz": (
                abs(codec.sampling_rate / codec.hop_length - g.coarse_rate_hz) < 1e-6
            ),
            "coarse_rate_hz / semantic_rate_hz is in [0.1, 100]": (
                0.1 <= g.coarse_rate_hz / g.semantic_rate_hz <= 100
            ),
        }
        for rule, holds in rules.items():
            if not holds:
                raise CheckpointError(f"this configuration does not hold together: {rule}")

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain values, ready for JSON; `checkpoint.schema` has the inverse."""
        return dataclasses.asdict(self)


# The most that a configuration may ask for, far above every real one: beyond, only to build the
# empty model takes long. Other numbers may be ten million.
_MOST = {
    "n_layer": 256,
    "n_embd": 100_000,
    "hidden_size": 100_000,
    "num_filters": 10_000,
    "n_codebooks": 64,
    "upsampling_ratios": 1000,
    "num_residual_layers": 8,
    "num_lstm_layers": 8,
    "dilation_growth_rate": 10,
    "kernel_size": 1000,
    "last_kernel_size": 1000,
    "residual_kernel_size": 1000,
}


def _check_numbers(config: Any) -> None:
    for item in dataclasses.fields(config):
        value, most = getattr(config, item.name), _MOST.get(item.name, 10_000_000)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, bool) and not 0 < number <= most:
                raise CheckpointError(f"{item.name} must be in (0, {most:,}], got {brief(number)}")
