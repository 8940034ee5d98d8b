"""The caches of `minibark.cpu` by themselves; `test_model.py` compares whole models over them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minibark.config import GPTConfig
from minibark.cpu import abilities, row_sums
from minibark.cpu.byte_sums import ByteCache
from minibark.cpu.row_sums import RowSumCache
from minibark.model import GPT

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines or not abilities.has_byte_sums(),
    reason="torch has no FBGEMM",
)
CHUNK, H, D, N_LAYER = 8, 2, 16, 3
KINDS = pytest.mark.parametrize("kind", [RowSumCache, ByteCache])


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(row_sums, "CHUNK", CHUNK)


class Rows:
    """A cache, and beside it all keys and values that it has been given."""

    def __init__(self, kind: type[RowSumCache], seed: int = 0) -> None:
        shape = {"n_layer": N_LAYER, "n_head": H, "n_embd": H * D, "block_size": 300}
        self.cache = kind(GPT(GPTConfig(input_vocab_size=9, output_vocab_size=9, **shape)), 0)
        self.random = torch.Generator().manual_seed(seed)
        self.seen: list[Tensor] = []  # of each row (2, N_LAYER, H, T, D)

    def make(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)

    def join(self, *lengths: int) -> None:
        self.cache.keep(list(range(len(self.seen))), len(lengths))
        for table in self.cache.tables:  # what is not written yet must not be seen
            free = [p for p in range(table.shape[1]) if p not in self.cache.places]
            table[:, free + self.cache.places[len(self.seen) :]] = (
                torch.nan if table.is_floating_point() else 255
            )
        for n in lengths:
            prompt = self.make(2, N_LAYER, H, n, D)
            for layer in range(N_LAYER):
                self.cache.write_prompt(len(self.seen), layer, *prompt[:, layer, None])
            self.seen.append(prompt)

    def keep(self, *rows: int) -> None:
        self.cache.keep(list(rows))
        self.seen = [self.seen[row] for row in rows]

    def step(self) -> tuple[Tensor, Tensor]:
        """A step's attention, and that of torch: both (N_LAYER, B, H, 1, D)."""
        n = len(self.seen)
        q, k, v = self.make(3, N_LAYER, n, H, 1, D)
        assert self.cache.begin_step().tolist() == [one.shape[3] for one in self.seen]
        ours = [self.cache.attend(layer, q[layer], k[layer], v[layer]) for layer in range(N_LAYER)]
        for row in range(n):
            new = torch.stack((k[:, row], v[:, row]))
            self.seen[row] = torch.cat((self.seen[row], new), 3)
        attend = torch.nn.functional.scaled_dot_product_attention
        theirs = [attend(q[:, row], *self.seen[row]) for row in range(n)]
        return torch.stack(ours), torch.stack(theirs, 1)


@KINDS
def test_rows_that_come_and_go_see_their_own_past_alone(kind):
    rows = Rows(kind)
    tolerance = 1e-5 if kind is RowSumCache else 2e-2
    for act in ("join 5", "keep 0", "join 8 1 24", "keep 0 3 2", "join 16", "keep 3", "join 40"):
        verb, *numbers = act.split()
        getattr(rows, verb)(*map(int, numbers))
        for _ in range(9):
            ours, theirs = rows.step()
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@KINDS
def test_a_row_gets_the_same_numbers_whatever_is_beside_it(kind, monkeypatch):
    """Bit for bit, and so the same tokens."""
    monkeypatch.setattr(row_sums, "CHUNK", 64)
    alone, beside = Rows(kind, 1), Rows(kind, 2)
    alone.join(120)
    beside.join(200, 120, 2)
    for table, other in zip(alone.cache.tables, beside.cache.tables, strict=True):
        other[:, beside.cache.places[1]] = table[:, alone.cache.places[0]]
    for _ in range(12):
        q, k, v = beside.make(3, 3, H, 1, D)
        steps = []
        for rows, part in ((alone, slice(1, 2)), (beside, slice(None))):
            rows.cache.begin_step()
            steps.append(rows.cache.attend(0, q[part], k[part], v[part]))
        assert torch.equal(steps[0][0], steps[1][1])


def test_bytes_are_near_what_they_stand_for_and_a_fourth_of_it():
    rows = Rows(ByteCache)
    rows.join(25)
    keys, values, newest = rows.cache.tables
    unpack = torch.ops.quantized.embedding_bag_byte_unpack
    k, v = rows.seen[0]
    full = unpack(keys[:, 0, :, :3].reshape(-1, CHUNK + 8)).view(N_LAYER, H, 3, D, CHUNK)
    full = full.transpose(-1, -2).flatten(2, 3)
    whole = unpack(values[:, 0, :, :25].reshape(-1, D + 8)).view(v.shape)
    for ours, given, dim in ((full.unflatten(2, (3, CHUNK)), k[:, :, :24], 3), (whole, v, 3)):
        given = given.reshape(ours.shape)
        span = given.amax(dim, keepdim=True) - given.amin(dim, keepdim=True)
        assert ((ours - given).abs() <= span / 255 * 0.51).all()
    assert torch.equal(newest[:, 0, :, 0, :, 0], k[:, :, 24])
    assert keys.dtype == values.dtype == torch.uint8


@KINDS
def test_a_row_that_leaves_makes_room_and_nothing_is_copied(kind):
    rows = Rows(kind)
    rows.join(3, 4, 5)
    tables = [table.data_ptr() for table in rows.cache.tables]
    rows.cache.keep([0, 2], n_more=1)
    assert rows.cache.places == [0, 2, 1]
    assert [table.data_ptr() for table in rows.cache.tables] == tables


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_caches_and_steps_are_the_same_where_torch_has_less(capability):
    """Told so when it starts; what it has by itself the other tests see."""
    here = Path(__file__)
    files = [here, here.with_name("test_scripted.py"), here.with_name("test_drafted.py")]
    names = "come_and_go or (plain_decoder and int8) or (specification and 0)"
    some = ["-p", "no:xdist", "-p", "no:cacheprovider", "-k", names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *some, *files],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-2000:]
