"""Audio to codes: the encoder half of EnCodec at 24 kHz, for codec copies.

    audio   (N,)                      24_000 Hz
      | conv over 7 samples                             (1, 32, N)
      | residual block, ELU, conv that steps 2, 4, 5, 8 (1, 64, N / 2) ... (1, 512, N / 320)
      | LSTM plus its input; ELU, conv over 7 frames    (1, 128, T)       T = ceil(N / 320)
      | of each codebook the nearest row to what those before left over
    codes   (1, K, T)

Bark's own checkpoints hold these weights, and need them for nothing. Parameters have the names of
Hugging Face's EnCodec.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.hub import Source
from ..checkpoint.names import fold_weight_norm
from ..checkpoint.reading import read_any, read_hf
from ..checkpoint.shapes import NoDraws, some
from ..checkpoint.suno_files import find_encodec, is_suno
from ..checkpoint.tensors import State
from ..config import CheckpointError, CodecConfig
from ..files import naming

# facebook's names on the left, Hugging Face's on the right
_RENAMES = (("encoder.model.", "encoder.layers."), (".conv.conv.", ".conv."))


class CodecEncoder(nn.Module):
    """Turns samples into columns, and each column into codes."""

    def __init__(self, config: CodecConfig) -> None:
        """Build it with random weights."""
        super().__init__()
        self.config = config
        self.codebooks = nn.Parameter(
            torch.empty(config.n_codebooks, config.codebook_size, config.hidden_size)
        )
        self.encoder = _SEANet(config)

    def forward(self, audio: Tensor) -> Tensor:
        """Codes (1, K, T) int64 of audio (N,) float32, T = ceil(N / hop_length), N at least 1.

        Source: encodec/model.py `EncodecModel.encode`; encodec/quantization/core_vq.py.
        """
        rest = self.encoder(audio[None, None])[0].T  # (T, D)
        codes = []
        for book in self.codebooks:
            distance = book.square().sum(1) - 2 * rest @ book.T  # but for what all rows share
            codes.append(distance.argmin(1))
            rest = rest - book[codes[-1]]
        return torch.stack(codes)[None]


class _SEANet(nn.Module):
    """(1, 1, N) -> (1, D, T). Source: encodec/modules/seanet.py `SEANetEncoder`."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        channels = config.num_filters
        layers: list[nn.Module] = [_Conv(1, channels, config.kernel_size)]
        for ratio in reversed(config.upsampling_ratios):
            for i in range(config.num_residual_layers):
                layers += [_Residual(channels, config.dilation_growth_rate**i, config)]
            layers += [nn.ELU(), _Conv(channels, 2 * channels, 2 * ratio, ratio)]
            channels *= 2
        layers += [_LSTM(channels, config.num_lstm_layers), nn.ELU()]
        layers += [_Conv(channels, config.hidden_size, config.last_kernel_size)]
        self.layers = nn.Sequential(*layers)

    def forward(self, audio: Tensor) -> Tensor:
        latent: Tensor = self.layers(audio)
        return latent


class _Conv(nn.Module):
    """Each output from inputs at and before it; where there are none, from their mirror image.

    The end is mirrored too, until the last step is whole. Source: encodec/modules/conv.py `SConv1d`
    with causal=True, pad_mode="reflect".
    """

    def __init__(
        self, c_in: int, c_out: int, kernel_size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(c_in, c_out, kernel_size, stride, dilation=dilation)
        self.past = (kernel_size - 1) * dilation + 1 - stride
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        future = -x.shape[-1] % self.stride
        short = max(self.past, future) - x.shape[-1] + 1  # a mirror needs as much to look at
        if short > 0:
            x = F.pad(x, (0, short))
        x = F.pad(x, (self.past, future), mode="reflect")
        y: Tensor = self.conv(x[..., : x.shape[-1] - max(short, 0)])
        return y


class _Residual(nn.Module):
    """Source: encodec/modules/seanet.py `SEANetResnetBlock` with true_skip=False."""

    def __init__(self, channels: int, dilation: int, config: CodecConfig) -> None:
        super().__init__()
        hidden = channels // config.compress
        self.block = nn.Sequential(
            nn.ELU(),
            _Conv(channels, hidden, config.residual_kernel_size, dilation=dilation),
            nn.ELU(),
            _Conv(hidden, channels, 1),
        )
        self.shortcut = _Conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shortcut(x) + self.block(x)
        return y


class _LSTM(nn.Module):
    """Source: encodec/modules/lstm.py `SLSTM`."""

    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, num_layers)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1)  # (T, 1, C)
        y: Tensor = self.lstm(steps)[0] + steps
        return y.permute(1, 2, 0)


def open_encoder(
    name: str | os.PathLike[str],
    config: CodecConfig,
    codebooks: Tensor,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> CodecEncoder:
    """The encoder that a Bark, or an EnCodec, has beside its decoder.

    Args:
        name: hub repository or directory in Hugging Face's or Suno's layout, or facebook's `.th`.
        config: of the decoder.
        codebooks: (K, codebook_size, hidden_size), the decoder's.
        cache_dir: the hub's cache and ours; None is the usual place of each.
        revision: branch, tag or commit on the hub.
        offline: never ask the hub, use what is cached.

    Raises:
        FileNotFoundError: nothing there, or a file is missing.
        CheckpointError: there is no encoder, or it does not fit the decoder.
    """
    source = Source.of(name, cache_dir, revision, offline)
    missing = (
        f"{source.name} has no encoder of its codec, without which there are no codec copies; name "
        "a model that has one, as released: --model suno/bark-small, or facebook/encodec_24khz"
    )
    if source.is_random:
        raise CheckpointError(missing)
    source = source.pinned()
    if is_suno(source) and (codec := find_encodec(source)) is not None:
        source = source.elsewhere(codec).pinned()
    if os.path.isfile(source.path):
        path, flat = source.path, read_any(source.path, cache_dir)[0]
    else:
        path, flat = read_hf(source)
    state = _encoder_state(flat)
    if not state:
        raise CheckpointError(missing)
    with naming(path):
        state = {key: tensor.float() for key, tensor in fold_weight_norm(state).items()}
        with torch.device("meta"), NoDraws():
            encoder = CodecEncoder(config)
        expected = {key: x.shape for key, x in encoder.state_dict().items() if key != "codebooks"}
        if odd := expected.keys() ^ state.keys():
            raise CheckpointError(f"an encoder for this decoder lacks or cannot have {some(odd)}")
        for key, shape in expected.items():
            if state[key].shape != shape:
                got = tuple(state[key].shape)
                raise CheckpointError(f"{key} must have shape {tuple(shape)}, got {got}")
        encoder.load_state_dict(state | {"codebooks": codebooks.float()}, assign=True)
    return encoder.requires_grad_(False).eval()


def _encoder_state(flat: State) -> State:
    found = {}
    for key, tensor in flat.items():
        key = key.removeprefix("codec_model.")
        if key.startswith("encoder."):
            for theirs, ours in _RENAMES:
                key = key.replace(theirs, ours)
            found[key] = tensor
    return found
