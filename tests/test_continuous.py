"""Rows that come and go: each is what it is alone, and none waits for, or dies of, another."""

import errno
import os
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import pytest
import torch
from checkpoints import TINY, random_voice
from random_bark import assert_same_tokens, random_gpt, widen
from torch import Tensor

from minibark import Bark, Options, Voice, fast
from minibark.config import GPTConfig
from minibark.cpu import row_sums
from minibark.cpu.cache import new_cache
from minibark.decoding import CachedDecoder, Decoder, UncachedDecoder
from minibark.gpu.decoder import GraphDecoder
from minibark.model import GPT, KVCache
from minibark.pipeline import Audio, Row
from minibark.speech.continuous import ContinuousBatch
from minibark.speech.shared import ClosedError, SharedPipeline
from minibark.speech.ticket import Ticket

PARTS = ("semantic", "coarse", "fine")
VOICES = [None, *(random_voice(TINY.generation, n, seed=n) for n in (3, 8, 20))]
N_TEXT = 150  # ids of texts, from 0; the last is kept for `bad_text`
DECODERS = {
    "uncached": UncachedDecoder,
    "plain": lambda model, n: CachedDecoder(model, n, KVCache),
    "row sums": lambda model, n: CachedDecoder(model, n, row_sums.RowSumCache),
    "recorded": GraphDecoder,
}


def opened() -> Bark:
    """A Bark of very small lengths, whose distributions are not flat."""
    bark = Bark(TINY, device="cpu")
    for stage in ("semantic", "coarse", "fine"):
        widen(bark.model(stage), len(stage))
    return bark


@pytest.fixture(scope="module")
def bark() -> Bark:
    return opened()


@pytest.fixture
def decoding_by(bark, monkeypatch):
    """Makes the Bark decode in one of the ways."""
    monkeypatch.setattr(row_sums, "CHUNK", 8)

    def use(make) -> None:
        def new_decoder(model: GPT, n_merged: int, choice: fast.Choice) -> Decoder:
            return make(model, n_merged)

        monkeypatch.setattr(bark.pipeline, "new_decoder", new_decoder)

    return use


class Job:
    """A row and its options, which can be made again with the same stream."""

    def __init__(self, seed: int, text: list[int], voice: Voice | None = None, **options: object):
        self.text, self.voice = torch.tensor(text), voice
        self.options = Options(seed=seed, **options)

    def row(self) -> Row:
        return Row(self.text, self.voice, self.options.generator(torch.device("cpu")))

    def alone(self, bark: Bark) -> tuple[Voice, Tensor]:
        """What it makes by itself, and the state that it leaves its stream in."""
        row = self.row()
        (voice,) = bark.pipeline.speak([row], self.options)
        return voice, row.generator.get_state()


def some_jobs(n: int, rng: Random) -> list[Job]:
    jobs = []
    for seed in range(n):
        options: dict[str, object] = {"min_eos_p": rng.choice([None, None, 0.1, 0.9, 0.0])}
        if rng.random() < 0.5:  # ends of windows, and beside them
            options["max_duration_s"] = rng.choice([0.01, 0.05, 0.11, 0.13, 0.2, 0.3])
        if rng.random() < 0.3:
            options["allow_early_stop"] = False
        if rng.random() < 0.2:
            options |= rng.choice([{"temperature": 0}, {"top_k": 5}, {"waveform_temperature": 1.2}])
        if rng.random() < 0.3:
            options["sliding_window_len"] = rng.choice([1, 3, 8])
        if rng.random() < 0.3:
            options["max_coarse_history"] = rng.choice([2, 7, 20])
        text = rng.choices(range(N_TEXT), k=rng.randrange(1, 9))
        jobs.append(Job(seed, text, rng.choice(VOICES), **options))
    return jobs


def finish(batch: ContinuousBatch) -> list[Ticket]:
    done = []
    while batch.n_live or batch.n_waiting:
        done += batch.advance()
    return done


def assert_same_voice(ours: Voice, theirs: Voice) -> None:
    for part in PARTS:
        assert_same_tokens(getattr(ours, part), getattr(theirs, part))
        assert not getattr(ours, part).is_inference()


# ---- the same as alone


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("how", DECODERS)
def test_whatever_comes_and_goes_a_row_gets_what_it_gets_alone(bark, decoding_by, how, seed):
    rng = Random(seed)
    jobs = some_jobs(14, rng)
    alone = [job.alone(bark) for job in jobs]
    decoding_by(DECODERS[how])
    batch, rows, tickets, at_once = ContinuousBatch(bark.pipeline, most=4), {}, {}, 0
    left = list(jobs)
    while left or batch.n_live or batch.n_waiting:
        while left and rng.random() < 0.3:
            job = left.pop(0)
            rows[job] = job.row()
            tickets[job] = batch.add(rows[job], job.options)
        for ticket in batch.advance():
            assert ticket.error is None and ticket.voice and ticket.spent_s > 0
        at_once = max(at_once, batch.n_live)
    assert at_once > 2 and batch.advance() == []
    lengths = set()
    for job, (voice, state) in zip(jobs, alone, strict=True):
        assert_same_voice(tickets[job].voice, voice)
        assert rows[job].generator.get_state().equal(state)
        lengths.add(len(voice.semantic))
    assert 0 in lengths and len(lengths) > 3


def test_a_trained_model_too():
    bark = Bark.from_pretrained("tiny", device="cpu")
    texts = ["Hi.", "A dog.", "No.", "The door was open."]
    batch, tickets = ContinuousBatch(bark.pipeline, most=3), []
    for seed, text in enumerate(texts):
        voice = bark.load_voice(("male", "female")[seed % 2])
        stream = torch.Generator().manual_seed(seed)
        row = Row(torch.tensor(bark.tokenizer.encode(text)), voice, stream)
        tickets.append(batch.add(row, Options(max_duration_s=0.2 + 0.1 * seed)))
        batch.advance()
    finish(batch)
    for seed, (text, ticket) in enumerate(zip(texts, tickets, strict=True)):
        options = {"seed": seed, "max_duration_s": 0.2 + 0.1 * seed}
        voice = ("male", "female")[seed % 2]
        assert_same_voice(ticket.voice, bark.generate_voice(text, voice, **options))


@pytest.mark.parametrize("n_embd", [32, 512])
def test_rows_that_join_a_decoder_are_as_if_they_had_begun_with_it(n_embd):
    shape = {"block_size": 300, "n_layer": 1, "n_head": 2, "n_embd": n_embd}
    model = random_gpt(GPTConfig(input_vocab_size=90, output_vocab_size=70, **shape))
    decoder, plain = CachedDecoder(model, 0, new_cache), UncachedDecoder(model)
    rng, ids = Random(3), slice(5, 65)

    def prompts(n: int) -> list[Tensor]:
        return [torch.randint(90, (rng.choice([1, 30, 127, 128, 200]),)) for _ in range(n)]

    def same(call) -> None:
        ours, theirs = call(decoder), call(plain)
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)

    with torch.inference_mode():
        first = prompts(3)
        same(lambda one: one.prefill(first, ids))
        n_rows = 3
        for _ in range(5):
            kept = sorted(rng.sample(range(n_rows), rng.randrange(1, n_rows + 1)))
            assert decoder.keep(kept) and plain.keep(kept)
            new = prompts(rng.randrange(3))
            if new:
                same(lambda one, new=new: one.join(new, ids))
            n_rows = len(kept) + len(new)
            tokens = torch.randint(90, (n_rows,))
            same(lambda one, tokens=tokens: one.decode_one(tokens, ids))
        assert isinstance(decoder.cache, row_sums.RowSumCache) == (n_embd == 512)
    assert GraphDecoder(model).join(first, ids) is None


def test_rows_of_one_stream_follow_one_another(bark):
    options, text = Options(min_eos_p=None), torch.tensor([3, 1])
    torch.manual_seed(5)
    expected = [bark.pipeline.speak([Row(text)], options)[0] for _ in range(3)]
    batch = ContinuousBatch(bark.pipeline)
    torch.manual_seed(5)
    tickets = [batch.add(Row(text), options) for _ in range(3)]
    other = Job(7, [5])
    ticket = batch.add(other.row(), other.options)
    done = finish(batch)
    assert [one for one in done if one is not ticket] == tickets
    for one, voice in zip(tickets, expected, strict=True):
        assert_same_voice(one.voice, voice)
    assert_same_voice(ticket.voice, other.alone(bark)[0])


def test_one_at_most_is_one_after_the_other(bark):
    batch = ContinuousBatch(bark.pipeline, most=1)
    tickets = [batch.add(Job(seed, [seed + 1]).row(), Options()) for seed in range(4)]
    done = []
    while batch.n_live or batch.n_waiting:
        done += batch.advance()
        assert batch.n_live <= 1
    assert done == tickets


# ---- whose turn it is


def test_a_row_of_another_kind_is_not_kept_waiting(bark):
    """However many of the first kind come, all the time."""
    batch, long = ContinuousBatch(bark.pipeline, most=3), {"allow_early_stop": False}
    seeds = iter(range(1000))

    def feed() -> None:
        while batch.n_waiting < 5:
            job = Job(next(seeds), [4], **long)
            batch.add(job.row(), job.options)

    feed()
    batch.advance()
    other = batch.add(Job(2, [4]).row(), Options(temperature=1.3, **long))
    n_pieces = 0
    while other not in batch.advance():
        feed()
        n_pieces += 1
        assert n_pieces < 60
    assert_same_voice(other.voice, Job(2, [4], temperature=1.3, **long).alone(bark)[0])
    assert batch.n_waiting > 2


def test_a_row_joins_while_others_are_at_work(bark, monkeypatch):
    made: list[list[int]] = []

    class Counting(CachedDecoder):
        def __init__(self, model: GPT, n_merged: int) -> None:
            super().__init__(model, n_merged)
            self.rows: list[int] = []
            made.append(self.rows)

        def decode_one(self, tokens: Tensor, ids: slice) -> Tensor:
            self.rows.append(len(tokens))
            return super().decode_one(tokens, ids)

    monkeypatch.setattr(bark.pipeline, "new_decoder", lambda model, n, _: Counting(model, n))
    monkeypatch.setattr("minibark.speech.continuous.END_TEST_STEPS", 4)
    batch = ContinuousBatch(bark.pipeline, most=4)
    for seed in range(3):
        job = Job(seed, [4], allow_early_stop=False)
        batch.add(job.row(), job.options)
        batch.advance()
    finish(batch)
    semantic, coarse = made  # one decoder for each loop, and none begun anew
    assert semantic[:12] == [1] * 4 + [2] * 4 + [3] * 4 and semantic[-1] == 1
    assert max(coarse) >= 2


# ---- rows that go


def test_a_row_that_is_dropped_leaves_and_is_not_told_of(bark):
    jobs = some_jobs(6, Random(4))
    expected = [job.alone(bark)[0] for job in jobs]
    for n in (0, 1, 2, 5):
        batch = ContinuousBatch(bark.pipeline, most=4)
        tickets = [batch.add(job.row(), job.options) for job in jobs]
        done = []
        for _ in range(n):
            done += batch.advance()
        gone = next(ticket for ticket in tickets if ticket not in done)
        before = batch.n_live + batch.n_waiting
        batch.drop(gone)
        done += batch.advance()
        assert batch.n_live + batch.n_waiting < before
        done += finish(batch)
        assert set(done) == set(tickets) - {gone} and gone.voice is None
        for voice, ticket in zip(expected, tickets, strict=True):
            if ticket is not gone:
                assert_same_voice(ticket.voice, voice)


@pytest.mark.parametrize("stage", PARTS)
def test_a_row_whose_listener_raises_ends_alone(bark, stage):
    jobs = [Job(seed, [seed], VOICES[seed], allow_early_stop=False) for seed in range(4)]
    told: list[tuple[str, int, int]] = []

    def leave(*step: object) -> None:
        told.append(step)
        if step[0] == stage:
            raise BrokenPipeError("gone")

    batch = ContinuousBatch(bark.pipeline)
    tickets = [
        batch.add(job.row(), job.options, leave if n == 1 else None) for n, job in enumerate(jobs)
    ]
    finish(batch)
    assert isinstance(tickets[1].error, BrokenPipeError) and tickets[1].voice is None
    assert [step[0] for step in told].count(stage) == 1 and told[-1][0] == stage
    for n in (0, 2, 3):
        assert_same_voice(tickets[n].voice, jobs[n].alone(bark)[0])


def test_progress_is_told_of_each_row(bark):
    told = []
    batch, job = ContinuousBatch(bark.pipeline), Job(0, [3], max_duration_s=0.2)
    batch.add(job.row(), job.options, lambda *step: told.append(step))
    batch.add(Job(1, [3]).row(), job.options)
    finish(batch)
    stages = [stage for n, (stage, *_) in enumerate(told) if not n or told[n - 1][0] != stage]
    assert stages == list(PARTS)
    for stage in PARTS:
        steps = [(done, total) for name, done, total in told if name == stage]
        assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]


# ---- what goes wrong


def test_what_a_row_s_options_ask_too_much_for_is_told_at_once(bark):
    batch = ContinuousBatch(bark.pipeline)
    with pytest.raises(ValueError, match="max_coarse_history must be"):
        batch.add(Job(0, [1]).row(), Options(max_coarse_history=60))
    assert batch.n_waiting == 0


@pytest.mark.parametrize("how", ["plain", "recorded"])
@pytest.mark.parametrize("stage", ["semantic", "coarse"])
def test_a_row_that_a_model_fails_on_fails_alone(decoding_by, monkeypatch, stage, how):
    bark = opened()
    monkeypatch.setattr(row_sums, "CHUNK", 8)
    monkeypatch.setattr(bark.pipeline, "new_decoder", lambda model, n, _: DECODERS[how](model, n))
    good = [Job(seed, [seed + 1], allow_early_stop=False) for seed in range(3)]
    expected = [job.alone(bark)[0] for job in good]
    g = TINY.generation
    voice = random_voice(g, 8)
    bad = Job(9, [N_TEXT], voice, allow_early_stop=False)
    damaged = g.text_encoding_offset + N_TEXT
    if stage == "coarse":  # an id of the voice, which the good rows never make
        seen = {int(code) for one in expected for code in one.coarse[0]}
        voice.coarse[0] = min(set(range(g.codebook_size)) - seen)
        damaged = g.semantic_vocab_size + int(voice.coarse[0, 0])
    bark.model(stage).transformer.wte.weight[damaged] = torch.nan
    batch = ContinuousBatch(bark.pipeline)
    jobs = [good[0], bad, *good[1:]]
    tickets = {job: batch.add(job.row(), job.options) for job in jobs}
    finish(batch)
    assert isinstance(tickets[bad].error, FloatingPointError) and tickets[bad].voice is None
    assert stage in str(tickets[bad].error)
    for job, voice in zip(good, expected, strict=True):
        assert_same_voice(tickets[job].voice, voice)


class Cramped(CachedDecoder):
    """A decoder that asks for more memory than there is, for more rows than `most`."""

    most = 2
    error: Exception | None = None  # else torch's

    def decode_one(self, tokens: Tensor, ids: slice) -> Tensor:
        if len(tokens) > self.most:
            if self.error is not None:
                raise self.error
            torch.empty(1 << 58)
        return super().decode_one(tokens, ids)


@pytest.mark.parametrize(
    "error",
    [
        None,
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("could not allocate enough memory"),
    ],
    ids=["torch", "system", "cuda", "other"],
)
def test_where_memory_runs_out_fewer_rows_go_on(bark, decoding_by, monkeypatch, error):
    monkeypatch.setattr(Cramped, "error", error)
    jobs = [Job(seed, [seed], allow_early_stop=False) for seed in range(9)]
    expected = [job.alone(bark)[0] for job in jobs]
    decoding_by(Cramped)
    batch = ContinuousBatch(bark.pipeline)
    tickets = [batch.add(job.row(), job.options) for job in jobs]
    with pytest.warns(UserWarning, match=r"memory ran out .*; going on with \d rows at once"):
        done = finish(batch)
    assert batch.most == 2 and len(done) == 9
    for ticket, voice in zip(tickets, expected, strict=True):
        assert_same_voice(ticket.voice, voice)
    monkeypatch.setattr(Cramped, "most", 0)
    job = Job(0, [1], allow_early_stop=False)
    ticket = batch.add(job.row(), job.options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert finish(batch) == [ticket]
    assert batch.most == 1 and "memory" in str(ticket.error)


@pytest.mark.parametrize("most", [0, -1, 1.5, True, "a", None])
def test_a_number_of_rows_that_is_none_is_refused_at_once(bark, most):
    for make in (ContinuousBatch, SharedPipeline):
        with pytest.raises(ValueError, match="most must be a positive whole number, got"):
            make(bark.pipeline, most)
    with pytest.raises(ValueError, match="patience must be"):
        ContinuousBatch(bark.pipeline, patience=most)


# ---- many threads


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # later Pythons warn of the fork
def test_a_forked_process_is_told_that_the_thread_is_not_its_own(bark):
    job = Job(1, [2])
    with SharedPipeline(bark.pipeline) as shared:
        if not (child := os.fork()):
            signal.alarm(20)  # ends it, if it hangs
            status = 1
            try:
                shared.speak([job.row()], job.options)
            except ClosedError as error:
                shared.close()
                status = 0 if "forked" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert_same_voice(shared.speak([job.row()], job.options)[0], job.alone(bark)[0])


@pytest.fixture(params=[1, 2])
def torch_threads(request):
    """With more than one, sound is decoded in the thread that makes the rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def test_threads_that_speak_at_once_are_rows_of_one_batch(bark, torch_threads):
    jobs = some_jobs(24, Random(7))
    expected = [job.alone(bark)[0] for job in jobs]
    with SharedPipeline(bark.pipeline, most=4) as shared:
        lives, gate = [], threading.Barrier(8)

        def speak(job: Job) -> tuple[Voice, Audio]:
            if job in jobs[:8]:
                gate.wait()
            note = lambda *_: lives.append(shared.n_live)  # noqa: E731
            (voice,) = shared.speak([job.row()], job.options, note)
            return voice, shared.decode(voice.fine)

        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(speak, jobs))
    for (ours, audio), theirs in zip(made, expected, strict=True):
        assert_same_voice(ours, theirs)
        np.testing.assert_allclose(audio, bark.pipeline.decode(theirs.fine), atol=1e-5)
    assert max(lives) > 2
    np.testing.assert_allclose(shared.decode(made[0][0].fine), made[0][1], atol=1e-5)  # closed
    with pytest.raises(ClosedError, match="takes no more texts"):
        shared.speak([jobs[0].row()], jobs[0].options)


def test_all_that_is_above_a_pipeline_works_on_a_shared_one():
    bark = Bark.from_pretrained("tiny", device="cpu")
    text, short = "Hi. A dog.", {"max_duration_s": 0.3, "seed": 3, "retries": 0, "silence_s": 0.1}

    def made() -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            audio = [bark.generate("Hi.", "male", seed=1, max_duration_s=0.2)]
            audio += bark.generate_batch(["Hi.", "No."], seeds=[1, 2], max_duration_s=0.2)
            audio += [bark.generate_long(text, "female", history="fixed", **short)]
            audio += bark.stream(text, "male", **short)
        semantic = bark.text_to_semantic("Hi.", seed=0, max_duration_s=0.1)
        return [*map(torch.from_numpy, audio), semantic, bark.semantic_to_coarse(semantic, seed=0)]

    plain, pipeline = made(), bark.pipeline
    bark.pipeline = shared = SharedPipeline(pipeline)
    with shared:
        for ours, theirs in zip(made(), plain, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert shared.module("codec") is pipeline.module("codec") and bark.describe()
    assert shared.choice == pipeline.choice and shared.built == pipeline.built


def test_a_listener_who_goes_takes_none_along(bark):
    stays = Job(1, [2], allow_early_stop=False)
    expected, threads = stays.alone(bark)[0], set()
    with SharedPipeline(bark.pipeline) as shared, ThreadPoolExecutor(2) as pool:

        def leave(*_: object) -> None:
            threads.add(threading.current_thread())
            raise BrokenPipeError("gone")

        for stage in range(4):
            one = pool.submit(shared.speak, [stays.row()], stays.options)
            jobs = [Job(stage, [1], allow_early_stop=False), Job(9, [3], allow_early_stop=False)]
            with pytest.raises(BrokenPipeError, match="gone"):
                shared.speak([job.row() for job in jobs], jobs[0].options, leave)
            assert_same_voice(one.result()[0], expected)
        assert threads == {threading.current_thread()}
        until = time.monotonic() + 10
        while shared.n_live + shared.n_waiting and time.monotonic() < until:
            time.sleep(0.01)
        assert shared.n_live == shared.n_waiting == 0


def test_a_listener_whose_row_waits_can_go(bark, decoding_by):
    go_on, job = threading.Event(), Job(1, [2], allow_early_stop=False)

    class Slow(CachedDecoder):
        def prefill(self, prompts, ids):
            assert go_on.wait(60)
            return super().prefill(prompts, ids)

    def leave(*_: object) -> None:
        raise BrokenPipeError("gone")

    expected = job.alone(bark)[0]
    decoding_by(Slow)
    with SharedPipeline(bark.pipeline, most=1) as shared, ThreadPoolExecutor(1) as pool:
        one = pool.submit(shared.speak, [job.row()], job.options)
        with pytest.raises(BrokenPipeError, match="gone"):
            shared.speak([job.row()], job.options, leave)
        assert not one.done()
        go_on.set()
        assert_same_voice(one.result()[0], expected)


def test_what_goes_wrong_is_raised_where_it_belongs(bark, torch_threads):
    with SharedPipeline(bark.pipeline) as shared:
        with pytest.raises(ValueError, match="max_coarse_history must be"):
            shared.speak([Job(0, [1]).row()], Options(max_coarse_history=60))
        bad = Row(torch.tensor([10_000]))  # no such id
        with pytest.raises(IndexError):
            shared.speak([bad], Options())
        with pytest.raises(ValueError, match="codes must be"):
            shared.decode(torch.full((8, 9), 10_000))
        assert shared.speak([], Options()) == []
        job = Job(0, [1])
        assert_same_voice(shared.speak([job.row()], job.options)[0], job.alone(bark)[0])


@pytest.mark.parametrize("finish", [True, False])
def test_a_pipeline_that_closes_ends_its_rows_or_lets_them_go(bark, finish):
    jobs = [Job(seed, [1], allow_early_stop=False) for seed in range(30)]
    begun = threading.Event()
    shared = SharedPipeline(bark.pipeline, most=2)
    rows, note = [job.row() for job in jobs], lambda *_: begun.set()
    with ThreadPoolExecutor(1) as pool:
        spoken = pool.submit(shared.speak, rows, jobs[0].options, note)
        assert begun.wait(10)
        shared.close(finish)
        if finish:
            assert len(spoken.result()) == len(jobs)
        else:
            with pytest.raises(ClosedError, match="not finished"):
                spoken.result()
    assert shared.n_live == 0 or not finish
    shared.close()
