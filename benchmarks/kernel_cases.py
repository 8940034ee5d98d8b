"""The kernels at the sizes where Bark uses them, with their references and torch's own operators.

Imports triton. Operands are random; products of a row are about 1, whatever the width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from unittest.mock import patch

import torch
import torch.nn.functional as F
from common import Call, n_sets
from torch import Tensor

from minibark.checkpoint.rows import quantize_rows
from minibark.kernels import decode_attention as splitting
from minibark.kernels import linear
from minibark.kernels.attention import attention, attention_ref
from minibark.kernels.decode_attention import decode_attention, decode_attention_ref
from minibark.kernels.layer import Layer, decode_layer, decode_layer_ref
from minibark.kernels.matrix import Matrix, Norm
from minibark.kernels.step import choose_tokens, choose_tokens_ref, embed_tokens, embed_tokens_ref

WIDTHS = {"small": (768, 12), "large": (1024, 16), "random": (32, 2)}  # channels, heads
N_POSITIONS = 1024  # in a cache
N_KEYS = 900  # of them filled: a coarse window has 887 to 946
ATTENTION_LENGTHS = (257, 887, 1024)  # semantic and coarse prompt; the fine stage
N_IDS = 12_096  # in the coarse model's table
HEADS = (1024, 10_000)  # ids that a coarse and a semantic token are chosen from
N_STEPS = 60

# Of the largest value. The tensor cores round both factors; one row is summed in float32.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    """One kernel at one size."""

    kernel: str
    size: str
    precision: str  # of the weights, or of q, k and v
    n_rows: int = 1
    n_keys: int = N_KEYS  # of attention
    n_ids: int | None = None  # to choose from
    causal: bool | None = None

    @property
    def label(self) -> str:
        """The size in words."""
        words = [self.size, self.precision, f"B {self.n_rows}"]
        if "attention" in self.kernel or self.kernel == "decode_layer":
            words.append(f"T {self.n_keys}")
        if self.n_ids is not None:
            words.append(f"V {self.n_ids}")
        if self.causal is not None:
            words.append("causal" if self.causal else "full")
        return " ".join(words)


@dataclass(frozen=True)
class Work:
    """A case made ready: one call for each set of operands, and what the calls cost."""

    ours: list[Call]
    error: float  # largest difference from the reference, of its largest value
    tolerance: float
    n_bytes: int  # read and written by a call, at least
    torch: list[Call] = field(default_factory=list)  # torch's own operator, if it has one
    n_flop: int = 0


def prepare(case: Case, device: torch.device) -> Work:
    """Make the operands of a case and compare the kernel with its reference once."""
    torch.manual_seed(0)
    return MAKERS[case.kernel](case, device)


def cases(*, quick: bool, on_cpu: bool) -> list[Case]:
    """What is measured. On a CPU float16 stands for bfloat16, which is wrong in the interpreter."""
    half = "float16" if on_cpu else "bfloat16"
    sizes = ("random",) if on_cpu and quick else ("large", "small")
    found = []
    for size in sizes:
        batches = (1, 16) if size == "large" or not quick else (1,)
        linears = ("norm_qkv", "combine_residual", "norm_linear", "linear_residual")
        for kernel in ("decode_layer", *linears):
            for precision in (half, "int8") if size != "small" or not quick else (half,):
                for n_rows in (1,) if kernel == "combine_residual" else batches:
                    if not (quick and n_rows > 1 and precision == "int8"):
                        found.append(Case(kernel, size, precision, n_rows))
        keys = (N_KEYS,) if quick else (257, N_KEYS, N_POSITIONS)
        for n_rows in batches:
            found += [Case("decode_attention", size, half, n_rows, n) for n in keys]
        lengths = (65,) if on_cpu and quick else ATTENTION_LENGTHS
        for n in lengths if size != "small" or not quick else ():
            for causal in (True, False):
                found.append(Case("attention", size, half, 1, n, causal=causal))
    found += [Case("embed_tokens", sizes[0], half, n_rows) for n_rows in (1, 16)]
    found += [
        Case("choose_tokens", sizes[0], "float32", n_rows, n_ids=n_ids)
        for n_rows in (1, 16)
        for n_ids in HEADS
    ]
    return sorted(found, key=lambda case: list(MAKERS).index(case.kernel))


@dataclass(frozen=True)
class Tiling:
    """How the work of a kernel for one row is cut up."""

    size: int  # elements of a matrix, or splits of a head
    num_warps: int

    def __str__(self) -> str:
        return f"{self.size}, {self.num_warps} warps"


def tilings(case: Case, device: torch.device) -> list[Tiling]:
    """The tilings worth a try, the one in use first; none for a kernel that has but one."""
    width, n_head = WIDTHS[case.size]
    products = {
        "norm_qkv": (3 * width, width),
        "combine_residual": (width, width),
        "norm_linear": (4 * width, width),
        "linear_residual": (width, 4 * width),
    }
    found = []
    if case.n_rows == 1 and case.kernel in products:
        size = math.prod(linear.choose_tile(*products[case.kernel]))
        found = [Tiling(size, linear.NUM_WARPS)]
        sizes = (size // 2, size, 2 * size, 4 * size)
        found += [Tiling(size, num_warps) for size in sizes for num_warps in (2, 4, 8)]
    elif case.n_rows == 1 and case.kernel == "decode_layer":
        # How many splits pay is known where they are combined.
        n = splitting.choose_n_splits(n_head, N_POSITIONS, splitting.count_sms(device))
        found = [Tiling(n_splits, 4) for n_splits in (n, max(1, n // 2), 2 * n, 3 * n)]
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def tiled(case: Case, tiling: Tiling) -> Iterator[None]:
    """Cut the work of a case's kernel up so while the block runs."""
    if case.kernel == "decode_layer":
        with patch.object(splitting, "choose_n_splits", lambda *args: tiling.size):
            yield
    else:
        tile = {"TILE_SIZE": tiling.size, "FEW_OUTPUTS": 0, "NUM_WARPS": tiling.num_warps}
        with patch.multiple(linear, **tile):
            yield


# ---- operands


def _matrix(n_out: int, n_in: int, precision: str, device: torch.device) -> Matrix:
    weight = torch.randn(n_out, n_in, device=device) / math.sqrt(n_in)
    bias = torch.randn(n_out, device=device)
    if precision == "int8":
        return Matrix(*quantize_rows(weight), bias)
    dtype = getattr(torch, precision)
    return Matrix(weight.to(dtype), None, bias.to(dtype))


def _norm(case: Case, device: torch.device) -> Norm:
    width, dtype = WIDTHS[case.size][0], _half(case, device)
    weight, bias = torch.rand(width, device=device) + 0.5, torch.randn(width, device=device)
    return Norm(weight.to(dtype), bias.to(dtype), 1e-5)


def _cache(case: Case, device: torch.device) -> Tensor:
    """(2, B, H, T, D), full."""
    width, n_head = WIDTHS[case.size]
    shape = (2, case.n_rows, n_head, N_POSITIONS, width // n_head)
    return torch.randn(shape, device=device, dtype=_half(case, device))


def _half(case: Case, device: torch.device) -> torch.dtype:
    """The type of the cache."""
    if case.precision == "int8":
        return torch.bfloat16 if device.type == "cuda" else torch.float16
    return getattr(torch, case.precision)


def _lengths(case: Case, device: torch.device) -> Tensor:
    return torch.full((case.n_rows,), case.n_keys, dtype=torch.int32, device=device)


def _bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _matrices(case: Case, n_out: int, n_in: int, device: torch.device) -> list[Matrix]:
    first = _matrix(n_out, n_in, case.precision, device)
    more = n_sets(_bytes(*first), device) - 1
    return [first, *(_matrix(n_out, n_in, case.precision, device) for _ in range(more))]


def _difference(ours: Tensor, expected: Tensor) -> float:
    ours, expected = ours.float(), expected.float()
    return float((ours - expected).abs().max() / expected.abs().max())


def _tolerance(case: Case, device: torch.device, *, products: bool) -> float:
    """By the type that tensor cores multiply (`products`) or a result is stored in, if any."""
    return TOLERANCES[_half(case, device) if products else torch.float32]


# ---- kernels


def _norm_linear(case: Case, device: torch.device) -> Work:
    width, _ = WIDTHS[case.size]
    norm, matrices = _norm(case, device), _matrices(case, 4 * width, width, device)
    x = torch.randn(case.n_rows, width, device=device)
    out = linear.norm_linear(x, norm, matrices[0], gelu=True)
    return Work(
        ours=[partial(linear.norm_linear, x, norm, m, gelu=True) for m in matrices],
        error=_difference(out, linear.norm_linear_ref(x, norm, matrices[0], gelu=True)),
        tolerance=_tolerance(case, device, products=case.n_rows > 1),
        n_bytes=_bytes(x, *matrices[0], norm.weight, norm.bias, out),
    )


def _norm_qkv(case: Case, device: torch.device) -> Work:
    width, _ = WIDTHS[case.size]
    norm, matrices = _norm(case, device), _matrices(case, 3 * width, width, device)
    x, kv = torch.randn(case.n_rows, width, device=device), _cache(case, device)
    lengths, expected_kv = _lengths(case, device), kv.clone()
    q = linear.norm_qkv(x, norm, matrices[0], kv, lengths)
    expected = linear.norm_qkv_ref(x, norm, matrices[0], expected_kv, lengths)
    return Work(
        ours=[partial(linear.norm_qkv, x, norm, m, kv, lengths) for m in matrices],
        error=max(_difference(q, expected), _difference(kv, expected_kv)),
        tolerance=_tolerance(case, device, products=True),  # q, k and v are rounded
        n_bytes=_bytes(x, *matrices[0], norm.weight, norm.bias) + 3 * _bytes(q),
    )


def _linear_residual(case: Case, device: torch.device) -> Work:
    width, _ = WIDTHS[case.size]
    h = torch.randn(case.n_rows, 4 * width, device=device)
    wrappers = (linear.linear_residual, linear.linear_residual_ref)
    return _residual(case, device, h, 4 * width, wrappers, _bytes(h), case.n_rows > 1)


def _combine_residual(case: Case, device: torch.device) -> Work:
    width, n_head = WIDTHS[case.size]
    kv, lengths = _cache(case, device), _lengths(case, device)
    q = torch.randn(1, n_head, 1, width // n_head, device=device, dtype=kv.dtype)
    splits = splitting.decode_attention_splits(q, kv[0], kv[1], lengths)
    wrappers = (linear.combine_residual, linear.combine_residual_ref)
    return _residual(case, device, splits, width, wrappers, _bytes(*splits), False)


def _residual(
    case: Case,
    device: torch.device,
    given: object,
    n_in: int,
    wrappers: tuple[Callable[..., None], Callable[..., None]],
    n_bytes: int,
    products: bool,
) -> Work:
    """What is added to the residual stream in place; the kernel and its reference."""
    width, _ = WIDTHS[case.size]
    kernel, reference = wrappers
    matrices = _matrices(case, width, n_in, device)
    x = torch.randn(case.n_rows, width, device=device)
    out, expected = x.clone(), x.clone()
    kernel(given, matrices[0], out)
    reference(given, matrices[0], expected)
    return Work(
        ours=[partial(kernel, given, m, x) for m in matrices],
        error=_difference(out, expected),
        tolerance=_tolerance(case, device, products=products),
        n_bytes=n_bytes + _bytes(*matrices[0], x, x),
    )


def _decode_attention(case: Case, device: torch.device) -> Work:
    first, lengths, n = _cache(case, device), _lengths(case, device), case.n_keys
    read = _bytes(first[:, :, :, :n])
    caches = [first, *(_cache(case, device) for _ in range(n_sets(read, device) - 1))]
    q = torch.randn_like(first[0, :, :, :1])
    out = decode_attention(q, first[0], first[1], lengths)
    return Work(
        ours=[partial(decode_attention, q, kv[0], kv[1], lengths) for kv in caches],
        torch=[
            partial(F.scaled_dot_product_attention, q, kv[0, :, :, :n], kv[1, :, :, :n])
            for kv in caches
        ],
        error=_difference(out, decode_attention_ref(q, first[0], first[1], lengths)),
        tolerance=_tolerance(case, device, products=True),  # the output is rounded
        n_bytes=read + 2 * _bytes(q),
    )


def _attention(case: Case, device: torch.device) -> Work:
    width, n_head = WIDTHS[case.size]
    causal, n = bool(case.causal), case.n_keys

    def qkv() -> list[Tensor]:
        """Views of one tensor (B, T, 3 C), as the model makes them."""
        packed = torch.randn(case.n_rows, n, 3 * width, device=device, dtype=_half(case, device))
        return [
            part.unflatten(-1, (n_head, -1)).transpose(1, 2) for part in packed.chunk(3, dim=-1)
        ]

    first = qkv()
    sets = [first, *(qkv() for _ in range(n_sets(_bytes(*first), device) - 1))]
    out = attention(*first, causal=causal)
    n_pairs = n * (n + 1) // 2 if causal else n * n
    return Work(
        ours=[partial(attention, *given, causal=causal) for given in sets],
        torch=[partial(F.scaled_dot_product_attention, *given, is_causal=causal) for given in sets],
        error=_difference(out, attention_ref(*first, causal=causal)),
        tolerance=_tolerance(case, device, products=True),
        n_bytes=_bytes(*first, out),
        n_flop=4 * case.n_rows * width * n_pairs,
    )


def _decode_layer(case: Case, device: torch.device) -> Work:
    width, _ = WIDTHS[case.size]
    lengths = _lengths(case, device)

    def layer() -> tuple[Layer, Tensor]:
        shapes = {"qkv": (3, 1), "proj": (1, 1), "fc": (4, 1), "out": (1, 4)}
        matrices = {
            name: _matrix(n_out * width, n_in * width, case.precision, device)
            for name, (n_out, n_in) in shapes.items()
        }
        made = Layer(norm_1=_norm(case, device), norm_2=_norm(case, device), **matrices)
        return made, _cache(case, device)

    first, kv = layer()
    weights = (first.qkv, first.proj, first.fc, first.out)
    n_weight_bytes = sum(_bytes(*matrix) for matrix in weights)
    n_bytes = n_weight_bytes + _bytes(kv[:, :, :, : case.n_keys])
    layers = [(first, kv), *(layer() for _ in range(n_sets(n_bytes, device) - 1))]
    x = torch.randn(case.n_rows, width, device=device)
    out, expected = x.clone(), x.clone()
    decode_layer(out, first, kv.clone(), lengths)
    decode_layer_ref(expected, first, kv.clone(), lengths)
    return Work(
        ours=[partial(decode_layer, x, parts, kv, lengths) for parts, kv in layers],
        error=_difference(out, expected),
        tolerance=_tolerance(case, device, products=True),  # q and the cache are rounded
        n_bytes=n_bytes,
    )


def _embed_tokens(case: Case, device: torch.device) -> Work:
    width, _ = WIDTHS[case.size]
    dtype = _half(case, device)
    table = torch.randn(N_IDS, width, device=device).to(dtype)
    positions = torch.randn(N_POSITIONS, width, device=device).to(dtype)
    lengths = torch.zeros(case.n_rows, dtype=torch.int32, device=device)
    index = torch.zeros(1, dtype=torch.int64, device=device)
    sets = [torch.randint(N_IDS, (case.n_rows,), device=device) for _ in range(8)]
    expected = embed_tokens_ref(sets[0], table, positions, lengths.clone(), index.clone())
    out = embed_tokens(sets[0], table, positions, lengths, index)
    return Work(
        ours=[partial(embed_tokens, t, table, positions, lengths, index) for t in sets],
        error=_difference(out, expected),
        tolerance=_tolerance(case, device, products=False),
        n_bytes=_bytes(sets[0], lengths, lengths, out) + _bytes(table[: case.n_rows]) * 2,
    )


def _choose_tokens(case: Case, device: torch.device) -> Work:
    assert case.n_ids is not None
    logits = torch.randn(case.n_rows, case.n_ids, device=device)
    noise = torch.empty(N_STEPS, case.n_rows, case.n_ids, device=device).exponential_()
    index = torch.full((1,), 2, dtype=torch.int64, device=device)

    def results() -> list[Tensor]:
        """token, tokens and last_p."""
        tokens = torch.zeros(N_STEPS, case.n_rows, dtype=torch.int64, device=device)
        return [tokens[0].clone(), tokens, tokens.float()]

    ours, expected = results(), results()
    call = partial(choose_tokens, logits, noise, 0.7, 100, index, *ours)
    call()
    choose_tokens_ref(logits, noise, 0.7, 100, 2, *expected)
    return Work(
        ours=[call],
        error=max(_difference(a, b) for a, b in zip(ours, expected, strict=True)),
        tolerance=_tolerance(case, device, products=False),
        n_bytes=_bytes(logits, noise[0], ours[0], ours[1][0], ours[2][0]),
    )


MAKERS: dict[str, Callable[[Case, torch.device], Work]] = {
    "decode_layer": _decode_layer,
    "decode_attention": _decode_attention,
    "attention": _attention,
    "norm_qkv": _norm_qkv,
    "combine_residual": _combine_residual,
    "norm_linear": _norm_linear,
    "linear_residual": _linear_residual,
    "embed_tokens": _embed_tokens,
    "choose_tokens": _choose_tokens,
}
"""The kernels by name, in the order of the table."""
