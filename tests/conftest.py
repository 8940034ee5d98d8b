"""What all tests share: one thread, a random stream of their own, and a process for the kernels."""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too

# What is kept goes into one folder, for child processes too, and not into anybody's home. Libraries
# read these when they are imported. Workers of pytest-xdist get the folder of who started them.
if "MINIBARK_TESTS_CACHE" not in os.environ:
    CACHE = tempfile.mkdtemp(prefix="minibark-tests-")
    os.environ["MINIBARK_TESTS_CACHE"] = CACHE
else:
    CACHE = None
for name in ("HF_HUB_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE", "TRANSFORMERS_CACHE"):
    os.environ.pop(name, None)
for name in (
    *("XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "TRITON_HOME", "TRITON_CACHE_DIR"),
    *("TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR", "XDG_DATA_HOME", "XDG_STATE_HOME"),
):
    os.environ[name] = os.path.join(os.environ["MINIBARK_TESTS_CACHE"], name.lower())

Run = Callable[..., None]


def pytest_unconfigure() -> None:
    """Take away what was kept, by whoever made the folder."""
    if CACHE is not None:
        shutil.rmtree(CACHE, ignore_errors=True)


def pytest_configure() -> None:
    """Let processes that tests start hear Ctrl-C, which a shell's background jobs do not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave two of three cases of `thinned` tests to `make torture`; skip what needs a GPU."""
    numbers = Counter[object]()
    for item in items:
        is_thinned = item.get_closest_marker("thinned") and not item.get_closest_marker("gpu")
        if is_thinned and isinstance(item, pytest.Function):
            number = numbers[item.function]
            numbers[item.function] += 1
            if (number + number // 3) % 3:  # one in each three, and not each time the same
                item.add_marker(pytest.mark.torture)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep torch to one thread, and each test to its own place in torch's random stream."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Run]:
    """Calls a function of a test's file, with its arguments, where Triton interprets kernels.

    Triton decides whether to interpret when it is imported, and in this process it may have been
    (transformers does so); a spawned process imports it, and the test's file, with the variable.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("triton is for Linux")
    pytest.importorskip("triton")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(torch.set_num_threads, 1).result()
        yield lambda check, *args: pool.submit(check, *args).result()


@pytest.fixture(params=["interpreted", pytest.param("native", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest) -> Run:
    """Calls check(device, *args) where kernels run."""
    if request.param == "interpreted":
        interpret: Run = request.getfixturevalue("interpreter")
        return lambda check, *args: interpret(check, torch.device("cpu"), *args)
    from kernel_runs import gpu

    device = gpu()
    return lambda check, *args: check(device, *args)
