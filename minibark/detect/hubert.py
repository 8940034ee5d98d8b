"""HuBERT base: what a stretch of speech sounds like, 49 times a second.

    audio   (B, N)            16_000 Hz, at least 400 samples
      | seven convolutions, GELU; behind the first each channel is normalised over time
    frames  (B, 512, T)       T = floor((N - 80) / 320) as released
      | LayerNorm, Linear
    x       (B, T, 768)
      | plus a convolution of itself over 128 frames, which tells where a frame is; LayerNorm
      | layers: x = LN(x + attention(x)), x = LN(x + MLP(x))
    x       (B, T, 768)

Only the first layers are built: Bark's classifier looks at what the sixth gives. Parameters have
their released names.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import CheckpointError

SAMPLE_RATE = 16_000  # Hz
N_LAYERS = 6
_MOST = 10_000  # of any number of a configuration


@dataclass(frozen=True)
class HubertConfig:
    """Shape of a HuBERT, under the names of its released config.json."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-5
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    num_conv_pos_embeddings: int = 128  # frames that the convolution for positions spans
    num_conv_pos_embedding_groups: int = 16

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            for number in value if isinstance(value, tuple) else (value,):
                if not 0 < number <= _MOST:
                    raise CheckpointError(f"{name} must be in (0, {_MOST:,}], got {number}")
        if self.num_hidden_layers < N_LAYERS:
            raise CheckpointError(
                f"num_hidden_layers must be at least {N_LAYERS}, got {self.num_hidden_layers}"
            )
        sizes = {len(self.conv_dim), len(self.conv_kernel), len(self.conv_stride)}
        if len(sizes) != 1 or not 1 <= len(self.conv_dim) <= 32:
            raise CheckpointError("conv_dim, conv_kernel and conv_stride must be of one length")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                raise CheckpointError(
                    f"hidden_size ({self.hidden_size}) must be a multiple of {name} "
                    f"({getattr(self, name)})"
                )

    @property
    def least_samples(self) -> int:
        """The fewest samples that give a frame: 400, 25 ms, as released."""
        n = 1
        for kernel, stride in zip(
            reversed(self.conv_kernel), reversed(self.conv_stride), strict=True
        ):
            n = (n - 1) * stride + kernel
        return n


class Hubert(nn.Module):
    """The convolutions and the first layers of a HuBERT."""

    def __init__(self, config: HubertConfig) -> None:
        """Build it with random weights."""
        super().__init__()
        self.config = config
        self.feature_extractor = _Convolutions(config)
        self.feature_projection = _Projection(config)
        self.encoder = _Encoder(config)

    def forward(self, audio: Tensor) -> Tensor:
        """What the last layer that was built gives, (B, T, hidden_size).

        Args:
            audio: (B, N) float32, 16_000 Hz, N at least `config.least_samples`.

        Raises:
            ValueError: if it is shorter, or of another shape.

        Source: transformers, modeling_hubert.py, `HubertModel`: hidden_states[N_LAYERS].
        """
        if audio.ndim != 2 or audio.shape[1] < self.config.least_samples:
            raise ValueError(
                f"audio must be (B, N) with N at least {self.config.least_samples}, got "
                f"{tuple(audio.shape)}"
            )
        frames = self.feature_extractor(audio).transpose(1, 2)
        x: Tensor = self.encoder(self.feature_projection(frames))
        return x


class _Convolutions(nn.Module):
    """(B, N) -> (B, C, T)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        widths = (1, *config.conv_dim)
        self.conv_layers = nn.ModuleList(
            _Convolution(c_in, c_out, kernel, stride, is_first=i == 0)
            for i, (c_in, c_out, kernel, stride) in enumerate(
                zip(widths, widths[1:], config.conv_kernel, config.conv_stride, strict=False)
            )
        )

    def forward(self, audio: Tensor) -> Tensor:
        x = audio[:, None]
        for layer in self.conv_layers:
            x = layer(x)
        return x


class _Convolution(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, is_first: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(c_in, c_out, kernel, stride, bias=False)
        self.layer_norm = nn.GroupNorm(c_out, c_out) if is_first else None  # its released name

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.gelu(x if self.layer_norm is None else self.layer_norm(x))


class _Projection(nn.Module):
    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)

    def forward(self, frames: Tensor) -> Tensor:
        x: Tensor = self.projection(self.layer_norm(frames))
        return x


class _Encoder(nn.Module):
    """(B, T, C) -> (B, T, C): positions, then the layers."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.pos_conv_embed = _Positions(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(N_LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x + self.pos_conv_embed(x))
        for layer in self.layers:
            x = layer(x)
        return x


class _Positions(nn.Module):
    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width, kernel = config.hidden_size, config.num_conv_pos_embeddings
        groups = config.num_conv_pos_embedding_groups
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.transpose(1, 2))[..., : x.shape[1]]  # an even kernel gives a frame too many
        return F.gelu(y).transpose(1, 2)


class _Layer(nn.Module):
    """(B, T, C) -> (B, T, C); normalised behind each sum."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.feed_forward = _FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x + self.attention(x))
        y: Tensor = self.final_layer_norm(x + self.feed_forward(x))
        return y


class _Attention(nn.Module):
    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.n_head = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(2, (self.n_head, -1)).transpose(1, 2)  # (B, heads, T, size)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return y


class _FeedForward(nn.Module):
    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output_dense(F.gelu(self.intermediate_dense(x)))
        return y
