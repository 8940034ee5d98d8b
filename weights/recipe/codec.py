"""Step 4: the codec. An encoder and a residual quantizer are trained around minibark's decoder.

    audio (B, 1, N) -> encoder (B, D, N / 320) -> 8 codebooks, each of what those before left over
                    -> CodecDecoder's SEANet -> audio

The losses are EnCodec's without its discriminator: log-mel distances at several window lengths and
the commitment of the encoder to its codes. Added are distances of single harmonics, of the cepstra
that recognisers of speech are given and, in place of the whole wave, of the wave's fundamental:
without it the phase, and with it the pitch of a high voice, is lost. The distance of the complex
STFT counts little: where a phase cannot be foretold, a weaker sound is nearer. Codebooks are
running means of what falls to them; entries that nothing falls to are moved to where something
does. In the last steps encoder and codebooks stand still, so that `codes.py` and the GPTs can go on
with them while the decoder is polished.

A checkpoint has no encoder. With `--start-from` a new one is trained, at first alone
(`--encoder-first`), around a decoder and codebooks that are there already.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tiny import VOICES, Data, tiny_config, work_argument
from torch import Tensor, nn
from training import Batch, Losses, train, training_arguments

from minibark.checkpoint.layouts import open_checkpoint
from minibark.codec import CodecDecoder
from minibark.config import CodecConfig

CROP = 9_600  # samples: 0.4 s, 30 frames
N_WARM = 250  # steps without the quantizer
NUMBERS = 0.2  # share of crops out of sentences about figures
ENCODER_FILTERS = 16
_WINDOWS = (256, 512, 1024, 2048)
_FLOOR = 3e-4  # of a mel band: below it is silence, which must not rule the loss
_EAR_WINDOW, _EAR_HOP, _EAR_FFT = 615, 240, 768  # samples: 25.6 ms every 10 ms
_EAR_FLOOR = 1e-6  # of a band's power, about -60 dB of full scale


def main() -> None:
    """Run the step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work_argument(parser)
    training_arguments(parser, steps=8700, rate=1.5e-3)
    parser.add_argument("--crops", type=int, default=12, help="per step (default: %(default)s)")
    parser.add_argument(
        "--polish", type=int, default=400, help="last steps, of the decoder alone (%(default)s)"
    )
    parser.add_argument(
        "--encoder-first", type=int, default=0, metavar="N",
        help="first steps, of the encoder alone, as a checkpoint has none (%(default)s)",
    )  # fmt: skip
    args = parser.parse_args()
    data = Data.load(args.work)
    chosen = data.of_split("train")[:12_000]
    # The high voice twice: its phase is the harder to keep.
    chosen += [i for i in chosen if data.sentences[i]["voice"] == list(VOICES)[1]]
    torch.manual_seed(0)
    codec = Codec(
        tiny_config(1, 1).codec, freeze_at=args.steps - args.polish, begin_at=args.encoder_first
    )
    if args.start_from:
        codec.start_from(args.start_from)
    mels, cepstra = [_mel_filters(window) for window in _WINDOWS], Cepstra()
    numbers = [i for i in chosen if data.sentences[i]["kind"] == "numbers"]

    def batch(step: int) -> Batch:
        rng = np.random.default_rng(step)
        crops = []
        while len(crops) < args.crops:
            some = numbers if rng.random() < NUMBERS else chosen
            audio = data.samples(some[rng.integers(len(some))])
            first = rng.integers(0, max(1, len(audio) - CROP))
            crop = audio[first : first + CROP]
            if np.abs(crop).max(initial=0) > 0.01:
                crops.append(np.pad(crop, (0, CROP - len(crop))))
        return torch.from_numpy(np.stack(crops)), torch.tensor(step)

    def losses(model: nn.Module, batch: Batch) -> Losses:
        audio, step = batch
        out, commitment, mel_guess = model(audio[:, None], int(step))
        return distances(audio, out[:, 0].float(), commitment, mel_guess.float(), mels, cepstra)

    dev = [batch(10**8 + i) for i in range(4)]
    dev = [(audio, torch.tensor(10**8)) for audio, _ in dev]
    train(
        "codec",
        codec,
        batch,
        losses,
        args.work,
        args,
        validation=dev,
        betas=(0.8, 0.99),
        average=0.998,
    )


class Encoder(nn.Module):
    """(B, 1, 320 T) -> (B, D, T): strided convolutions, twice as many channels each time."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        channels = ENCODER_FILTERS
        layers: list[nn.Module] = [nn.Conv1d(1, channels, 7, padding=3)]
        for ratio in reversed(config.upsampling_ratios):
            layers += [
                nn.ELU(),
                nn.Conv1d(channels, 2 * channels, 2 * ratio, ratio, padding=(ratio + 1) // 2),
                _Residual(2 * channels),
            ]
            channels *= 2
        layers += [nn.ELU(), nn.Conv1d(channels, config.hidden_size, 5, padding=2)]
        self.layers = nn.Sequential(*layers)
        self.hop = config.hop_length

    def forward(self, audio: Tensor) -> Tensor:
        """The latent, one column a frame."""
        latent: Tensor = self.layers(audio)
        return latent[..., : audio.shape[-1] // self.hop]


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ELU(), nn.Conv1d(channels, channels // 2, 3, padding=1),
            nn.ELU(), nn.Conv1d(channels // 2, channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Quantizer(nn.Module):
    """Residual vector quantization; the codebooks follow the data by running means."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        shape = (config.n_codebooks, config.codebook_size)
        self.register_buffer("books", torch.zeros(*shape, config.hidden_size))
        self.register_buffer("sums", torch.zeros(*shape, config.hidden_size))
        self.register_buffer("counts", torch.zeros(*shape))
        self.books: Tensor
        self.sums: Tensor
        self.counts: Tensor

    def encode(self, latent: Tensor) -> Tensor:
        """Codes (B, K, T) of a latent (B, D, T)."""
        rest = latent.float().transpose(1, 2)
        codes = []
        for book in self.books:
            code = torch.cdist(rest, book).argmin(-1)
            rest = rest - F.embedding(code, book)
            codes.append(code)
        return torch.stack(codes, dim=1)

    def forward(self, latent: Tensor, learn: bool) -> tuple[Tensor, Tensor]:
        """The quantized latent, with 1 to K codebooks at random in training, and its distance."""
        flat = latent.float().transpose(1, 2)  # (B, T, D)
        rest, total = flat.detach(), torch.zeros_like(flat)
        n_books = len(self.books)
        kept = torch.full((len(flat), 1, 1), n_books)
        if self.training:
            some = torch.tensor([1, 2, 2, 3, 4, 6, 8, 8])
            kept = some[torch.randint(len(some), (len(flat), 1, 1))]
        for k in range(n_books):
            code = torch.cdist(rest, self.books[k]).argmin(-1)
            if learn:
                self._follow(k, rest.flatten(0, 1), code.flatten())
            entry = F.embedding(code, self.books[k])
            total = total + entry * (k < kept)
            rest = rest - entry
        commitment = F.mse_loss(flat, total.detach())
        return (flat + (total - flat).detach()).transpose(1, 2), commitment

    @torch.no_grad()
    def _follow(self, k: int, x: Tensor, code: Tensor, decay: float = 0.99) -> None:
        onehot = F.one_hot(code, self.books.shape[1]).float()
        self.counts[k].mul_(decay).add_(onehot.sum(0), alpha=1 - decay)
        self.sums[k].mul_(decay).add_(onehot.T @ x, alpha=1 - decay)
        dead = self.counts[k] < 0.02
        n_dead = int(dead.sum())
        if n_dead:
            fresh = x[torch.randint(len(x), (n_dead,))]
            self.sums[k, dead], self.counts[k, dead] = fresh, 1.0
        self.books[k] = self.sums[k] / self.counts[k][:, None]

    @torch.no_grad()
    def fit(self, x: Tensor, anew: bool) -> None:
        """K-means of latents x (n, D), one codebook after the other, from where they stand or anew.

        Running means follow few frames at a time and keep on trembling; this gives them rest.
        """
        for k in range(len(self.books)):
            book = self.books[k]
            if anew:
                book = x[torch.randperm(len(x))[: self.books.shape[1]]].clone()
            for _ in range(12 if anew else 6):
                code = torch.cdist(x, book).argmin(-1)
                counts = torch.bincount(code, minlength=len(book)).float()
                sums = torch.zeros_like(book).index_add_(0, code, x)
                empty = counts == 0
                sums[empty], counts[empty] = x[torch.randint(len(x), (int(empty.sum()),))], 1
                book = sums / counts[:, None]
            self.books[k], self.sums[k], self.counts[k] = book, book, 1.0
            x = x - F.embedding(torch.cdist(x, book).argmin(-1), book)


class Codec(nn.Module):
    """Encoder, quantizer and minibark's decoder."""

    def __init__(self, config: CodecConfig, freeze_at: int, begin_at: int = 0) -> None:
        super().__init__()
        self.encoder, self.quantizer = Encoder(config), Quantizer(config)
        decoder = CodecDecoder(config)
        self.decoder = decoder.decoder
        self.guess = nn.Conv1d(config.hidden_size, 80, 1)  # latent -> log-mel, against collapse
        self.freeze_at, self.begin_at = freeze_at, begin_at
        self.has_books = False  # from elsewhere
        self.recent: list[Tensor] = []
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
                fan_in = module.weight[0].numel()
                if isinstance(module, nn.ConvTranspose1d):
                    fan_in = module.weight.shape[0] * 2  # two inputs reach an output
                nn.init.normal_(module.weight, std=fan_in**-0.5)
                nn.init.zeros_(module.bias)

    def start_from(self, checkpoint: Path) -> None:
        """Take decoder and codebooks from a checkpoint; it has no encoder."""
        state = open_checkpoint(checkpoint).parameters("codec", torch.float32)
        books = state.pop("codebooks")
        self.decoder.load_state_dict(
            {name.removeprefix("decoder."): x for name, x in state.items()}
        )
        self.quantizer.books.copy_(books)
        self.quantizer.sums.copy_(books)
        self.quantizer.counts.fill_(1.0)
        self.has_books = True

    def forward(self, audio: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Audio, commitment and the guessed log-mel, at a step of training."""
        frozen = step >= self.freeze_at and self.training
        if self.training:
            self.decoder.requires_grad_(step >= self.begin_at)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            latent = self.encoder(audio)
        for_start = N_WARM - 60 <= step < N_WARM and not self.has_books
        if self.training and (for_start or 0 < self.freeze_at - step <= 500):
            self.recent.append(latent.detach().float().transpose(1, 2).flatten(0, 1))
        commitment = latent.new_zeros(())
        guess = self.guess(latent)
        if step >= N_WARM:
            starting = step == N_WARM and not self.has_books
            if self.training and self.recent and (starting or step == self.freeze_at):
                self.quantizer.fit(torch.cat(self.recent), anew=starting)
                self.recent.clear()
            learn = self.training and self.begin_at <= step < self.freeze_at
            latent, commitment = self.quantizer(latent, learn)
        return self.decoder(latent), commitment, guess


def _mel_filters(
    window: int, n_mels: int = 80, low_hz: float = 0, high_hz: float = 12_000
) -> Tensor:
    """Triangles (n_frequencies, n_mels), HTK's mel scale; fewer in short windows."""
    n_mels = min(n_mels, window // 12)
    low_mel, high_mel = (2595 * np.log10(1 + hz / 700) for hz in (low_hz, high_hz))
    edges_mel = np.linspace(low_mel, high_mel, n_mels + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    bins = np.linspace(0, 12_000, window // 2 + 1)
    rise = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return torch.from_numpy(np.maximum(0, np.minimum(rise, fall))).float()


class Cepstra(nn.Module):
    """What recognisers of speech are given: 13 cepstra of 25 mel bands, every 10 ms.

    Source: the features of pocketsphinx's English model (feat.params), without its lifter and its
    removal of noise.
    """

    def __init__(self) -> None:
        super().__init__()
        n_bands, n_cepstra = 25, 13
        self.register_buffer("filters", _mel_filters(_EAR_FFT, n_bands, 130, 6800))
        phase = np.pi / n_bands * (np.arange(n_bands)[:, None] + 0.5) * np.arange(n_cepstra)
        cosines = np.cos(phase) * np.sqrt(2 / n_bands)
        cosines[:, 0] /= np.sqrt(2)
        self.register_buffer("cosines", torch.from_numpy(cosines).float())
        self.register_buffer("window", torch.hamming_window(_EAR_WINDOW))
        self.filters: Tensor
        self.cosines: Tensor
        self.window: Tensor

    def forward(self, audio: Tensor) -> Tensor:
        """(B, N) -> (B, N // 240 + 1, 13)."""
        spectrum = torch.stft(
            audio, _EAR_FFT, _EAR_HOP, _EAR_WINDOW, window=self.window, return_complex=True
        )
        power = (spectrum.real**2 + spectrum.imag**2) / _EAR_WINDOW
        with torch.autocast(audio.device.type, enabled=False):
            bands = power.transpose(1, 2) @ self.filters
            return (bands + _EAR_FLOOR).log() @ self.cosines

    def distance(self, audio: Tensor, out: Tensor) -> Tensor:
        """Mel-cepstral distortion, of the cepstra and of their change within 40 ms."""
        difference = self(out) - self(audio)
        change = difference[:, 4:] - difference[:, :-4]
        lengths = [((x**2).sum(-1) + 1e-4).sqrt().mean() for x in (difference, change)]
        return lengths[0] + 0.5 * lengths[1]


def distances(
    audio: Tensor,
    out: Tensor,
    commitment: Tensor,
    guess: Tensor,
    mels: list[Tensor],
    cepstra: Cepstra,
) -> Losses:
    """All losses between audio (B, N) and what came out."""
    mel_loss = phase_loss = line_loss = guess_loss = audio.new_zeros(())
    for window, filters in zip(_WINDOWS, mels, strict=True):
        true, made = (
            torch.stft(
                x, window, window // 4, window=torch.hann_window(window), return_complex=True
            )
            / window**0.5
            for x in (audio, out)
        )
        true_mag, made_mag = true.abs(), (made.real**2 + made.imag**2 + 1e-12).sqrt()
        true_mel, made_mel = (
            (m.transpose(1, 2) @ filters).clamp_min(_FLOOR).log() for m in (true_mag, made_mag)
        )
        mel_loss = mel_loss + F.l1_loss(made_mel, true_mel) / len(_WINDOWS)
        difference = made - true
        # Compressed by the magnitude, so that weak frequencies count as well.
        weight = 1 / (true_mag + 0.02).sqrt()
        distance = (difference.real**2 + difference.imag**2 + 1e-12).sqrt()
        phase_loss = phase_loss + (distance * weight).mean() / len(_WINDOWS)
        if window >= 1024:  # long enough to tell the harmonics of a voice apart
            true_line, made_line = (m.clamp_min(_FLOOR).log() for m in (true_mag, made_mag))
            line_loss = line_loss + F.l1_loss(made_line, true_line) / 2
        if window == 1024:
            frames = F.interpolate(true_mel.transpose(1, 2), guess.shape[-1])
            guess_loss = F.l1_loss(guess, frames)
    # The fundamental, with its phase: what is left below 400 Hz or so.
    true_low, made_low = (F.avg_pool1d(x[:, None], 48, 8) for x in (audio, out))
    strength = true_low.abs().mean(-1, keepdim=True) + 0.005
    low_loss = ((made_low - true_low).abs() / strength).mean()
    ear_loss = cepstra.distance(audio, out)
    loss = mel_loss + 0.4 * line_loss + 0.1 * phase_loss + low_loss + 0.2 * ear_loss
    return {
        "loss": loss + 0.05 * guess_loss + 0.05 * commitment,
        "mel": mel_loss.detach(),
        "line": line_loss.detach(),
        "phase": phase_loss.detach(),
        "low": low_loss.detach(),
        "ear": ear_loss.detach(),
        "commitment": commitment.detach(),
    }


if __name__ == "__main__":
    main()
