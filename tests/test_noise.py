"""Exponential noise: torch's numbers, in less time."""

import pytest
import torch

from minibark import noise
from minibark.noise import fill_exponential

SHAPES = [(1,), (7,), (3, 33), (1024,), (2, 10_001)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(20))
def test_the_numbers_and_the_stream_are_torch_s(shape, seed):
    theirs, ours = (torch.Generator().manual_seed(seed) for _ in range(2))
    for _ in range(2):
        expected = torch.empty(shape).exponential_(generator=theirs)
        table = torch.empty(2, *shape)
        made = fill_exponential(table[1], ours)
        assert made.data_ptr() == table[1].data_ptr() and torch.equal(made, expected)
        assert torch.equal(theirs.get_state(), ours.get_state())


def test_torch_s_own_stream_is_used_where_none_is_given():
    torch.manual_seed(3)
    expected = torch.empty(100).exponential_()
    torch.manual_seed(3)
    assert torch.equal(fill_exponential(torch.empty(100), None), expected)


def test_a_torch_that_makes_them_otherwise_makes_them_itself(monkeypatch):
    real = torch.log1p
    monkeypatch.setattr(torch, "log1p", lambda x, out: real(x, out=out).mul_(1.0001))
    noise._is_of_logarithms.cache_clear()
    try:
        theirs, ours = (torch.Generator().manual_seed(1) for _ in range(2))
        expected = torch.empty(50).exponential_(generator=theirs)
        assert torch.equal(fill_exponential(torch.empty(50), ours), expected)
    finally:
        noise._is_of_logarithms.cache_clear()


def test_other_types_are_torch_s_own():
    theirs, ours = (torch.Generator().manual_seed(1) for _ in range(2))
    expected = torch.empty(50, dtype=torch.float64).exponential_(generator=theirs)
    assert torch.equal(fill_exponential(torch.empty(50, dtype=torch.float64), ours), expected)


def test_numbers_that_lie_otherwise_are_torch_s_own():
    theirs, ours = (torch.Generator().manual_seed(1) for _ in range(2))
    expected = torch.empty(7, 5).T.exponential_(generator=theirs)
    assert torch.equal(fill_exponential(torch.empty(7, 5).T, ours), expected)
