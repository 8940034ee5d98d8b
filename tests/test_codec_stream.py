"""Audio in pieces is the audio of the whole, by our and by the real decoders; memory is flat."""

import contextlib
from functools import cache

import checkpoints
import numpy as np
import oracles
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minibark import Bark
from minibark.checkpoint.names import codec_state_dict
from minibark.codec import CodecDecoder
from minibark.config import CodecConfig

SMALL = {
    "sampling_rate": 600,
    "codebook_size": 16,
    "n_codebooks": 3,
    "hidden_size": 6,
    "num_filters": 4,
    "upsampling_ratios": (3, 2),
}
CODECS = {
    "released shape": CodecConfig(num_filters=4, hidden_size=16),
    # the longest mirror is deep inside: 1 + 28 * 3 steps of a third of a frame
    "deep mirror": CodecConfig(
        **SMALL, residual_kernel_size=29, dilation_growth_rate=3, num_residual_layers=2
    ),
    "no mirror": CodecConfig(**SMALL, kernel_size=1, last_kernel_size=1, residual_kernel_size=1),
    "uneven kernels": CodecConfig(
        **SMALL, kernel_size=4, last_kernel_size=2, residual_kernel_size=2, num_lstm_layers=1
    ),
    "longer than a block": CodecConfig(**SMALL, kernel_size=90),
}
N_LEAST = {
    "tiny": 7,
    "released shape": 7,
    "deep mirror": 29,
    "no mirror": 1,
    "uneven kernels": 4,
    "longer than a block": 90,
}
CODEC_NAMES = pytest.mark.parametrize("name", N_LEAST)
CHUNKS = st.lists(st.sampled_from((0, 1, 2, 3, 5, 7, 16, 25, 64, 65, 100)), max_size=8)


@cache
def codec_of(name):
    if name == "tiny":
        return Bark.from_pretrained("tiny", device="cpu").model("codec")
    torch.manual_seed(len(name))
    codec = CodecDecoder(CODECS[name]).eval()
    # silence would be equal, too
    codec.decoder.layers[-1].conv.weight.data.mul_(10)
    return codec


def random_codes(codec, n_frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (codec.config.n_codebooks, n_frames)
    return torch.randint(codec.config.codebook_size, shape, generator=generator)


def whole(codec, codes):
    with torch.inference_mode():
        return codec(codes[None])[0].numpy()


def joined(pieces):
    return np.concatenate([np.zeros(0, np.float32), *pieces])


def assert_same(audio, expected):
    assert audio.dtype == np.float32
    assert audio.shape == expected.shape
    np.testing.assert_allclose(audio, expected, atol=1e-6, rtol=1e-6)


@CODEC_NAMES
@settings(max_examples=25, deadline=None)
@given(chunks=CHUNKS, seed=st.integers(0, 99))
@example(chunks=[1] * 9, seed=0)
@example(chunks=[0, 6, 0, 1, 0], seed=0)
@example(chunks=[200], seed=0)
def test_any_pieces_give_the_audio_of_the_whole(name, chunks, seed):
    codec = codec_of(name)
    codes = random_codes(codec, sum(chunks), seed)
    assert_same(joined(codec.stream(codes.split(chunks, dim=1))), whole(codec, codes))


@CODEC_NAMES
def test_short_clips_are_the_whole_s_however_they_come(name):
    codec = codec_of(name)
    for n_frames in range(10):
        codes = random_codes(codec, n_frames)
        expected = whole(codec, codes)
        assert n_frames == 0 or expected.std() > 0.01  # far above the tolerance
        assert_same(joined(codec.stream([codes])), expected)
        assert_same(joined(codec.stream(codes.split(1, dim=1))), expected)
    assert list(codec.stream([])) == []


@CODEC_NAMES
def test_samples_come_as_soon_as_no_later_code_can_change_them(name):
    codec, n_least = codec_of(name), N_LEAST[name]
    hop_length = codec.config.hop_length
    codes = random_codes(codec, n_least + 20)
    left = list(codes.split(1, dim=1))
    stream = codec.stream(left.pop() for _ in range(len(left)))
    assert len(next(stream)) == n_least * hop_length
    assert len(left) == 20
    for n_left in range(19, -1, -1):  # from here on each frame is heard at once
        assert len(next(stream)) == hop_length
        assert len(left) == n_left
    assert list(stream) == []


@CODEC_NAMES
def test_nothing_is_certain_before(name):
    codec, n_least = codec_of(name), N_LEAST[name]
    codes = random_codes(codec, n_least + 20)
    changed = codes.clone()
    changed[:, n_least - 1] = (changed[:, n_least - 1] + 1) % codec.config.codebook_size
    difference = np.abs(whole(codec, changed) - whole(codec, codes))
    first_samples = codec.config.hop_length * max(n_least - 1, 1)
    assert difference[:first_samples].max() > 1e-5


@pytest.mark.parametrize(
    "sizes",
    [[1] * 90, [25, 25, 25, 15], [0, 90], [3, 3, 64, 20]],
    ids=["ones", "equal", "whole", "mixed"],
)
def test_the_audio_is_transformers(sizes):
    model = checkpoints.narrow_encodec()
    codec = CodecDecoder(CodecConfig(num_filters=4, hidden_size=32))
    codec.load_state_dict(codec_state_dict(model.state_dict(), codec.config))
    codes = random_codes(codec, sum(sizes))
    with torch.inference_mode():
        expected = checkpoints.decode(model, codes[None])[0].numpy()
    assert expected.std() > 0.01
    audio = joined(codec.stream(codes.split(sizes, dim=1)))
    np.testing.assert_allclose(audio, expected, atol=1e-5, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_the_audio_is_encodec_s():
    model = oracles.import_encodec().EncodecModel.encodec_model_24khz(pretrained=False)
    model.set_target_bandwidth(6.0)
    checkpoints.randomise(model)
    codec = CodecDecoder(CodecConfig())
    codec.load_state_dict(codec_state_dict(model.state_dict(), codec.config))
    codes = random_codes(codec, 60)
    with torch.inference_mode():
        expected = checkpoints.decode(model, codes[None])[0].numpy()
    loudest = np.abs(expected).max()  # 12: these weights shout
    for sizes in ([1, 2, 3, 1, 53], [10, 50], [6, 1, 25, 25, 3]):
        audio = joined(codec.stream(codes.split(sizes, dim=1)))
        np.testing.assert_allclose(audio / loudest, expected / loudest, atol=5e-6)


@pytest.mark.parametrize("n_frames", [0, 1, 5, 7, 8, 63, 64, 65, 300])
def test_bark_decodes_as_the_codec_does(n_frames):
    bark = Bark.from_pretrained("tiny", device="cpu")
    codes = random_codes(bark.model("codec"), n_frames)
    assert_same(bark.decode(codes), whole(bark.model("codec"), codes))


@pytest.mark.gpu
def test_pieces_on_a_gpu():
    codec = CodecDecoder(CodecConfig()).to("cuda")
    codes = random_codes(codec, 300)
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        expected = codec(codes[None].cuda())[0].cpu().numpy()
    for pieces in (codes.split(25, dim=1), codes.cuda().split(7, dim=1), [codes]):
        np.testing.assert_allclose(joined(codec.stream(pieces)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("given_as", [np.int16, np.uint8, np.uint64, torch.int32, torch.int64])
def test_whole_numbers_of_any_kind(given_as):
    codec = codec_of("released shape")
    codes = random_codes(codec, 20) % 256
    expected = whole(codec, codes)
    is_torch = isinstance(given_as, torch.dtype)
    piece = codes.to(given_as) if is_torch else codes.numpy().astype(given_as)
    assert_same(joined(codec.stream([piece[:, :3], piece[:, 3:]])), expected)
    fewer = codes[:2]
    assert_same(joined(codec.stream([fewer])), whole(codec, fewer))


def test_a_long_piece_is_heard_in_blocks():
    codec = codec_of("tiny")
    blocks = list(codec.stream([random_codes(codec, 500)]))
    assert max(map(len, blocks)) <= 64 * 320 and sum(map(len, blocks)) == 500 * 320


def test_streams_do_not_know_of_each_other():
    codec = codec_of("tiny")
    clips = [random_codes(codec, 60, seed) for seed in (1, 2)]
    heard = list(zip(*(codec.stream(clip.split(10, dim=1)) for clip in clips), strict=True))
    assert len(heard) == 6
    for clip, pieces in zip(clips, zip(*heard, strict=True), strict=True):
        assert_same(joined(pieces), whole(codec, clip))


def test_what_a_caller_does_to_samples_or_codes_is_without_effect():
    codec = codec_of("tiny")
    codes = random_codes(codec, 40)
    buffer, heard = torch.empty(8, 4, dtype=torch.int64), []

    def pieces():
        for piece in codes.split(4, dim=1):
            yield buffer.copy_(piece)

    for samples in codec.stream(pieces()):
        heard.append(samples.copy())
        samples[:] = np.nan
    assert_same(joined(heard), whole(codec, codes))


def test_closing_ends_the_work_and_leaves_nothing_on():
    codec = codec_of("tiny")
    frame, pulled = random_codes(codec, 10), 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield frame

    stream = codec.stream(endless())
    for _ in range(3):
        next(stream)
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    stream.close()
    assert pulled == 3
    assert list(stream) == []
    assert not torch.ones(1, requires_grad=True).is_inference()


@pytest.mark.parametrize("around", ["autocast", "default device", "inference mode", "no gradients"])
def test_what_torch_is_around_it_changes_nothing_and_is_kept(around):
    made = {
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        "default device": lambda: torch.device("meta"),
        "inference mode": torch.inference_mode,
        "no gradients": torch.no_grad,
    }[around]

    def state():
        settings = (torch.is_autocast_enabled("cpu"), torch.get_default_device().type)
        return (*settings, torch.is_inference_mode_enabled(), torch.is_grad_enabled())

    codec = codec_of("tiny")
    codes = random_codes(codec, 60)
    expected, heard = list(codec.stream(codes.split(20, dim=1))), []
    for within in (made, contextlib.nullcontext):  # and a stream may go on outside
        stream = codec.stream(iter(codes.split(20, dim=1)))
        with made():
            before = state()
            heard = [next(stream)]
            assert state() == before
        outside = state()
        with within():
            heard += list(stream)
        assert state() == outside
        np.testing.assert_array_equal(joined(heard), joined(expected))


def test_an_error_of_the_source_comes_through_after_what_was_certain():
    codec = codec_of("tiny")

    def breaking():
        yield random_codes(codec, 10)
        raise ConnectionError("gone")

    stream = codec.stream(breaking())
    assert len(next(stream)) == 3200
    with pytest.raises(ConnectionError, match="gone"):
        next(stream)


@pytest.mark.parametrize("n_before", [0, 2, 20])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(8, dtype=torch.int64), r"codes \(K, T\), .* got int64 of shape \(8,\)"),
        (torch.zeros(1, 8, 5, dtype=torch.int64), r"\(K, T\), .* got int64 of shape \(1, 8, 5\)"),
        (np.zeros((8, 5), np.float32), r"whole numbers, got float32 of shape \(8, 5\)"),
        (torch.zeros(8, 5, dtype=torch.bool), "whole numbers, got bool of shape"),
        (np.full((8, 5), 512, np.int16), r"codes must be in \[0, 512\), got 512 to 512"),
        (np.full((8, 5), -1), r"codes must be in \[0, 512\), got -1 to -1"),
        (torch.zeros(9, 5, dtype=torch.int64), r"8.* got .*\(1?,? ?9, 5\)"),
        (torch.zeros(0, 5, dtype=torch.int64), r"8.* got .*\(1?,? ?0, 5\)"),
    ],
    ids=["1-D", "3-D", "float", "bool", "too large", "negative", "9 codebooks", "none"],
)
def test_a_bad_piece_is_refused_when_it_comes(n_before, bad, message):
    codec = codec_of("tiny")
    stream = codec.stream(iter([random_codes(codec, n_before), bad]))
    if n_before == 20:
        assert len(next(stream)) == 20 * 320
    with pytest.raises(ValueError, match=message):
        next(stream)


def test_pieces_of_different_codebooks_are_refused():
    codec = codec_of("tiny")
    codes = random_codes(codec, 10)
    with pytest.raises(ValueError, match=r"the 8 codebooks of the first, got shape \(2, 0\)"):
        list(codec.stream([codes, codes[:2, :0]]))


MEMORY = """
import random, re, sys
import torch
from minibark import Bark

def resident_kb():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

def codes(n_frames):
    return torch.randint(512, (8, n_frames))

torch.set_num_threads(1)
bark, numbers = Bark.from_pretrained("tiny", device="cpu"), random.Random(0)
codec = bark.model("codec")

def clips():
    for _ in range(60):
        bark.decode(codes(numbers.randint(20, 250)))
        yield

def streams():
    for _ in range(60):
        sizes = [numbers.randint(1, 40) for _ in range(3)]
        for _ in codec.stream(map(codes, sizes)):
            pass
        yield

def one_stream():
    for i, _ in enumerate(codec.stream(codes(10) for _ in range(300))):
        if i % 5 == 4:
            yield

print(*(resident_kb() for _ in vars()[sys.argv[1]]()))
"""


@pytest.mark.parametrize(
    "work",
    [
        "clips",
        *(pytest.param(work, marks=pytest.mark.torture) for work in ("streams", "one_stream")),
    ],
)
def test_memory_is_flat(work):
    done = checkpoints.run_python(MEMORY, work)
    assert not done.returncode, done.stderr
    resident = list(map(int, done.stdout.split()))
    assert len(resident) == 60
    assert resident[-1] < 1.05 * resident[9], resident
