"""Decoding in recorded steps: the tokens and streams of the step-by-step loop, on both backends.

Off a GPU a step is called where it would be replayed, so the control flow is the same. Triton's
kernels run in its interpreter, at some 0.1 s a layer: on small models and for a few steps.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import random_bark
import torch
from random_bark import GENERATION, assert_same_tokens, random_gpt, random_voice, streams
from torch import Tensor

from minibark import Bark
from minibark.checkpoint.presets import preset
from minibark.checkpoint.rows import quantize_rows
from minibark.coarse import generate_coarse
from minibark.config import BarkConfig, FineGPTConfig, GPTConfig
from minibark.decoding import CachedDecoder, RandomStreams
from minibark.gpu.backend import choose_backend
from minibark.gpu.cudagraph import Capture, CudaGraphs
from minibark.gpu.decoder import AHEAD, GraphDecoder, GraphFine
from minibark.gpu.int8 import Int8Linear, reduce_to_int8
from minibark.model import GPT, FineGPT
from minibark.precision import BackendError
from minibark.sampling import Sampling
from minibark.semantic import END_TEST_STEPS, generate_semantic, semantic_prompt

CPU = torch.device("cpu")
SAMPLINGS = (Sampling(0), Sampling(0.7), Sampling(1.0, top_k=40, top_p=0.9))
VOICES = (None, random_voice(11), random_voice(256), random_voice(400))
SMALL = GPTConfig(
    block_size=300, input_vocab_size=90, output_vocab_size=70, n_layer=2, n_head=2, n_embd=48
)
HEAD = slice(10, 60)


@pytest.fixture(scope="module")
def ending() -> GPT:
    return random_bark.ending_early(random_bark.random_stage("semantic"))


@pytest.fixture(scope="module")
def coarse() -> GPT:
    return random_bark.random_stage("coarse")


def prompts(n: int) -> list[Tensor]:
    return [
        semantic_prompt(torch.arange(3 + i), voice and voice.semantic, GENERATION)
        for i, voice in enumerate(VOICES[:n])
    ]


def assert_same_streams(ours: Sequence[torch.Generator], theirs: Sequence[torch.Generator]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.get_state(), other.get_state())


# ---- the loops, on plain torch


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "drawn", "filtered"])
@pytest.mark.parametrize("n_rows", [1, 4])
def test_semantic_tokens_and_streams_are_those_of_the_loop_step_by_step(ending, n_rows, sampling):
    options = {"max_duration_s": 1.5, "min_eos_p": 0.1}
    theirs, ours = streams(*range(n_rows)), streams(*range(n_rows))
    ids = prompts(n_rows)
    wanted = generate_semantic(ending, ids, GENERATION, sampling, theirs, **options)
    made = generate_semantic(
        ending, ids, GENERATION, sampling, ours, decoder=GraphDecoder, **options
    )
    for row, expected in zip(made, wanted, strict=True):
        assert_same_tokens(row, expected)
    assert_same_streams(ours, theirs)
    if n_rows > 1 and not sampling.greedy:
        ends = {len(row) for row in wanted}
        assert len(ends) > 2 and any(end % END_TEST_STEPS for end in ends)


@pytest.mark.parametrize("allow_early_stop", [True, False])
@pytest.mark.parametrize("n_steps", [1, 2, END_TEST_STEPS, END_TEST_STEPS + 1, 40])
def test_semantic_stops_at_the_limit(ending, n_steps, allow_early_stop):
    options = {
        "max_duration_s": (n_steps - 0.5) / 49.9,
        "min_eos_p": None,
        "allow_early_stop": allow_early_stop,
    }
    theirs, ours = streams(7), streams(7)
    args = (ending, prompts(1), GENERATION, Sampling())
    (wanted,) = generate_semantic(*args, theirs, **options)
    (made,) = generate_semantic(*args, ours, decoder=GraphDecoder, **options)
    assert_same_tokens(made, wanted)
    assert_same_streams(ours, theirs)


def test_rows_that_share_a_stream_draw_by_turns(ending):
    options = {"max_duration_s": 0.5, "min_eos_p": 0.1}
    args = (ending, prompts(3), GENERATION, Sampling())
    torch.manual_seed(3)
    wanted = generate_semantic(*args, [None] * 3, **options)
    torch.manual_seed(3)
    made = generate_semantic(*args, [None] * 3, decoder=GraphDecoder, **options)
    for row, expected in zip(made, wanted, strict=True):
        assert_same_tokens(row, expected)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "drawn", "filtered"])
def test_coarse_codes_and_streams_are_those_of_the_loop_step_by_step(coarse, sampling):
    semantics = [torch.randint(10_000, (n,)) for n in (45, 1, 100, 61)]
    theirs, ours = streams(*range(4)), streams(*range(4))
    wanted = generate_coarse(coarse, semantics, VOICES, GENERATION, sampling, theirs)
    decoder = GraphDecoder(coarse)
    made = generate_coarse(
        coarse, semantics, VOICES, GENERATION, sampling, ours, decoder=lambda model, n: decoder
    )
    for row, expected in zip(made, wanted, strict=True):
        assert_same_tokens(row, expected)
    assert_same_streams(ours, theirs)


@pytest.mark.slow
def test_coarse_windows_go_on_with_the_cache_as_step_by_step(coarse):
    semantics = [torch.randint(10_000, (520,))]  # 13 windows, of which eleven keep the cache
    args = (coarse, semantics, [None], GENERATION, Sampling())
    wanted = generate_coarse(*args, streams(1))
    made = generate_coarse(*args, streams(1), decoder=GraphDecoder)
    assert_same_tokens(made[0], wanted[0])


@pytest.mark.parametrize("room", [4, 20])
def test_the_last_positions_of_a_model_are_used(room):
    model = random_gpt(SMALL)
    prompt = [torch.randint(90, (300 - room,))]
    for decoder in (GraphDecoder(model), CachedDecoder(model)):
        with torch.inference_mode():
            tokens = decoder.prefill(prompt, HEAD).argmax(-1) + HEAD.start
            streams_, active = RandomStreams([None], CPU), [[True]] * room
            made, _ = decoder.take_steps(tokens, [HEAD] * room, Sampling(0), streams_, active)
        if isinstance(decoder, GraphDecoder):
            ours = made
    assert_same_tokens(ours, made)
    with torch.inference_mode(), pytest.raises(ValueError, match="full at 300"):
        GraphDecoder(model).prefill(prompt, HEAD)
        decoder = GraphDecoder(model)
        decoder.prefill(prompt, HEAD)
        decoder.take_steps(
            tokens, [HEAD] * (room + 1), Sampling(0), streams_, [[True]] * (room + 1)
        )


def test_a_decoder_wants_a_prefill_and_takes_a_window_at_most():
    decoder = GraphDecoder(random_gpt(SMALL))
    with pytest.raises(ValueError, match="prefill first"):
        decoder.decode_one(torch.tensor([3]), HEAD)
    with torch.inference_mode():
        decoder.prefill([torch.tensor([1, 2])], HEAD)
        with pytest.raises(ValueError, match=f"at most {AHEAD}"):
            n = AHEAD + 1
            decoder.take_steps(
                torch.tensor([3]), [HEAD] * n, Sampling(0), RandomStreams([None], CPU), [[True]] * n
            )


def test_a_step_is_recorded_once_for_all_utterances_of_as_many_rows(coarse, monkeypatch):
    told: list[tuple[str, int, int]] = []
    decoder = GraphDecoder(coarse)
    decoder.on_step = lambda *step: told.append(step)
    recorded: list[object] = []
    capture = Capture.__call__

    def counted(
        self: Capture, step: Callable[[], None], *kept: Sequence[Tensor]
    ) -> Callable[[], None]:
        recorded.append(step)
        return capture(self, step, *kept)

    monkeypatch.setattr(Capture, "__call__", counted)
    for seed in range(3):
        semantic = torch.randint(10_000, (45,))
        for sampling in SAMPLINGS[:2]:
            generate_coarse(
                coarse, [semantic], [VOICES[3]], GENERATION, sampling, streams(seed),
                decoder=lambda model, n: decoder,
            )  # fmt: skip
    # Two codebooks and two ways to sample; a voice is cut a little shorter than what later windows
    # see of what was made.
    assert len(recorded) == 4 + 2
    shapes = [shape for _, shape, *_ in decoder.fixed.prefills.graphs]
    assert sorted(shapes) == [(1, 883), (1, 887)]
    assert told == [("warm-up", 0, 1), ("warm-up", 1, 1)]


def test_a_step_waits_for_nothing_and_stays_on_its_device():
    # A tensor without data has no value that could be read, and cannot meet one on the CPU.
    model = GPT(SMALL).to("meta").bfloat16()
    for sampling in SAMPLINGS:
        with torch.inference_mode():
            decoder = GraphDecoder(model)
            decoder.prefill([torch.zeros(9, dtype=torch.int64, device="meta")], HEAD)
            fixed = decoder.fixed
            fixed.cache.n_keys = 256
            decoder._step(HEAD, sampling)
            assert fixed.token.is_meta
            ids = torch.zeros((1, 5), dtype=torch.int64, device="meta")
            assert model.prefill(ids, fixed.cache, 0, ids=HEAD).is_meta


def test_draws_given_back_are_drawn_again():
    ours, theirs = streams(1, 2), streams(1, 2)
    rows = RandomStreams(ours, CPU)
    rows.start_ahead(9, 33)
    for _ in range(9):
        rows.draw_next(torch.empty(2, 33), [True, True])
    rows.give_back(0, 0)
    rows.give_back(1, 4)
    for generator, n in zip(theirs, (9, 5), strict=True):
        for _ in range(n):
            torch.empty(33).exponential_(generator=generator)
    assert_same_streams(ours, theirs)


# ---- the fine model


def test_recorded_passes_of_the_fine_model_are_its_own():
    model = random_bark.random_stage("fine")
    passes = GraphFine(model)
    with torch.inference_mode():
        for codebook, start in ((2, 0), (7, 0), (2, 30)):
            for n in (1, 2):
                for _ in range(3):
                    codes = torch.randint(1024, (n, 40, 8))
                    made = passes(codes, codebook, start)
                    torch.testing.assert_close(made, model(codes, codebook, start))
        nowhere = FineGPT(model.config).to("meta").bfloat16()
        codes = torch.zeros((1, 40, 8), dtype=torch.int64, device="meta")
        assert GraphFine(nowhere)(codes, 2, 5).is_meta


def test_the_oldest_recording_makes_room_and_is_recorded_again_when_met_twice():
    calls: list[str] = []

    class Counting(Capture):
        def __call__(
            self, call: Callable[[], None], kept: Sequence[Tensor] = ()
        ) -> Callable[[], None]:
            calls.append("capture")
            return super().__call__(call, kept)

    graphs = CudaGraphs(Counting(CPU), 2)

    def run(key: str) -> list[str]:
        calls.clear()
        made = graphs(key, lambda x: x + ord(key), torch.tensor(1))
        assert made == 1 + ord(key)
        return [*calls]

    for key in "abc":
        assert run(key) == [] and run(key) == ["capture"] and run(key) == []
    assert list(graphs.graphs) == ["b", "c"]
    assert run("a") == [] and run("b") == [] and run("a") == ["capture"]
    assert list(graphs.graphs) == ["c", "a"]


# ---- which backend runs


def test_a_backend_that_cannot_run_says_why_when_a_bark_is_made():
    assert choose_backend(None, CPU) == choose_backend("torch", CPU) == "torch"
    with pytest.raises(BackendError, match="expected torch, triton"):
        choose_backend("cuda", CPU)
    code = (
        "import minibark\n"
        "for name in ('random', 'tiny'):\n"
        "    try: minibark.Bark.from_pretrained(name, backend='triton', device='cpu')\n"
        "    except minibark.BackendError as error: print(error)\n"
    )
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("backend 'triton' cannot run here: ")
        assert "needs an NVIDIA GPU" in line or "not installed" in line


# ---- int8 weights, as a GPU has them


def test_int8_weights_are_expanded_for_each_product():
    weight, x = torch.randn(24, 48), torch.randn(3, 5, 48)
    q, scale = quantize_rows(weight)
    bias = torch.randn(24)
    out = Int8Linear(q, scale, bias)(x.bfloat16())
    assert out.dtype == torch.bfloat16
    exact = torch.nn.functional.linear(x, q.float() * scale[:, None], bias)
    torch.testing.assert_close(out.float(), exact, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("bias", [False, True])
def test_an_int8_model_for_a_gpu_has_int8_layers_and_the_rest_in_bfloat16(bias):
    model = random_gpt(dataclasses.replace(SMALL, bias=bias))
    tokens = torch.randint(90, (1, 40))
    before = model(tokens)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reduce_to_int8(model, state)
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    matrices = {name for name, kind in kinds.items() if kind == torch.int8}
    assert matrices == {
        f"transformer.h.{layer}.{name}.weight"
        for layer in range(SMALL.n_layer)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    others = {kind for name, kind in kinds.items() if not name.endswith(("scale", *matrices))}
    assert others == {torch.bfloat16}
    after = model(tokens)
    assert after.dtype == torch.float32
    agreement = (after.argmax(-1) == before.argmax(-1)).float().mean()
    assert agreement > 0.8 and not torch.equal(after, before)


# ---- the kernels, interpreted


def small_prompts(n_rows: int) -> list[Tensor]:
    return [torch.randint(90, (n,)) for n in (5, 70, 129)[:n_rows]]


def check_fused_tokens(n_rows: int, bias: bool, sampling: Sampling) -> None:
    model = random_gpt(dataclasses.replace(SMALL, bias=bias))
    decoders = CachedDecoder(model), GraphDecoder(model, backend="triton")
    ids, n = small_prompts(n_rows), 6
    found = []
    for decoder in decoders:
        rows = RandomStreams(streams(*range(n_rows)), CPU)
        with torch.inference_mode():
            tokens = decoder.prefill(ids, HEAD).argmax(-1) + HEAD.start
            found.append(
                decoder.take_steps(tokens, [HEAD] * n, sampling, rows, [[True] * n_rows] * n)
            )
    (wanted, wanted_p), (made, made_p) = found
    assert_same_tokens(made, wanted)
    torch.testing.assert_close(made_p, wanted_p, atol=1e-5, rtol=1e-3)


@pytest.mark.thinned
@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "drawn"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_fused_steps_give_the_tokens_of_the_loop(interpreter, n_rows, bias, sampling):
    interpreter(check_fused_tokens, n_rows, bias, sampling)


def check_fused_attention(n_embd: int, wanted: list[tuple[int, int]]) -> None:
    from minibark.gpu import fused

    launched: list[tuple[int, int]] = []
    kernel = fused.attention

    def counted(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        launched.append((q.shape[2], k.shape[2]))
        return kernel(q, k, v, causal=causal)

    model = random_gpt(dataclasses.replace(SMALL, n_embd=n_embd))
    shape = vars(SMALL) | {"n_embd": n_embd, "output_vocab_size": 90}
    fine = random_gpt(FineGPTConfig(**shape))
    ids, codes = torch.randint(90, (2, 70)), torch.randint(70, (1, 40, 8))
    made = []
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        expected = CachedDecoder(model).prefill(list(ids), HEAD)
        fine_expected = fine(codes, 2, 5)
        # As it would be where it is faster for eight queries and more.
        patch.setattr(fused, "LEAST_QUERIES", {True: 8, False: 8})
        patch.setattr(fused, "attention", counted)
        made.append(GraphDecoder(model, backend="triton").prefill(list(ids), HEAD))
        fine_made = GraphFine(fine, backend="triton")(codes, 2, 5)
    for logits in made:
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fine_made, fine_expected, atol=1e-4, rtol=1e-4)
    assert launched == wanted


@pytest.mark.parametrize(
    ("n_embd", "wanted"),
    # The last layer of a prompt has one query, which torch is left with; that of a pass more.
    [(64, [(70, 70), (40, 40), (35, 40)]), (48, [])],
    ids=["head-of-32", "head-of-24"],
)
def test_attention_where_it_is_faster(interpreter, n_embd, wanted):
    interpreter(check_fused_attention, n_embd, wanted)


def check_fused_reduced(kind: str, n_rows: int) -> None:
    model = random_gpt(SMALL)
    if kind == "int8":
        reduce_to_int8(model, dict(model.state_dict()))
    else:
        model = model.to(getattr(torch, kind))
    ids, logits = small_prompts(n_rows), []
    with torch.inference_mode():
        for backend in ("torch", "triton"):
            decoder = GraphDecoder(model, backend=backend)
            decoder.prefill(ids, HEAD)
            logits.append(decoder.decode_one(torch.arange(n_rows) + 10, HEAD))
    torch_logits, fused = logits
    assert (fused - torch_logits).abs().max() <= 0.03 * torch_logits.abs().max()


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_fused_steps_in_half_precision_and_int8(interpreter, kind, n_rows):
    interpreter(check_fused_reduced, kind, n_rows)


def check_wrong_kernels_are_refused() -> None:
    model = random_gpt(SMALL)
    decoder = GraphDecoder(model, backend="triton")
    rows = RandomStreams([None], CPU)
    with torch.inference_mode():
        decoder.prefill(small_prompts(1), HEAD)
        assert decoder._fused is not None
        decoder._fused.norm_f = decoder._fused.layers[0].norm_2  # as a miscompiled kernel would
        with pytest.raises(BackendError, match=r"wrong results here.*use the backend 'torch'"):
            decoder.take_steps(torch.tensor([12]), [HEAD], Sampling(0), rows, [[True]])


def test_kernels_that_give_wrong_logits_are_refused(interpreter):
    interpreter(check_wrong_kernels_are_refused)


def check_whole_bark() -> None:
    assert choose_backend("triton", CPU) == "triton"
    tokens: dict[str, list[Tensor]] = {}
    told: dict[str, list[str]] = {"torch": [], "triton": []}
    for backend, stages in told.items():
        bark = Bark(two_layers(), device="cpu", backend=backend, seed=3)
        assert bark.backend == backend

        def note(stage: str, done: int, total: int, stages: list[str] = stages) -> None:
            stages.append(stage)

        semantic = bark.text_to_semantic(
            "ab", temperature=0.7, seed=1, min_eos_p=None, max_duration_s=0.05, on_step=note
        )
        coarse = bark.semantic_to_coarse(semantic[:2], seed=2)
        tokens[backend] = [semantic, coarse]
    assert "warm-up" in told["triton"] and "warm-up" not in told["torch"]
    for ours, theirs in zip(*tokens.values(), strict=True):
        assert_same_tokens(ours, theirs)


def two_layers() -> BarkConfig:
    config = preset("random")
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 32}
    return dataclasses.replace(
        config,
        semantic=dataclasses.replace(config.semantic, **shape),
        coarse=dataclasses.replace(config.coarse, **shape),
    )


def test_a_whole_bark_speaks_through_the_kernels(interpreter):
    interpreter(check_whole_bark)


# ---- on a GPU


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    if os.environ.get("TRITON_INTERPRET"):
        pytest.skip("TRITON_INTERPRET is set")
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "drawn", "filtered"])
@pytest.mark.parametrize("n_rows", [1, 4])
def test_recorded_steps_on_a_gpu(cuda, ending, coarse, n_rows, sampling, backend):
    def generators() -> list[torch.Generator]:
        return [torch.Generator(cuda).manual_seed(seed) for seed in range(n_rows)]

    ending, coarse = (GPT(model.config).to(cuda) for model in (ending, coarse))
    for model, source in ((ending, "semantic"), (coarse, "coarse")):
        given = random_bark.random_stage(source)
        if source == "semantic":
            given = random_bark.ending_early(given)
        model.load_state_dict(given.state_dict())
        model.eval().requires_grad_(False)
    options = {"max_duration_s": 1.5, "min_eos_p": 0.1}
    semantics = [torch.randint(10_000, (45 + 20 * i,)) for i in range(n_rows)]
    decoders = (GraphDecoder(ending, 256, backend=backend), GraphDecoder(coarse, backend=backend))
    for _ in range(2):  # the second time, nothing is recorded
        theirs, ours = generators(), generators()
        args = (ending, prompts(n_rows), GENERATION, sampling)
        wanted = generate_semantic(*args, theirs, **options)
        made = generate_semantic(*args, ours, decoder=lambda model, n: decoders[0], **options)
        args = (coarse, semantics, VOICES[:n_rows], GENERATION, sampling)
        wanted += generate_coarse(*args, theirs)
        made += generate_coarse(*args, ours, decoder=lambda model, n: decoders[1])
        for row, expected in zip(made, wanted, strict=True):
            assert_same_tokens(row, expected)
        assert_same_streams(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "int8"])
def test_a_bark_on_a_gpu_speaks_the_same_twice_in_every_precision(cuda, precision):
    bark = Bark.from_pretrained("tiny", device=cuda, precision=precision)
    assert bark.backend == "triton"
    first = bark.generate("Hello there.", voice="female", seed=1)
    assert len(first) > 10_000
    assert (first == bark.generate("Hello there.", voice="female", seed=1)).all()
    offloading = Bark.from_pretrained("tiny", device=cuda, precision=precision, offload=True)
    assert (first == offloading.generate("Hello there.", voice="female", seed=1)).all()
