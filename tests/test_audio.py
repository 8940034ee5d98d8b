"""Audio files, read back with soundfile."""

import inspect
import io
import os
import subprocess

import numpy as np
import pytest
import soundfile
import torch

from minibark import save_audio
from minibark.audio import encode_audio

STEP = 1 / 32767  # of 16-bit audio


@pytest.fixture
def audio():
    """Half a second of a tone with some noise."""
    t = np.arange(12_000) / 24_000
    noise = np.random.default_rng(0).normal(0, 0.01, len(t))
    return (0.5 * np.sin(2 * np.pi * 440 * t) + noise).astype(np.float32)


def read(path):
    samples, rate_hz = soundfile.read(path, dtype="float64", always_2d=True)
    assert samples.shape[1] == 1
    return samples[:, 0], rate_hz


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV", ".Flac"])
@pytest.mark.parametrize("rate_hz", [24_000, 16_000, 44_100])
def test_16_bit_audio_is_read_back(suffix, rate_hz, audio, tmp_path):
    path = tmp_path / f"a{suffix}"
    save_audio(path, audio, rate_hz)
    samples, found_hz = read(path)
    assert found_hz == rate_hz
    assert len(samples) == len(audio)
    # full scale is 32767 here and 32768 in soundfile
    np.testing.assert_allclose(samples * 32768 / 32767, audio, atol=STEP, rtol=0)
    info = soundfile.info(path)
    assert (info.format, info.subtype) == (suffix[1:].upper(), "PCM_16")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_the_sample_rate_is_barks_if_none_is_given(audio, tmp_path):
    save_audio(tmp_path / "a.wav", audio)
    assert read(tmp_path / "a.wav")[1] == 24_000
    assert inspect.signature(encode_audio).parameters["sample_rate"].default == 24_000


def test_16_bit_values_are_rounded_and_symmetric():
    values = np.array([0, 1, -1, 0.5, 0.49 * STEP, 0.51 * STEP, -0.51 * STEP, 0.3], np.float32)
    pcm, _ = soundfile.read(io.BytesIO(encode_audio(values)), dtype="int16")
    assert pcm.tolist() == [0, 32767, -32767, 16384, 0, 1, -1, 9830]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_floats_are_written(dtype, audio):
    loud = np.concatenate([audio, [1, -1]]).astype(dtype)
    pcm, _ = soundfile.read(io.BytesIO(encode_audio(loud)), dtype="int16")
    assert np.abs(pcm / 32767 - loud).max() <= STEP
    from_tensor = encode_audio(torch.tensor(loud))
    assert from_tensor == encode_audio(loud)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_loud_audio_is_clipped(suffix, audio, tmp_path):
    save_audio(tmp_path / f"a{suffix}", 10 * audio)
    samples, _ = read(tmp_path / f"a{suffix}")
    assert samples.max() > 0.95  # and not wrapped around:
    slack = 0.3 if suffix == ".ogg" else 2 * STEP
    np.testing.assert_allclose(samples, np.clip(10 * audio, -1, 1), atol=slack)
    extreme = np.array([1e300, -1e300, 7.0])
    pcm, _ = soundfile.read(io.BytesIO(encode_audio(extreme)), dtype="int16")
    assert pcm.tolist() == [32767, -32767, 32767]


def test_vorbis_sounds_the_same(audio, tmp_path):
    save_audio(tmp_path / "a.ogg", audio)
    samples, rate_hz = read(tmp_path / "a.ogg")
    info = soundfile.info(tmp_path / "a.ogg")
    assert (info.format, info.subtype, rate_hz) == ("OGG", "VORBIS", 24_000)
    assert len(samples) == len(audio)
    error = samples - audio
    assert np.square(error).mean() < 1e-2 * np.square(audio).mean()


@pytest.mark.parametrize(("suffix", "subtype"), [(".mp3", "MPEG_LAYER_III"), (".opus", "OPUS")])
@pytest.mark.parametrize("n", [1, 100, 480, 12_000, 24_001])
def test_opus_and_mp3_lose_no_tail(suffix, subtype, n, tmp_path):
    t = np.arange(n) / 24_000
    audio = (0.5 * np.sin(2 * np.pi * (300 + 400 * t) * t)).astype(np.float32)  # a sweep: no period
    save_audio(tmp_path / f"a{suffix}", audio)
    samples, rate_hz = read(tmp_path / f"a{suffix}")
    assert soundfile.info(tmp_path / f"a{suffix}").subtype == subtype
    assert (len(samples), rate_hz) == (n, 24_000)
    if n >= 12_000:
        for part in (slice(0, 2000), slice(-2000, None)):
            assert np.corrcoef(samples[part], audio[part])[0, 1] > 0.9


def test_a_rate_that_a_format_lacks_is_named():
    with pytest.raises(ValueError, match=r"\.opus at 44100 Hz cannot be written .*use \.wav"):
        encode_audio(np.zeros(100, np.float32), 44_100, ".opus")


def test_a_pipe_without_a_suffix_gets_wav(audio, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as cat:
        save_audio(tmp_path / "pipe", audio)
        assert cat.communicate()[0] == encode_audio(audio)


def test_long_vorbis_does_not_crash(tmp_path):
    """libsndfile's encoder overflows its stack when it gets minutes of audio at once."""
    done_s = 120
    save_audio(tmp_path / "a.ogg", np.zeros(done_s * 24_000, np.float32))
    assert soundfile.info(tmp_path / "a.ogg").duration == done_s


@pytest.mark.parametrize("suffix", [".wav", ".ogg"])
def test_empty_audio(suffix, tmp_path):
    save_audio(tmp_path / f"a{suffix}", np.zeros(0, np.float32))
    samples, rate_hz = read(tmp_path / f"a{suffix}")
    assert (len(samples), rate_hz) == (0, 24_000)


@pytest.mark.parametrize("suffix", [".flac", ".mp3", ".opus"])
def test_empty_audio_that_nothing_reads_is_refused(suffix, tmp_path):
    with pytest.raises(ValueError, match="no audio"):
        save_audio(tmp_path / f"a{suffix}", np.zeros(0, np.float32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "a.aac", "wav", ".wav", "a.wav.txt", "a.npz"])
def test_an_unknown_suffix_is_refused(name, audio, tmp_path):
    with pytest.raises(ValueError, match=rf"audio format of .*{name}.*\.wav, \.flac, \.ogg"):
        save_audio(tmp_path / name, audio)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (np.zeros((1, 9), np.float32), r"\(1, 9\)"),
        (np.float32(0), r"\(\)"),
        (np.zeros(9, np.int16), "int16"),
        (np.zeros(9, np.complex64), "complex64"),
        (np.array(["a"]), "<U1"),
        ([[0.0], [0.0, 1.0]], "inhomogeneous"),
        (np.array([0, np.nan], np.float32), "NaN"),
        (np.array([0, np.inf]), "infinity"),
        (np.array([-np.inf], np.float16), "infinity"),
    ],
)
def test_wrong_audio_is_refused_and_the_old_file_stays(wrong, text, audio, tmp_path):
    save_audio(tmp_path / "a.wav", audio)
    old = (tmp_path / "a.wav").read_bytes()
    with pytest.raises(ValueError, match=text):
        save_audio(tmp_path / "a.wav", wrong)
    assert (tmp_path / "a.wav").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
@pytest.mark.parametrize("rate_hz", [0, -1, 192_001, 10**12, float("nan")])
def test_a_sample_rate_that_libsndfile_may_crash_on_is_refused(suffix, rate_hz, audio):
    with pytest.raises(ValueError, match="sample_rate"):
        encode_audio(audio, rate_hz, suffix)
