"""The door to the fast paths: which one a precision gets is read off the modules themselves."""

import dataclasses

import checkpoints as made
import pytest
import torch

from minibark import Bark, fast
from minibark.config import BarkConfig
from minibark.cpu import abilities
from minibark.precision import PRECISIONS

WIDE = {"n_layer": 2, "n_head": 8, "n_embd": 512}  # wide enough for every fast path
CONFIG = BarkConfig(
    **{
        stage: dataclasses.replace(getattr(made.TINY, stage), **WIDE)
        for stage in ("semantic", "coarse", "fine")
    },
    codec=made.TINY.codec,
    generation=made.TINY.generation,
)
needs_all = pytest.mark.skipif(
    not all(
        (
            abilities.has_onednn_linear(),
            abilities.has_int8_linear(),
            abilities.has_int8_many_rows(),
            abilities.has_int4_linear(),
            abilities.has_fast_bfloat16(),
            "fbgemm" in torch.backends.quantized.supported_engines,
        )
    ),
    reason="this torch or processor lacks an operator",
)
# Products of 2 layers of 4; those of 512 x 512 are small.
CAUSAL = {
    "float32": "products 6 OneDNNLinear + 2 SmallLinear; attention 2 causal_attention; "
    "table Embedding; head OneDNNHead; decoder DraftedDecoder, cache RowSumCache",
    "float16": "products 8 Linear16; attention 2 causal_by_block; "
    "table ReducedTable; head ReducedHead; decoder ScriptedDecoder, cache RowSumCache",
    "int8": "products 8 Int8Linear; attention 2 causal_by_block; "
    "table ReducedTable; head ReducedHead; decoder ScriptedDecoder, cache ByteCache",
    "int4": "products 4 Int4Linear + 4 Int8Linear; attention 2 causal_by_block; "
    "table ReducedTable; head ReducedHead; decoder ScriptedDecoder, cache ByteCache",
}
CAUSAL["bfloat16"] = CAUSAL["float16"]
FINE = {
    "float32": "products 6 OneDNNLinear + 2 SmallLinear; attention 2 full_attention; "
    "layers 2 Block; heads linear; passes RowByRow",
    "float16": "products 8 Linear16; attention 2 full_by_head; layers 2 Block; "
    "heads in_bfloat16; passes RowByRow",
    "int8": "products 8 Int8ManyRows; attention 2 full_by_head; layers 2 BlockInParts; "
    "heads in_bfloat16; passes RowByRow",
}
FINE |= {"bfloat16": FINE["float16"], "int4": FINE["int8"]}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fast") / "wide"
    config = dataclasses.replace(
        CONFIG, semantic=dataclasses.replace(CONFIG.semantic, output_vocab_size=1000)
    )
    config = dataclasses.replace(
        config, coarse=dataclasses.replace(config.coarse, output_vocab_size=1000)
    )
    Bark(config, device="cpu").save(folder)
    return folder


@needs_all
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["random", "pretrained"])
def test_each_precision_has_its_fast_paths(directory, kind, precision):
    if kind == "random":
        bark = Bark(Bark.from_pretrained(directory).config, device="cpu", precision=precision)
    else:
        bark = Bark.from_pretrained(directory, device="cpu", precision=precision)
    semantic = coarse = CAUSAL[precision]
    if precision in ("int8", "int4"):
        products, _, rest = coarse.partition(";")
        coarse = products.replace("Linear", "Twice") + ";" + rest
    assert bark.describe("semantic") == semantic
    assert bark.describe("coarse") == coarse
    assert bark.describe("fine") == FINE[precision]
    assert bark.describe("codec") == "plain torch"
    assert bark.describe().startswith(f"on cpu in {precision} by plain torch (")


def test_narrow_models_keep_the_plain_cache():
    bark = Bark(made.TINY, device="cpu")
    assert bark.describe("coarse").endswith("decoder ScriptedDecoder, cache KVCache")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_of_a_reduced_stage_is_the_state_s(precision):
    """So that a mapped file can go; in float32 it is the mapped tensors that are used."""
    state = made.state_of(CONFIG, "coarse")
    choice = fast.Choice(torch.device("cpu"), precision, "torch")
    module = fast.build("coarse", CONFIG, state, choice)
    theirs = {tensor.data_ptr() for tensor in state.values()}
    held = [tensor for each in module.modules() for tensor in vars(each).values()]
    held += [*module.parameters(), *module.buffers()]
    held = [tensor for tensor in held if isinstance(tensor, torch.Tensor)]
    ours = {tensor.data_ptr() for tensor in held if not tensor.is_mkldnn}  # those have a copy
    shared = ours & theirs
    assert bool(shared) == (precision == "float32")
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_choice_is_made_once_and_told_in_words():
    choice = fast.choose("cpu", None, None)
    assert choice == fast.Choice(torch.device("cpu"), "float32", "torch")
    assert not choice.records
    assert str(choice) == "on cpu in float32 by plain torch (float32 products)"
    triton = fast.Choice(torch.device("cpu"), "float32", "triton")
    assert triton.records
    assert str(triton) == "on cpu in float32 by fused Triton kernels, interpreted"
