"""Codes to audio: the decoder half of EnCodec at 24 kHz.

    codes   (B, K, T)       K codebooks, 75 frames per second
      | one row of each codebook, summed
    latent  (B, 128, T)
      | conv over 7 frames; LSTM plus its input     (B, 512, T)       layers 0, 1
      | ELU, transposed conv x8, residual block     (B, 256, 8T)      layers 2, 3, 4
      | ELU, transposed conv x5, residual block     (B, 128, 40T)     layers 5, 6, 7
      | ELU, transposed conv x4, residual block     (B, 64, 160T)     layers 8, 9, 10
      | ELU, transposed conv x2, residual block     (B, 32, 320T)     layers 11, 12, 13
      | ELU, conv over 7 samples                    (B, 1, 320T)      layers 14, 15
    audio   (B, 320T)       24_000 Hz

No layer looks ahead, so later frames never change the audio of earlier ones. The exception is the
start, where a convolution takes the mirror image of what follows as the past that it lacks: nothing
is final until 7 frames are there. `codec_stream.py` decodes piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codec_stream import Audio, Piece, stream_audio
from .config import CodecConfig


class CodecDecoder(nn.Module):
    """Looks each frame's codes up in `codebooks` and has `decoder` turn their sum into samples."""

    def __init__(self, config: CodecConfig) -> None:
        """Build the decoder with random weights."""
        super().__init__()
        self.config = config
        shape = (config.n_codebooks, config.codebook_size, config.hidden_size)
        self.codebooks = nn.Parameter(torch.randn(shape))
        self.decoder = _SEANet(config)

    def forward(self, codes: Tensor) -> Tensor:
        """The audio, (B, hop_length * T) float32, about [-1, 1], 24_000 Hz.

        Args:
            codes: (B, K, T) int64 in [0, codebook_size), 75 Hz. K may be 1 to n_codebooks: fewer
                codebooks give rougher audio. T may be 0.

        Raises:
            ValueError: if the codes have another dtype, shape or range.

        Source: encodec/model.py `EncodecModel.decode`.
        """
        latent = self._latent(codes)
        if latent.numel() == 0:
            return latent.new_zeros(len(codes), codes.shape[2] * self.config.hop_length)
        audio: Tensor = self.decoder(latent)  # (B, 1, N)
        return audio.squeeze(1)

    def stream(self, pieces: Iterable[Piece]) -> Iterator[Audio]:
        """Audio (N,) of one clip's codes in pieces (K, T), as soon as no later piece can change it.

        Joined, the samples are those of the joined codes, up to the rounding of sums. K is one for
        all, T may be 0. ValueError, when it comes to it: a piece of another dtype, shape or range.
        """
        return stream_audio(self._latent, self.decoder.layers, pieces)

    def _latent(self, codes: Tensor) -> Tensor:
        """The sum of each frame's rows, (B, D, T)."""
        n_codebooks, codebook_size, hidden_size = self.codebooks.shape
        if codes.dtype != torch.int64 or codes.ndim != 3 or not 1 <= codes.shape[1] <= n_codebooks:
            raise ValueError(
                f"codes must be int64 of shape (B, K, T) with K from 1 to {n_codebooks}, "
                f"got {codes.dtype} of shape {tuple(codes.shape)}"
            )
        B, K, T = codes.shape
        if codes.numel() == 0:
            return self.codebooks.new_zeros(B, hidden_size, T)
        low, high = torch.stack(codes.aminmax()).tolist()
        if low < 0 or high >= codebook_size:
            raise ValueError(f"codes must be in [0, {codebook_size}), got {low} to {high}")
        rows = [F.embedding(codes[:, k], self.codebooks[k]) for k in range(K)]  # K of (B, T, D)
        return torch.stack(rows).sum(0).transpose(1, 2)


class _SEANet(nn.Module):
    """(B, D, T) -> (B, 1, hop_length * T): few channels more often, step by step.

    Source: encodec/modules/seanet.py `SEANetDecoder`.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        channels = config.num_filters * 2 ** len(config.upsampling_ratios)
        layers: list[nn.Module] = [
            _CausalConv(config.hidden_size, channels, config.kernel_size),
            _SkipLSTM(channels, config.num_lstm_layers),
        ]
        for ratio in config.upsampling_ratios:
            layers += [nn.ELU(inplace=True), _Upsample(channels, channels // 2, ratio)]
            channels //= 2
            for i in range(config.num_residual_layers):
                layers += [_ResidualBlock(channels, config.dilation_growth_rate**i, config)]
        layers += [nn.ELU(inplace=True), _CausalConv(channels, 1, config.last_kernel_size)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        audio: Tensor = self.layers(latent)
        return audio


class _CausalConv(nn.Module):
    """(B, c_in, T) -> (B, c_out, T), each step from its input and the `context` ones before it.

    Source: encodec/modules/conv.py `SConv1d` with causal=True, pad_mode="reflect".
    """

    def __init__(self, c_in: int, c_out: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(c_in, c_out, kernel_size, dilation=dilation)
        self.context = (kernel_size - 1) * dilation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.cat((self.mirror(x), x), dim=-1) if self.context else x)
        return y

    def mirror(self, x: Tensor) -> Tensor:
        """The past before x: x3 x2 x1 | x0 x1 x2 x3, with zeros where x is too short for it."""
        past = x[..., 1 : self.context + 1].flip(-1)
        return F.pad(past, (self.context - past.shape[-1], 0))


class _Upsample(nn.Module):
    """(B, c_in, T) -> (B, c_out, ratio * T), each output from an input and the one before it.

    Source: encodec/modules/conv.py `SConvTranspose1d` with causal=True, trim_right_ratio=1.
    """

    def __init__(self, c_in: int, c_out: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.conv = nn.ConvTranspose1d(c_in, c_out, kernel_size=2 * ratio, stride=ratio)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)  # (B, c_out, ratio * (T + 1)); the tail awaits an input T
        return y[..., : self.ratio * x.shape[-1]]


class _SkipLSTM(nn.Module):
    """(B, C, T) -> (B, C, T): an LSTM over time, its input added to its output.

    Source: encodec/modules/lstm.py `SLSTM`.
    """

    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, num_layers)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1)  # (T, B, C)
        y: Tensor = self.lstm(steps)[0]
        return (y + steps).permute(1, 2, 0)


class _ResidualBlock(nn.Module):
    """(B, C, T) -> (B, C, T): a narrow branch beside a shortcut that is a convolution too.

    Source: encodec/modules/seanet.py `SEANetResnetBlock` with true_skip=False.
    """

    def __init__(self, channels: int, dilation: int, config: CodecConfig) -> None:
        super().__init__()
        hidden = channels // config.compress
        self.block = nn.Sequential(
            nn.ELU(),  # not in place: the shortcut needs the input
            _CausalConv(channels, hidden, config.residual_kernel_size, dilation),
            nn.ELU(inplace=True),
            _CausalConv(hidden, channels, kernel_size=1),
        )
        self.shortcut = _CausalConv(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return y.add_(self.shortcut(x))
