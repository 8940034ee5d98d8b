"""The detector: features as transformers', resampling as its formula says, every kind of sound."""

import errno
import io
import json
import math
import os
import pickle
import subprocess
import sys
import threading

import hubert_checkpoints as made
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from scipy.signal import resample_poly
from sklearn.linear_model import LogisticRegression

from minibark import CheckpointError
from minibark.commands.main import main
from minibark.detect import AudioError, Classifier, Detector, Judgement
from minibark.detect.mpeg import count_frames
from minibark.detect.pretrained import open_hubert
from minibark.detect.recordings import opened, read, share
from minibark.detect.resample import resample

WIDTH = made.SMALL["hidden_size"]
HISS = (0.02, 0.1)  # of the two classes of sounds


def sound(seconds: float, rate: int = 16_000, seed: int = 0, hiss: float = 0.02) -> np.ndarray:
    """A gliding tone in noise, (N,) float32."""
    time_s = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, hiss, len(time_s))
    return (0.3 * np.sin(2 * np.pi * (200 + 150 * time_s) * time_s) + noise).astype(np.float32)


def theirs(audio: np.ndarray, model=None) -> torch.Tensor:
    """(T, C): what transformers' model gives behind its sixth layer."""
    with torch.inference_mode():
        model = model or made.small_hubert()
        out = model(torch.from_numpy(audio)[None], output_hidden_states=True)
    return out.hidden_states[6][0]


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    return made.save_hubert(tmp_path_factory.mktemp("hubert") / "small")


@pytest.fixture(scope="module")
def trained(hubert, tmp_path_factory):
    """A scikit-learn classifier of the small HuBERT's features, and its import."""
    is_hoarse = np.arange(12) % 2
    clips = [sound(0.5, seed=i, hiss=HISS[kind]) for i, kind in enumerate(is_hoarse)]
    x = np.stack([theirs(clip).mean(0).numpy() for clip in clips])
    model = LogisticRegression(C=100).fit(x, is_hoarse)
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "classifier.pkl").write_bytes(pickle.dumps(model))
    out = folder / "classifier.safetensors"
    assert main(["detect", "--import-classifier", str(folder / "classifier.pkl"), str(out)]) == 0
    return model, out


@pytest.fixture(scope="module")
def detector(hubert, trained):
    return Detector.from_pretrained(hubert, trained[1])


# ---- features ----


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("old", [False, True], ids=["parametrizations", "weight_g"])
def test_features_are_transformers_(kind, old, tmp_path):
    folder = made.save_hubert(tmp_path / "hubert", kind=kind, old=old)
    ours = open_hubert(folder, cache_dir=tmp_path / "cache")
    assert len(ours.encoder.layers) == 6
    for n in (400, 401, 719, 720, 16_000):
        audio = sound(n / 16_000)
        expected = theirs(audio)
        found = ours(torch.from_numpy(audio)[None])[0]
        assert expected.std() > 0.1 and expected.shape == found.shape
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.torture
def test_features_of_base_are_transformers_(tmp_path):
    model = made.random_hubert()
    ours = open_hubert(made.save_hubert(tmp_path / "base", model))
    assert sum(x.numel() for x in model.state_dict().values()) > 94_000_000
    assert abs(sum(x.numel() for x in ours.state_dict().values()) - 51.8e6) < 0.1e6
    for n in (400, 401, 16_000, 160_123):
        audio = sound(n / 16_000)
        found = ours(torch.from_numpy(audio)[None])[0]
        torch.testing.assert_close(found, theirs(audio, model), atol=1e-4, rtol=0)


def test_tensors_stay_mapped(hubert):
    maps = "/proc/self/maps"
    if not os.path.exists(maps):
        pytest.skip("needs /proc")
    ours = open_hubert(hubert)
    with open(maps) as file:
        ends = [line.split()[0].split("-") for line in file if str(hubert) in line]
    places = [(int(low, 16), int(high, 16)) for low, high in ends]
    pointer = ours.encoder.layers[5].feed_forward.output_dense.weight.data_ptr()
    assert any(low <= pointer < high for low, high in places)


def test_in_parts_and_in_half_precision(tmp_path):
    folder = tmp_path / "hubert"
    made.small_hubert().save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    audio = torch.from_numpy(sound(0.3))[None]
    whole = open_hubert(made.save_hubert(tmp_path / "whole"))(audio)
    assert torch.equal(open_hubert(folder)(audio), whole)
    half = made.save_hubert(tmp_path / "half")
    state = {name: x.half() for name, x in made.small_hubert().state_dict().items()}
    save_file(state, half / "model.safetensors")
    assert 0 < (open_hubert(half)(audio) - whole).abs().max() < 0.1


def test_the_notebook_s_path(detector, trained):
    """Its steps with the libraries that it uses, each of ours against them."""
    model, _ = trained
    answers = set()
    for seed in range(12):
        audio = sound(0.5, 24_000, seed, HISS[seed % 2])
        features = detector.features(audio, 24_000)
        assert features.shape == (WIDTH,) and features.dtype == np.float32
        heard = resample(torch.from_numpy(audio), 24_000, 16_000).numpy()
        np.testing.assert_allclose(features, theirs(heard).mean(0).numpy(), atol=1e-4)
        expected = model.predict_proba(features[None].astype(np.float64))[0, 1]
        found = detector.probability(audio, 24_000)
        assert abs(found - expected) < 1e-6
        at_16_khz = sound(0.5, seed=seed, hiss=HISS[seed % 2])
        verdict = model.predict(theirs(at_16_khz).mean(0).numpy()[None])[0]
        assert (detector.probability(at_16_khz, 16_000) >= 0.5) == verdict
        answers.add(bool(verdict))
    assert answers == {True, False}


# ---- resampling ----


def by_definition(audio: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Each new sample as the sum over all old ones that the windowed sinc's formula says."""
    cutoff_hz = 0.99 * min(rate, new_rate)
    n = math.ceil(len(audio) * new_rate / rate)
    zeros = (np.arange(len(audio)) / rate - np.arange(n)[:, None] / new_rate) * cutoff_hz
    window = np.where(abs(zeros) < 6, np.cos(np.pi * zeros / 12) ** 2, 0)
    return (np.sinc(zeros) * window) @ audio.astype(np.float64) * cutoff_hz / rate


RATES = (8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000)


@pytest.mark.parametrize("rate", RATES)
def test_resampling_is_its_formula(rate):
    for n in (1, 2, 3, 500):
        audio = np.random.default_rng(n).normal(0, 0.3, n).astype(np.float32)
        for a, b in ((rate, 16_000), (16_000, rate)):
            found = resample(torch.from_numpy(audio), a, b).numpy()
            np.testing.assert_allclose(found, by_definition(audio, a, b), atol=1e-5)


def test_the_filter_from_24_to_16_khz_has_two_phases_of_23_taps():
    audio = torch.zeros(101)
    audio[51] = 1  # at a new sample: 51 * 2 / 3 = 34
    taps = resample(audio, 24_000, 16_000)
    assert len(taps) == 68 and (taps.abs() > 1e-9).sum() < 16
    assert abs(float(taps[34]) - 0.66) < 1e-6  # 0.99 * 2 / 3
    torch.testing.assert_close(taps[34 - 7 : 34], taps[35 : 35 + 7].flip(0))


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100, 48_000])
def test_a_sine_is_scipy_s(rate):
    common = math.gcd(rate, 16_000)
    sine = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    expected = resample_poly(sine, 16_000 // common, rate // common)
    found = resample(torch.from_numpy(sine), rate, 16_000).numpy()
    assert found.shape == expected.shape
    assert abs(found - expected)[500:-500].max() < 5e-3


def test_rates_without_a_common_divisor_take_little():
    audio = torch.from_numpy(sound(0.05, 191_999))
    found = resample(audio, 191_999, 16_000)
    expected = by_definition(audio.numpy(), 191_999, 16_000)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


# ---- sounds ----

SOUNDS = {
    "8-bit.wav": (16_000, 1, "PCM_U8"),
    "stereo.wav": (44_100, 2, "PCM_16"),
    "24-bit.flac": (48_000, 1, "PCM_24"),
    "float.wav": (24_000, 3, "FLOAT"),
    "telephone.wav": (8_000, 1, "ULAW"),
    "fast.wav": (192_000, 1, "PCM_16"),
    "vorbis.ogg": (22_050, 1, "VORBIS"),
    "opus.opus": (48_000, 1, "OPUS"),
    "layer3.mp3": (24_000, 1, "MPEG_LAYER_III"),
    "amiga.aiff": (11_025, 1, "PCM_16"),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_any_format_and_rate(name, detector, tmp_path):
    rate, channels, subtype = SOUNDS[name]
    audio = np.stack([sound(0.6, rate, seed) for seed in range(channels)], axis=1)
    kind = "OGG" if name.endswith("opus") else None
    soundfile.write(tmp_path / name, audio, rate, subtype, format=kind)
    found = detector.judge(tmp_path / name)
    stored, _ = soundfile.read(tmp_path / name, dtype="float32", always_2d=True)
    assert abs(found.probability - detector.probability(stored, rate)) < 1e-6
    assert 0 < found.probability < 1 and abs(found.seconds - 0.6) < 0.1
    mean = stored.mean(1)
    assert abs(detector.probability(mean, rate) - found.probability) < 1e-6


def test_a_half_is_neither():
    assert "could be Bark or not" in Judgement(0.5, (0.5,), 1.0, (0.0,)).verdict
    assert "does not sound" in Judgement(0.4999, (0.4999,), 1.0, (0.0,)).verdict


def test_silence_has_a_number(detector, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000, np.float32), 16_000)
    assert 0 <= detector.judge(tmp_path / "a.wav").probability <= 1


def test_long_files_are_equal_windows_and_their_mean(detector, tmp_path):
    audio = sound(25.3, 8_000)
    soundfile.write(tmp_path / "long.wav", audio, 8_000, "FLOAT")
    found = detector.judge(tmp_path / "long.wav")
    assert len(found.windows) == 3 and found.seconds == pytest.approx(25.3)
    size = share(len(audio), 8_000)
    assert 2 * size < len(audio) <= 3 * size and size <= 80_000
    parts = [audio[i : i + size] for i in range(0, len(audio), size)]
    each = [detector.probability(part, 8_000) for part in parts]
    assert found.windows == tuple(each) and len(set(each)) == 3
    assert found.probability == pytest.approx(np.mean(each))
    assert found.highest == (max(each), each.index(max(each)) * size / 8_000)
    assert found.starts == (0, size / 8_000, 2 * size / 8_000)
    assert detector.probability(audio, 8_000) == found.probability
    rows = np.stack([detector.features(part, 8_000) for part in parts])
    np.testing.assert_allclose(detector.features(audio, 8_000), rows.mean(0), atol=1e-6)


def test_ten_seconds_are_one_window():
    assert share(160_000, 16_000) == 160_000
    assert share(160_001, 16_000) == 80_001
    assert share(0, 16_000) == share(1, 16_000) == 1


BAD_AUDIO = {
    "one sample": (np.zeros(1, np.float32), 16_000, "shorter than 25 ms"),
    "no sample": (np.zeros(0, np.float32), 16_000, "shorter than 25 ms"),
    "nearly enough": (np.zeros(399, np.float32), 16_000, "shorter than 25 ms"),
    "NaN": (np.full(9_000, np.nan, np.float32), 16_000, "NaN"),
    "infinity": (np.full(9_000, np.inf, np.float32), 16_000, "NaN or infinity"),
    "far too loud": (sound(0.5) * np.float32(1e30), 16_000, r"far outside \[-1, 1\]"),
    "whole numbers": (np.zeros(9_000, np.int16), 16_000, "floats"),
    "three dimensions": (np.zeros((9_000, 1, 1), np.float32), 16_000, "floats"),
    "turned": (np.zeros((2, 9_000), np.float32), 16_000, "channels"),
    "slow": (np.zeros(9_000, np.float32), 100, "sample rate"),
    "fast": (np.zeros(9_000, np.float32), 10**6, "sample rate"),
}


@pytest.mark.parametrize("case", BAD_AUDIO)
def test_bad_audio_is_named(case, detector):
    audio, rate, text = BAD_AUDIO[case]
    for call in (detector.features, detector.probability):
        with pytest.raises(AudioError, match=text):
            call(audio, rate)


def wav(audio: np.ndarray, rate: int = 16_000, subtype: str = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, subtype, format="WAV")
    return buffer.getvalue()


BAD_FILES = {
    "empty": (b"", "it is empty"),
    "text": (b"<html>" * 99, "damaged, or no audio"),
    "header alone": (wav(sound(1))[:44], "damaged, or no audio|no sound"),
    "no samples": (wav(np.zeros(0, np.float32)), "no sound"),
    "one sample": (wav(np.zeros(1, np.float32)), "shorter than 25 ms"),
    "NaN": (wav(np.full(9_000, np.nan, np.float32)), "NaN"),
    "1 Hz": (wav(np.zeros(9_000, np.float32), 1), "sample rate must be in"),
    "65 channels": (wav(np.zeros((900, 65), np.float32)), "channels"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_one_line_that_names_them(case, detector, hubert, trained, tmp_path, capsys):
    content, text = BAD_FILES[case]
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=rf"bad\.wav: .*({text})"):
        detector.judge(path)
    assert main(detect(hubert, trained, path)) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1 and "bad.wav" in shown.err


def test_samples_without_a_header_are_no_audio(detector, tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(99_999))
    with pytest.raises(AudioError, match=r"a\.raw: damaged, or no audio"):
        detector.judge(tmp_path / "a.raw")
    for nothing in ("", io.BytesIO(), Pipe()):
        with pytest.raises(AudioError, match=r"'' is no recording|^the recording: it is empty"):
            detector.judge(nothing)
    with pytest.raises(AudioError, match="is a folder"):
        detector.judge(tmp_path)
    with pytest.raises(FileNotFoundError):
        detector.judge(tmp_path / "none.wav")


def test_a_damaged_header_takes_no_memory(detector, tmp_path):
    """It promises 2^31 samples, and there are 9,000."""
    whole = bytearray(wav(sound(9_000 / 16_000), subtype="PCM_16"))
    at = whole.index(b"data") + 4
    whole[at : at + 4] = b"\xfe\xff\xff\x7f"
    (tmp_path / "a.wav").write_bytes(whole)
    assert detector.judge(tmp_path / "a.wav").seconds == pytest.approx(9_000 / 16_000)


FORMATS = {
    "WAV": "PCM_16",
    "RF64": "PCM_16",
    "W64": "PCM_16",
    "AIFF": "PCM_16",
    "AU": "PCM_16",
    "FLAC": "PCM_16",
    "OGG": "VORBIS",
    "MP3": "MPEG_LAYER_III",
}


@pytest.mark.parametrize("kind", FORMATS)
def test_what_was_cut_off_is_said(kind, detector, tmp_path):
    path = tmp_path / "a"
    soundfile.write(path, sound(4), 16_000, FORMATS[kind], format=kind)
    whole = path.read_bytes()
    assert detector.judge(path).seconds == pytest.approx(4)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AudioError, match=r"a: .*(it says 4\.0 s and has [12]\.|last page|damaged)"):
        detector.judge(path)


def test_a_damaged_mp3_is_said(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, sound(4), 16_000)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 900] = bytes(900)
    path.write_bytes(whole)
    with opened(path) as file, pytest.raises(AudioError, match="damaged"):
        list(read(file))


def test_an_mp3_of_which_only_a_part_can_be_read_is_refused(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, sound(12, 24_000), 24_000)
    frames = path.read_bytes()[192:]  # without the first, which says how many there are
    assert frames[:2] == b"\xff\xf3"
    path.write_bytes(frames)
    with opened(path) as file, pytest.raises(AudioError, match="does not say how long it is, and"):
        list(read(file))


class Pipe(io.BytesIO):
    """Bytes that come once."""

    def seekable(self) -> bool:
        return False


def heard_s(content: bytes, kind: type[io.BytesIO] = io.BytesIO) -> float:
    """How many seconds of a recording are heard."""
    pieces = list(read(kind(content)))
    return sum(len(audio) for audio, _ in pieces) / pieces[0][1]


def encoded(kind: str, seconds: float, subtype: str | None = None, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    audio = sound(seconds, 24_000, seed)
    soundfile.write(buffer, audio, 24_000, subtype or FORMATS.get(kind), format=kind)
    return buffer.getvalue()


JOINED = ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3", "MAT4", "SVX"]


@pytest.mark.parametrize("source", [io.BytesIO, Pipe])
@pytest.mark.parametrize("kind", [*JOINED, "OPUS"])
def test_joined_recordings_are_refused_by_name(kind, source):
    kind, subtype = ("OGG", "OPUS") if kind == "OPUS" else (kind, FORMATS.get(kind, "PCM_16"))
    first, second = encoded(kind, 3, subtype), encoded(kind, 0.5, subtype, 1)
    assert heard_s(first, source) == pytest.approx(3, abs=1e-3)
    tag = b"ID3\x04\0\0\0\0\x01\0" + bytes(128)
    for between in (b"", tag, bytes(2_000_000)):  # two megabytes: more than is looked at together
        with pytest.raises(AudioError, match=r"several recordings in one file \(.*ffmpeg"):
            heard_s(first + between + second, source)


@pytest.mark.parametrize("source", [io.BytesIO, Pipe])
def test_a_damaged_chunk_is_no_failure_of_the_file(source):
    """libsndfile asks for the byte in front of the first."""
    with pytest.raises(AudioError, match="damaged, or no audio"):
        heard_s(encoded("AIFF", 1).replace(b"SSND", b"\xff" * 4), source)


def pages(stream: bytes) -> list[bytes]:
    """The pages of an Ogg."""
    found, at = [], 0
    while at < len(stream):
        end = at + 27 + stream[at + 26] + sum(stream[at + 27 : at + 27 + stream[at + 26]])
        found.append(stream[at:end])
        at = end
    return found


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_one_ogg_with_two_streams_side_by_side_is_refused(subtype):
    first, second = (pages(encoded("OGG", 3, subtype, seed)) for seed in (0, 1))
    both = b"".join(page for pair in zip(first, second, strict=False) for page in pair)
    with pytest.raises(AudioError, match="several recordings in one file"):
        heard_s(both)


def test_joined_mp3s_of_which_one_says_no_length():
    """The second lacks the frame that says how many there are."""
    first, second = encoded("MP3", 3), encoded("MP3", 0.5)
    with pytest.raises(AudioError, match="first says that it has 127 frames, and there are 150"):
        heard_s(first + second[192:])
    for rest in (b"TAG".ljust(128, b"\0"), b"\xff\xfb\x90\0" * 9_000, bytes(5_000)):
        assert heard_s(first + rest) == 3  # what is no frame is no recording


@pytest.mark.parametrize("rate", [8_000, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
def test_frames_are_those_that_the_encoder_counted(rate):
    for level in (0.0, 0.9):
        buffer = io.BytesIO()
        soundfile.write(buffer, sound(2, rate), rate, format="MP3", compression_level=level)
        found = count_frames(buffer)
        assert found.n == found.n_said and 2 <= found.seconds < 2.4


@pytest.mark.parametrize(
    ("header", "size"), [("ffffc4c4", 384), ("fffda4c4", 576), ("fff584c4", 384), ("fff784c4", 256)]
)
def test_frames_of_layers_1_and_2_are_as_long_as_libsndfile_hears(header, size):
    """Layer I at 48 kHz, II at 48 kHz, II at 24 kHz, I at 24 kHz; a zero in all says silence."""
    stream = io.BytesIO(bytes.fromhex(header).ljust(size, b"\0") * 50)
    with soundfile.SoundFile(stream) as file:
        seconds = len(file.read()) / file.samplerate
    found = count_frames(stream)
    assert found.n == 50 and found.n_said is None
    assert found.seconds == pytest.approx(seconds)


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF, 0x7FFF_F000])
@pytest.mark.parametrize("source", [io.BytesIO, Pipe])
def test_a_stream_need_not_know_its_length(size, source, detector):
    stream = bytearray(wav(sound(1.5), subtype="PCM_16"))
    at = stream.index(b"data") + 4
    whole = detector.judge(source(bytes(stream)))
    stream[at : at + 4] = size.to_bytes(4, "little")
    assert detector.judge(source(bytes(stream))) == whole and whole.seconds == 1.5


def unknown_sizes() -> dict[str, bytes]:
    """Recordings of 1.5 s whose writers did not come to put the size in."""
    found = {}
    for kind, at, sizes in (
        ("WAV", b"data", [bytes(4)]),
        ("AU", b"\0\0\0\x18", [bytes(4), b"\xff" * 4]),
        ("CAF", b"data", [bytes(8), b"\xff" * 8, b"\0" * 7 + b"\x04"]),
        ("W64", b"data\xf3\xac\xd3\x11\x8c\xd1\0\xc0\x4f\x8e\xdb\x8a", [bytes(8)]),
        ("RF64", b"ds64" + bytes.fromhex("1c000000") + bytes.fromhex("a8190100") + bytes(4), []),
    ):
        stream = bytearray(encoded(kind, 1.5, "PCM_16"))
        place = stream.index(at[:4] if kind == "RF64" else at) + len(at)
        for size in sizes or [bytes(8)]:
            stream[place : place + len(size)] = size
            found[f"{kind} {size.hex()}"] = bytes(stream)
    return found


@pytest.mark.parametrize("source", [io.BytesIO, Pipe])
@pytest.mark.parametrize("case", unknown_sizes())
def test_a_recorder_that_was_interrupted(case, source):
    stream = unknown_sizes()[case]
    expected, _ = soundfile.read(io.BytesIO(encoded("WAV", 1.5, "PCM_16")), dtype="float32")
    found = np.concatenate([audio[:, 0] for audio, _ in read(source(stream))])
    np.testing.assert_array_equal(found, expected)


def test_an_empty_wav_with_a_list_behind_is_empty():
    stream = bytearray(wav(np.zeros(0, np.float32), subtype="PCM_16"))
    stream += b"LIST\x04\0\0\0INFO" * 200
    for source in (io.BytesIO, Pipe):
        with pytest.raises(AudioError, match="it holds no sound"):
            heard_s(bytes(stream), source)


@pytest.mark.parametrize("source", [io.BytesIO, Pipe])
@pytest.mark.parametrize("bits", [8, 16, 24])
@pytest.mark.parametrize("kind", [b"AIFF", b"AIFC"])
def test_an_aiff_as_sox_writes_it_to_a_pipe(kind, bits, source):
    """It says 0x7F00_0000 bytes, less what is no whole frame."""
    width, n_channels = bits // 8, 2
    n_frames = 0x7F00_0000 // (width * n_channels)
    size = n_frames * width * n_channels
    frames = np.random.default_rng(0).integers(0, 256, 9_000 * width * n_channels, np.uint8)
    rate = bytes.fromhex("400cfa00000000000000")  # 16_000 as an 80-bit float
    common = n_channels.to_bytes(2, "big") + n_frames.to_bytes(4, "big") + bits.to_bytes(2, "big")
    common += rate + (b"NONE\x0enot compressed\0" if kind == b"AIFC" else b"")
    chunks = b"COMM" + len(common).to_bytes(4, "big") + common
    if kind == b"AIFC":
        chunks = b"FVER\0\0\0\x04\xa2\x80\x51\x40" + chunks
    chunks += b"SSND" + (size + 8).to_bytes(4, "big") + bytes(8)
    whole = size + 4 + len(chunks)
    stream = b"FORM" + whole.to_bytes(4, "big") + kind + chunks + frames.tobytes()
    assert heard_s(stream, source) == 9_000 / 16_000


def test_a_flac_that_does_not_say_its_length(detector, tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, sound(12), 16_000)
    whole = detector.judge(path)
    stream = bytearray(path.read_bytes())
    stream[21] &= 0xF0  # the upper 4 of 36 bits
    stream[22:26] = bytes(4)
    path.write_bytes(stream)
    assert detector.judge(path) == whole and len(whole.windows) == 2


class Failing(io.BytesIO):
    """A file on a disk that fails."""

    name = "disk.wav"

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() + (size or 0) > 9_000:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(size)


def test_errors_of_reading_are_those_of_the_system(detector):
    with pytest.raises(OSError, match="Input/output error") as caught:
        detector.judge(Failing(wav(sound(1))))
    assert caught.value.errno == errno.EIO and caught.value.filename == "disk.wav"


def test_open_files(detector, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(1), 16_000)
    with path.open("rb") as file:
        file.seek(30)
        assert detector.judge(file) == detector.judge(path)
    (tmp_path / "b.wav").write_bytes(b"x")
    with (tmp_path / "b.wav").open("rb") as file, pytest.raises(AudioError, match=r"/b\.wav: "):
        detector.judge(file)
    with pytest.raises(AudioError, match=r"^the recording: "):
        detector.judge(io.BytesIO(b"x"))
    with path.open() as text:
        for what in (text, b"bytes", sound(1)):
            with pytest.raises(TypeError, match="a path or a file opened to read bytes"):
                detector.judge(what)


@pytest.mark.filterwarnings("error")
def test_rates_and_arrays_of_any_type(detector):
    audio = sound(1)
    expected = detector.probability(audio, 16_000)
    audio.flags.writeable = False
    for rate in (16_000.0, np.int32(16_000), np.float64(16_000)):
        assert detector.probability(audio, rate) == expected
    for rate in (16_000.5, "16000", None, math.nan):
        with pytest.raises(AudioError, match="whole number of Hz"):
            detector.probability(audio, rate)
    with pytest.raises(AudioError, match=r"\(N, channels\), got \(2, 16000\): turn it"):
        detector.probability(np.stack([audio, audio]), 16_000)


@pytest.mark.filterwarnings("error")
def test_samples_of_any_kind_of_floats(detector):
    """What is taken is what it says in float32, whoever holds it."""
    audio = np.stack([sound(0.5), sound(0.5, seed=1)], axis=1)
    for coarse in (audio.astype(np.float16), audio.astype(">f8"), audio.astype(np.longdouble)):
        expected = detector.probability(coarse.astype(np.float32), 16_000)
        assert detector.probability(coarse, 16_000) == pytest.approx(expected, abs=1e-6)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        tensor = torch.from_numpy(audio).to(dtype)
        expected = detector.probability(tensor.float().numpy(), 16_000)
        for same in (
            tensor,
            tensor.clone().requires_grad_(),
            torch.view_as_complex(
                torch.stack([torch.zeros_like(tensor.float()), -tensor.float()], -1)
            )
            .conj()
            .imag,
            tensor.T.contiguous().T,
        ):
            assert detector.probability(same, 16_000) == pytest.approx(expected, abs=1e-6)
    assert detector.features(torch.from_numpy(audio), 16_000).shape == (WIDTH,)
    assert detector.probability(audio[:, 0].tolist(), 16_000) == pytest.approx(
        detector.probability(audio[:, 0], 16_000), abs=1e-6
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("audio", "text"),
    [
        (np.zeros(9_000, np.int16), r"got int16: divide 16 bits by 32768"),
        (torch.zeros(9_000, dtype=torch.int16), r"got int16: divide 16 bits by 32768"),
        (np.full(9_000, np.inf, np.float16), "NaN or infinity"),
        (torch.full((9_000,), torch.nan, dtype=torch.bfloat16), "NaN or infinity"),
        (torch.full((9_000,), 1e9, dtype=torch.bfloat16), r"far outside \[-1, 1\]"),
        (torch.zeros(9_000, device="meta"), "got Tensor, which cannot be made one"),
        (torch.zeros(9_000).to_sparse(), "got Tensor, which cannot be made one"),
        (torch.zeros(9_000, dtype=torch.complex64), "floats, got .* complex64"),
        ([[0.0], [0.0, 0.0]], "got list, which cannot be made one"),
        ("clip.wav", "floats, got"),
        (None, "floats, got"),
    ],
)
def test_samples_that_are_none_are_named(audio, text, detector):
    for call in (detector.features, detector.probability):
        with pytest.raises(AudioError, match=text):
            call(audio, 16_000)


def test_threads_share_a_detector(detector):
    clips = [sound(0.3 + 0.05 * i, seed=i) for i in range(6)]
    alone = [detector.probability(clip, 16_000) for clip in clips]
    found: dict[int, float] = {}

    def work(i: int) -> None:
        found[i] = detector.probability(clips[i], 16_000)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(clips))] == alone


# ---- files that do not fit ----

BAD_CLASSIFIERS = {
    "other names": ({"w": torch.zeros(1, WIDTH), "b": torch.zeros(1)}, "this file has b, w"),
    "one name": ({"weight": torch.zeros(1, WIDTH)}, "this file has weight"),
    "one more": (
        {"weight": torch.zeros(1, WIDTH), "bias": torch.zeros(1), "x": torch.zeros(1)},
        "bias, weight, x",
    ),
    "flat": ({"weight": torch.zeros(WIDTH), "bias": torch.zeros(1)}, r"weight must be \(1, C\)"),
    "two classes": ({"weight": torch.zeros(2, WIDTH), "bias": torch.zeros(2)}, "weight must be"),
    "bias": ({"weight": torch.zeros(1, WIDTH), "bias": torch.zeros(2)}, r"bias \(1,\)"),
    "width": ({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, "takes 768 .* gives 32"),
    "nothing": ({"weight": torch.zeros(1, 0), "bias": torch.zeros(1)}, "weight must be"),
    "whole numbers": (
        {"weight": torch.zeros(1, WIDTH, dtype=torch.int8), "bias": torch.zeros(1)},
        "weight must hold floats",
    ),
    "NaN": ({"weight": torch.full((1, WIDTH), torch.nan), "bias": torch.zeros(1)}, "finite"),
}


@pytest.mark.parametrize("case", BAD_CLASSIFIERS)
def test_bad_classifiers_are_refused(case, hubert, tmp_path):
    state, text = BAD_CLASSIFIERS[case]
    save_file(state, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=text):
        Detector.from_pretrained(hubert, tmp_path / "c.safetensors")


def test_files_that_are_no_classifiers(hubert, tmp_path):
    (tmp_path / "c.safetensors").write_bytes(b"x" * 99)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        Detector.from_pretrained(hubert, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="--import-classifier"):
        Detector.from_pretrained(hubert, tmp_path / "c.pkl")
    with pytest.raises(FileNotFoundError):
        Detector.from_pretrained(hubert, tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder; a classifier is a safetensors file"):
        Detector.from_pretrained(hubert, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_classifiers_of_any_floats(dtype, hubert, tmp_path):
    state = {
        "weight": torch.linspace(-1, 1, WIDTH)[None].to(dtype),
        "bias": torch.ones(1).to(dtype),
    }
    save_file(state, tmp_path / "c.safetensors")
    detector = Detector.from_pretrained(hubert, tmp_path / "c.safetensors")
    features = detector.features(sound(0.5), 16_000)
    score = features.astype(np.float64) @ state["weight"][0].double().numpy() + 1
    assert detector.probability(sound(0.5), 16_000) == pytest.approx(1 / (1 + math.exp(-score)))


@pytest.mark.parametrize("score", [-1e6, -800.0, 0.0, 800.0, 1e6])
def test_no_score_is_too_large(score):
    classifier = Classifier(np.array([[score]]), np.zeros(1))
    assert classifier.probability(np.ones(1)) == (score > 0) + 0.5 * (score == 0)


def test_classifiers_are_of_numbers():
    for weight, bias in (([[1, 2.0]], [3]), (torch.tensor([[1, 2.0]]), torch.tensor([3]))):
        assert Classifier(weight, bias).probability(np.array([0, 0])) == 1 / (1 + math.exp(-3))
    for weight, bias in (([["a"]], [1]), ([[1], [2, 3]], [1]), ([[1e300]], [0]), ([[1]], 2)):
        with pytest.raises(CheckpointError, match="weight"):
            Classifier(weight, bias)
    huge = Classifier([[1e200, -1e200]], [0]).probability(np.full(2, 3e38, np.float32))
    assert 0 <= huge <= 1


def test_a_classifier_knows_its_hubert(hubert, tmp_path):
    from minibark.detect.pretrained import fingerprint

    own = Classifier(np.ones((1, WIDTH)), np.ones(1), fingerprint(open_hubert(hubert)))
    own.save(tmp_path / "c.safetensors")
    detector = Detector.from_pretrained(hubert, tmp_path / "c.safetensors")
    assert detector.classifier.fingerprint == own.fingerprint
    other = made.save_hubert(tmp_path / "other", made.random_hubert(1, **made.SMALL))
    with pytest.raises(CheckpointError, match="another HuBERT"):
        Detector.from_pretrained(other, tmp_path / "c.safetensors")


BAD_CONFIGS = {
    "large": ({"do_stable_layer_norm": True}, "do_stable_layer_norm is False"),
    "layer norm in every convolution": ({"feat_extract_norm": "layer"}, "feat_extract_norm"),
    "biases": ({"conv_bias": True}, "conv_bias"),
    "activation": ({"hidden_act": "relu"}, "hidden_act"),
    "wav2vec2": ({"model_type": "wav2vec2"}, "model_type 'hubert', got 'wav2vec2'"),
    "few layers": ({"num_hidden_layers": 5}, "at least 6"),
    "heads": ({"num_attention_heads": 5}, "multiple of num_attention_heads"),
    "other width": ({"hidden_size": 64}, "must be .* floats, got"),
    "convolutions": ({"conv_kernel": [3]}, "one length"),
    "text": ({"hidden_size": "768"}, "hidden_size must be int"),
    "huge": ({"intermediate_size": 10**9}, "must be in"),
    "no numbers": ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be in"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_other_architectures_are_refused_by_name(case, hubert, trained, tmp_path):
    change, text = BAD_CONFIGS[case]
    document = json.loads((hubert / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(document))
    (tmp_path / "model.safetensors").symlink_to(hubert / "model.safetensors")
    with pytest.raises(CheckpointError, match=text):
        Detector.from_pretrained(tmp_path, trained[1])


def test_folders_that_are_no_huberts(hubert, trained, tmp_path):
    for name in ("tiny", "random"):
        with pytest.raises(CheckpointError, match="is a Bark"):
            Detector.from_pretrained(name, trained[1])
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        Detector.from_pretrained(tmp_path, trained[1])
    with pytest.raises(FileNotFoundError, match=r"no HuBERT .*/none: "):
        Detector.from_pretrained(tmp_path / "none", trained[1])
    with pytest.raises(FileNotFoundError, match=r"no HuBERT \./none: no such .*is a folder with"):
        Detector.from_pretrained("./none", trained[1])
    with pytest.raises(CheckpointError, match="is a file"):
        Detector.from_pretrained(hubert / "config.json", trained[1])
    with pytest.raises(FileNotFoundError, match=r"no HuBERT no hubert!: .*\(no such repository\)"):
        Detector.from_pretrained("no hubert!", trained[1])
    with pytest.raises(FileNotFoundError, match=r"it was not asked.*hf download"):
        Detector.from_pretrained("some/hubert", trained[1], offline=True)
    (tmp_path / "config.json").write_bytes((hubert / "config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        Detector.from_pretrained(tmp_path, trained[1])
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the HuBERT lacks encoder"):
        Detector.from_pretrained(tmp_path, trained[1])
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="got None"):
        Detector.from_pretrained(tmp_path, trained[1])


def test_half_of_weight_norm_is_refused(trained, tmp_path):
    folder = made.save_hubert(tmp_path / "hubert", old=True)
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    del state["hubert.encoder.pos_conv_embed.conv.weight_g"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="weight norm"):
        Detector.from_pretrained(folder, trained[1])


# ---- the command ----


def detect(hubert, trained, *files) -> list[str]:
    options = ["--hubert", str(hubert), "--classifier", str(trained[1])]
    return ["detect", *map(str, files), *options]


def test_the_command_says_a_hint(detector, hubert, trained, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", sound(1), 16_000, "FLOAT")
    soundfile.write(tmp_path / "b.wav", sound(21), 16_000, "FLOAT")
    assert main(detect(hubert, trained, tmp_path / "a.wav", tmp_path / "b.wav")) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert f"a.wav: P(Bark) {detector.probability(sound(1), 16_000):.3f}, 1.0 s: " in first
    assert "like Bark to this classifier (a hint and no proof)" in first
    assert "21.0 s, mean of 3 windows, highest " in second


@pytest.mark.parametrize("bias", [-99.0, 99.0])
def test_the_exit_status_is_0_whatever_the_verdict(bias, hubert, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", sound(1), 16_000)
    state = {"weight": torch.zeros(1, WIDTH), "bias": torch.tensor([bias])}
    save_file(state, tmp_path / "c.safetensors")
    assert main(detect(hubert, (None, tmp_path / "c.safetensors"), tmp_path / "a.wav")) == 0
    assert ("does not sound" in capsys.readouterr().out) == (bias < 0)


def test_json_lines_and_files_that_fail(hubert, trained, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", sound(12), 16_000, "FLOAT")
    (tmp_path / "b.wav").write_bytes(b"x")
    files = [tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "none.wav", tmp_path / "a.wav"]
    assert main([*detect(hubert, trained, *files), "--json"]) == 1
    shown = capsys.readouterr()
    first, bad, none, second = map(json.loads, shown.out.splitlines())
    for document, name, text in ((bad, "b.wav", "damaged"), (none, "none.wav", "No such file")):
        assert set(document) == {"file", "error"} and document["file"] == str(tmp_path / name)
        assert text in document["error"]
    assert first == second and first["file"] == str(tmp_path / "a.wav")
    assert first["p_bark"] == pytest.approx(np.mean(first["windows"]))
    assert first["highest"] == max(first["windows"]) and first["seconds"] == 12.0
    assert "hint" in first["verdict"]
    lines = shown.err.splitlines()
    assert len(lines) == 3 and "b.wav" in lines[0] and "No such file" in lines[1]
    assert lines[2] == "minibark: 2 of 4 files could not be judged"


PROCESS = """
import sys, minibark.detect
slow = {"soundfile", "huggingface_hub", "transformers", "sklearn", "scipy"}
assert not slow & set(sys.modules), slow & set(sys.modules)
from minibark.commands.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_standard_input_of_a_real_process_that_imports_little(detector, hubert, trained):
    command = [sys.executable, "-c", PROCESS, *detect(hubert, trained, "-"), "--json"]
    done = subprocess.run(command, input=wav(sound(2)), capture_output=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["p_bark"] == pytest.approx(detector.probability(sound(2), 16_000), abs=1e-6)


def test_a_revision_of_what_is_no_repository(hubert, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(hubert.parent)
    for words in (
        detect(hubert, trained, "a.wav"),
        detect(hubert.name, trained, "a.wav"),
        ["detect", "--fit", "--bark", "a", "--not-bark", "b", "c.safetensors", "--hubert", "small"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--revision", "main"])
        told = capsys.readouterr().err
        assert ended.value.code == 2 and "--revision goes with a HuBERT on the hub; " in told


def test_standard_input_has_nothing_the_second_time(hubert, trained, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Pipe(wav(sound(1)))))
    assert main([*detect(hubert, trained, "-", "-"), "--json"]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert 0 < first["p_bark"] < 1 and second["error"] == "standard input: it is empty"


@pytest.mark.parametrize("stdin", [b"", None], ids=["empty", "closed"])
def test_nothing_on_standard_input(stdin, hubert, trained, monkeypatch, capsys):
    stream = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))
    monkeypatch.setattr(sys, "stdin", stream)
    assert main(detect(hubert, trained, "-")) == 1
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1 and "standard input" in shown


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["a.wav"], "--classifier FILE is needed: minibark ships none"),
        ([], "FILE"),
        (["a.wav", "--bark", "x"], "--bark goes with --fit"),
        (["--fit", "a.safetensors"], "--fit needs --bark DIR and --not-bark DIR"),
        (["--fit", "a.wav"], "name one file to write, OUT.safetensors"),
        (["--import-classifier", "x.pkl", "a.safetensors", "b.safetensors"], "name one file"),
        (["--import-classifier", "x.pkl", "--fit", "a.safetensors"], "two ways"),
        (["a.wav", "--classifier", ""], "--classifier FILE is needed"),
        (["a.wav", "--classifier", "c", "--model", "tiny"], "--model goes with --fit"),
        (["--fit", "a.safetensors", "--model", "tiny"], "--model goes with --fit --codec-copies"),
        (["--fit", "a.safetensors", "--json"], "--json goes with recordings to judge"),
        (["--fit", "a.safetensors", "--classifier", "c"], "--classifier goes with recordings"),
        (["--import-classifier", "x.pkl", "a.safetensors", "--json"], "not with --import"),
        (["--import-classifier", "", "a.safetensors"], "--import-classifier needs a file's name"),
        (["--import-classifier", "x.pkl", "a.safetensors", "--offline"], "--offline does not go"),
    ],
)
def test_wrong_usage(words, text, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["detect", *words])
    assert ended.value.code == 2 and text in capsys.readouterr().err
