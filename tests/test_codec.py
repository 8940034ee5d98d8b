"""The codec against encodec's and transformers' own decoders, with random weights."""

import json
import os
from pathlib import Path

import oracles
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from minibark.checkpoint.names import codec_state_dict, fold_weight_norm
from minibark.codec import CodecDecoder
from minibark.config import CodecConfig

REFERENCE = Path(__file__).resolve().parents[2] / "shared/data/reference/encodec_24khz.json"
ORIGINALS = ("parametrizations.weight.original0", "parametrizations.weight.original1")
TINY = CodecConfig(
    sampling_rate=600,
    codebook_size=16,
    n_codebooks=3,
    hidden_size=12,
    num_filters=4,
    upsampling_ratios=(3, 2),
    kernel_size=5,
    last_kernel_size=3,
    residual_kernel_size=4,
    dilation_growth_rate=3,
    num_residual_layers=2,
    num_lstm_layers=1,
    compress=4,
)


@pytest.fixture(autouse=True)
def seeded_and_without_grad():
    torch.manual_seed(0)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine the LSTM's short steps wait for a second thread
    with torch.inference_mode():
        yield
    torch.set_num_threads(n_threads)


def randomise(model: nn.Module) -> None:
    """Give each tensor values of its own; as built, g = |v| and codebooks are 0 or nearly so."""
    for key, tensor in model.state_dict().items():
        if key.endswith((".weight_g", ".original0")):
            tensor.mul_(torch.empty_like(tensor).uniform_(0.5, 3.0))
        elif key.endswith(".embed"):
            tensor.normal_()


def random_codes(config: CodecConfig, batch: int, n_frames: int) -> torch.Tensor:
    return torch.randint(config.codebook_size, (batch, config.n_codebooks, n_frames))


def our_decoder(state: dict[str, torch.Tensor], config: CodecConfig) -> CodecDecoder:
    decoder = CodecDecoder(config).eval()
    decoder.load_state_dict(codec_state_dict(state, config), strict=True)
    return decoder


def build_transformers(config: CodecConfig) -> nn.Module:
    from transformers import EncodecConfig, EncodecModel

    names = set(vars(config)) - {"n_codebooks"}
    frame_rate_hz = config.sampling_rate // config.hop_length
    kbps = 10 * frame_rate_hz * (config.n_codebooks + 1) / 1000  # one codebook more than we use
    fields = {name: getattr(config, name) for name in names}
    model = EncodecModel(EncodecConfig(**fields, target_bandwidths=[kbps])).eval()
    assert len(model.quantizer.layers) > config.n_codebooks
    randomise(model)
    return model


def other_weight_norm_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    pairs = dict(zip(ORIGINALS, ("weight_g", "weight_v"), strict=True))
    if not any("parametrizations" in key for key in state):
        pairs = {old: new for new, old in pairs.items()}
    renamed = {}
    for key, tensor in state.items():
        for old, new in pairs.items():
            key = key.replace(old, new)
        renamed[key] = tensor
    assert renamed.keys() != state.keys()
    return renamed


def assert_same_audio(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.dtype == torch.float32
    assert ours.shape == reference.shape
    assert reference.std() > 0.01  # far above the tolerance
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def encodec_model():
    torch.manual_seed(1)
    with pytest.warns(FutureWarning, match="weight_norm"):
        model = oracles.import_encodec().EncodecModel.encodec_model_24khz(pretrained=False)
    model.set_target_bandwidth(6.0)
    with torch.no_grad():
        randomise(model)
    return model


@pytest.fixture(scope="module")
def decoder(encodec_model):
    return our_decoder(encodec_model.state_dict(), CodecConfig())


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(2)
    return CodecDecoder(TINY).eval()


@pytest.mark.parametrize("n_frames", [1, 2, 6, 7, 8, 100, 1500])
def test_audio_is_encodecs(encodec_model, decoder, n_frames):
    codes = random_codes(CodecConfig(), 1, n_frames)
    audio = decoder(codes)
    assert audio.shape == (1, 320 * n_frames)
    assert_same_audio(audio, encodec_model.decode([(codes, None)])[:, 0])


@pytest.mark.parametrize("n_given", [1, 2, 5])
def test_fewer_codebooks_are_encodecs(encodec_model, decoder, n_given):
    codes = random_codes(CodecConfig(), 2, 20)
    audio = decoder(codes[:, :n_given])
    assert_same_audio(audio, encodec_model.decode([(codes[:, :n_given], None)])[:, 0])
    assert (audio - decoder(codes)).std() > 0.01


@pytest.mark.parametrize("renamed", [False, True], ids=["as saved", "renamed weight norm"])
@pytest.mark.parametrize("config", [TINY, CodecConfig()], ids=["tiny", "24 kHz"])
def test_audio_is_transformers(config, renamed):
    model = build_transformers(config)
    state = model.state_dict()
    decoder = our_decoder(other_weight_norm_names(state) if renamed else state, config)
    for n_frames in (1, 4, 30):
        codes = random_codes(config, 2, n_frames)
        reference = model.decode(codes[None], [None]).audio_values[:, 0]
        assert_same_audio(decoder(codes), reference)


def test_facebook_names_with_parametrizations(encodec_model, decoder):
    state = codec_state_dict(other_weight_norm_names(encodec_model.state_dict()), CodecConfig())
    for key, tensor in decoder.state_dict().items():
        assert torch.equal(state[key], tensor), key


def test_a_row_of_a_batch_is_that_row_alone(decoder):
    codes = random_codes(CodecConfig(), 3, 25)
    audio = decoder(codes)
    assert (audio[0] - audio[1]).std() > 0.01
    for row in range(3):
        torch.testing.assert_close(audio[row], decoder(codes[row : row + 1])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("frame", [7, 8, 20, 39])
def test_later_codes_never_change_earlier_audio(decoder, frame):
    codes = random_codes(CodecConfig(), 1, 40)
    changed = codes.clone()
    changed[..., frame:] = (changed[..., frame:] + 1) % 1024
    before, after = decoder(codes)[0], decoder(changed)[0]
    start = 320 * frame
    torch.testing.assert_close(after[:start], before[:start], atol=1e-6, rtol=0)
    assert (after[start : start + 320] - before[start : start + 320]).abs().max() > 0.01
    alone = decoder(codes[..., :frame])[0]
    torch.testing.assert_close(alone, before[:start], atol=1e-5, rtol=0)


def test_the_first_seven_frames_mirror_each_other(decoder):
    codes = random_codes(CodecConfig(), 1, 40)
    changed = codes.clone()
    changed[..., 6] = (changed[..., 6] + 1) % 1024
    assert (decoder(changed) - decoder(codes))[0, :320].abs().max() > 1e-3


@pytest.mark.parametrize("n_frames", [0, 1, 3, 11])
def test_length_is_hop_length_times_frames(tiny, n_frames):
    assert tiny(random_codes(TINY, 2, n_frames)).shape == (2, 6 * n_frames)


def test_no_rows_give_no_audio(tiny):
    assert tiny(random_codes(TINY, 0, 5)).shape == (0, 30)


@pytest.mark.parametrize("bad", [-1, 16, 1000])
def test_codes_out_of_range_are_refused(tiny, bad):
    codes = random_codes(TINY, 1, 5)
    codes[0, 2, 3] = bad
    with pytest.raises(ValueError, match=rf"\[0, 16\), got .*{bad}"):
        tiny(codes)


@pytest.mark.parametrize("shape", [(3, 5), (1, 0, 5), (1, 4, 5), (1, 1, 3, 5), (5,)])
def test_codes_of_another_shape_are_refused(tiny, shape):
    with pytest.raises(ValueError, match=r"\(B, K, T\) with K from 1 to 3, got .*int64 of shape"):
        tiny(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool])
def test_codes_of_another_dtype_are_refused(tiny, dtype):
    with pytest.raises(ValueError, match=f"codes must be int64 .* got {dtype}"):
        tiny(torch.zeros((1, 3, 5), dtype=dtype))


def test_folded_weight_is_torchs_own():
    layers = {"a": nn.Conv1d(3, 5, 4), "b": nn.ConvTranspose1d(3, 5, 4)}
    state = {"c.weight": torch.ones(2), "a.weight_gain": torch.ones(1)}
    for name, layer in layers.items():
        nn.utils.parametrizations.weight_norm(layer)
        layer.parametrizations.weight.original0.mul_(torch.rand(len(layer.weight), 1, 1))
        state |= {f"{name}.{key}": tensor for key, tensor in layer.state_dict().items()}
    expected = {"a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "a.weight_gain"}
    for names in (state, other_weight_norm_names(state)):
        folded = fold_weight_norm(names)
        assert folded.keys() == expected
        assert folded["c.weight"] is state["c.weight"]
        for name, layer in layers.items():
            torch.testing.assert_close(folded[f"{name}.weight"], layer.weight)


def test_weight_norm_is_folded_in_float32():
    g, v = torch.full((1, 1, 1), 2.0), torch.full((1, 40, 40), 5e3)  # |v| is 200_000, past half
    folded = fold_weight_norm({"x.weight_g": g.half(), "x.weight_v": v.half()})
    torch.testing.assert_close(folded["x.weight"], torch.full((1, 40, 40), 0.05))


@pytest.mark.parametrize("missing", ["weight_g", "weight_v", *ORIGINALS])
def test_half_a_weight_norm_is_refused(missing):
    state = {"x.weight_g": torch.ones(2, 1, 1), "x.weight_v": torch.ones(2, 3, 4)}
    if "original" in missing:
        state = other_weight_norm_names(state)
    del state[f"x.{missing}"]
    with pytest.raises(ValueError, match=rf"weight norm of x needs both .*{missing}"):
        fold_weight_norm(state)


@pytest.mark.parametrize("shape", [(2,), (3, 1, 1), (1, 1, 1), (2, 3, 1), ()])
def test_weight_norm_shapes_that_do_not_fit_are_refused(shape):
    state = {"x.weight_g": torch.ones(shape), "x.weight_v": torch.ones(2, 3, 4)}
    with pytest.raises(ValueError, match=r"weight norm of x has shapes .* v \(2, 3, 4\)"):
        fold_weight_norm(state)


@pytest.mark.parametrize(
    "missing",
    [
        "quantizer.layers.1.codebook.embed",
        "decoder.layers.1.lstm.weight_hh_l0",
        "decoder.layers.3.conv.bias",
        "decoder.layers.5.shortcut.conv.bias",
    ],
)
def test_a_missing_tensor_is_named(missing):
    state = build_transformers(TINY).state_dict()
    del state[missing]
    with pytest.raises(ValueError, match=f"lacks {missing}$"):
        codec_state_dict(state, TINY)


@pytest.mark.parametrize(
    "unknown",
    [
        "decoder.layers.99.conv.bias",
        "quantizer.layers.0.project_in.weight",
        "quantizer.layers.0.codebook.scale",
        "extra",
    ],
)
def test_an_unknown_tensor_is_named(unknown):
    state = build_transformers(TINY).state_dict()
    state[unknown] = torch.ones(1)
    with pytest.raises(ValueError, match=f"cannot have {unknown}$"):
        codec_state_dict(state, TINY)


@pytest.mark.parametrize("key", ["quantizer.layers.0.codebook.embed", "decoder.layers.3.conv.bias"])
def test_a_tensor_of_another_shape_is_named(key):
    state = build_transformers(TINY).state_dict()
    state[key] = state[key][:-1]
    with pytest.raises(ValueError, match=rf"{key} must have shape \(.*, got \("):
        codec_state_dict(state, TINY)


def test_half_precision_becomes_float32():
    state = build_transformers(TINY).state_dict()
    loaded = codec_state_dict({key: tensor.half() for key, tensor in state.items()}, TINY)
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}


@pytest.mark.weights
def test_released_weights_give_the_published_samples():
    path = Path(os.environ.get("MINIBARK_ENCODEC", ""))
    if not path.is_file():
        pytest.skip("MINIBARK_ENCODEC must name encodec_24khz-d7cc33bc.th or an HF model file")
    if not REFERENCE.is_file():
        pytest.skip(f"{REFERENCE} is missing")
    expected = json.loads(REFERENCE.read_text())
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    if any(key.startswith("codec_model.") for key in state):  # the codec inside a whole Bark
        prefix = "codec_model."
        state = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
    audio = our_decoder(state, CodecConfig())(torch.tensor([expected["codes_first_10_frames"]]))
    samples = torch.tensor(expected["first_20_decoded_samples"])
    torch.testing.assert_close(audio[0, :20], samples, atol=expected["tolerance"], rtol=0)
