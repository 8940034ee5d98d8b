"""A Ray cluster: joined, or started on this machine, without its noise; and who can work on it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ..files import reason
from ..surroundings import variables
from .bulk import counted
from .split import MissingExtraError

LOCAL = "local"
_CORES = 4  # of a worker on a CPU: more make it little faster
_ANSWER_S = 5.0
_THREADS_S = 10.0
_STORE_BYTES = 100 << 20  # of a cluster that is started here: records are small
# Ray reads these when it is imported or connects. Its log says nothing that the bar does not, and
# its own patience with an address is two minutes.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # or whoever asks it for something too late starts another
}
_IMPATIENT = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": "3"}


class ClusterError(ValueError):
    """A cluster that cannot be reached, has no room, or on which clips cannot be made."""


@dataclass(frozen=True)
class Crew:
    """The workers of a job.

    Attributes:
        n: how many, at most.
        cores: of each.
        on_gpu: whether each has a GPU.
    """

    n: int
    cores: int
    on_gpu: bool


@contextlib.contextmanager
def connected(address: str, workers: int | None = None, cores: int | None = None) -> Iterator[None]:
    """Ray, while the block runs: a cluster that is there, or one of this machine alone.

    Args:
        address: `"local"` starts one here; `"auto"` is the one that this machine is part of, and
            `"HOST:PORT"` is its head, of which this machine is part as well.
        workers: how many there will be, if that is known.
        cores: of each; a cluster that is started here has room for them if both are known.

    Raises:
        MissingExtraError: ray is not installed.
        ClusterError: nothing answers there, or not as a Ray of this version.
    """
    if address != LOCAL:
        _find(address)
    settings = _QUIET if address == LOCAL else {**_QUIET, **_IMPATIENT}
    with (
        variables(settings),
        open(os.devnull, "w", encoding="utf-8") as null,
        contextlib.redirect_stdout(null),  # to which Ray writes what befalls its processes
    ):
        ray = ray_package()
        try:
            _join(ray, address, workers, cores)
            yield
        finally:
            leave()


def _join(ray: Any, address: str, workers: int | None, cores: int | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == LOCAL:
        options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
        if workers and cores:
            options["num_cpus"] = workers * cores
    try:
        with _signals_kept(), _native_stderr_shut():
            ray.init(address, **options)
    except SystemExit as error:  # what Ray makes of SIGTERM
        raise KeyboardInterrupt from error
    except Exception as error:
        if address == LOCAL:
            raise ClusterError(f"Ray could not be started here ({reason(error)[:300]})") from error
        raise ClusterError(
            f"no Ray cluster could be joined at {address} ({reason(error)[:300]}); see that 'ray "
            "status' works on this machine with the same version of Ray, and with "
            "RAY_AUTH_MODE=token where the cluster asks for a token"
        ) from error


def crew(device: str | None = None, workers: int | None = None, cores: int | None = None) -> Crew:
    """Who can work on the cluster that is connected: a worker a GPU, or a worker some cores.

    Args:
        device: None is GPUs if there are any.
        workers: None is as many as have room now. More than have room may be asked for, where a
            cluster grows.
        cores: of each; None is 1 beside a GPU, else 4, or less where a machine has not so many or
            so many workers would not fit.

    Raises:
        ClusterError: there is no room for any.
    """
    has = [node["Resources"] for node in ray_package().nodes() if node["Alive"]]
    has = [{name: int(one.get(name, 0)) for name in ("CPU", "GPU")} for one in has]
    on_gpu = device.startswith("cuda") if device else any(one["GPU"] for one in has)
    fit = [one for one in has if one["GPU" if on_gpu else "CPU"]]
    if cores is None:
        share = max(1, sum(one["CPU"] for one in fit) // (workers or 1))
        cores = 1 if on_gpu else min([_CORES, share, *(one["CPU"] for one in fit)])
    room = sum(
        min(one["GPU"], one["CPU"] // cores) if on_gpu else one["CPU"] // cores for one in fit
    )
    if not room:
        what = ", ".join(f"{one['CPU']} cores and {one['GPU']} GPUs" for one in has) or "nothing"
        raise ClusterError(
            f"no machine of the cluster has room for a worker of {counted(cores, 'core')}"
            f"{' and a GPU' if on_gpu else ''} (they have {what}); ask for less with "
            "--cores-per-worker or --device cpu"
        )
    return Crew(workers or room, cores, on_gpu)


def ray_package() -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed, or not with its part for data.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError(
            "--ray needs the package ray; pip install 'minibark[cluster]'"
        ) from error
    return ray


def leave() -> None:
    """Shut Ray down, with its workers, whatever they are at.

    A thread that asks Ray for something afterwards ends the process, with status 1 and not a word
    (`CoreWorkerProcess`), so those of Ray Data are waited for.
    """
    ray = ray_package()
    home, own = os.path.dirname(ray.data.__file__), threading.get_ident()
    deadline = time.monotonic() + _THREADS_S
    try:
        while time.monotonic() < deadline and any(
            _is_at_work(frame, home)
            for thread, frame in sys._current_frames().items()
            if thread != own
        ):
            time.sleep(0.02)
    finally:  # where Ctrl-C comes once more, too
        ray.shutdown()


def _is_at_work(frame: FrameType | None, folder: str) -> bool:
    """Whether a thread runs code in a folder, or what that called, and is not parked for good."""
    if frame is None or (
        frame.f_code is threading.Condition.wait.__code__ and frame.f_locals["timeout"] is None
    ):
        return False
    while frame is not None and not frame.f_code.co_filename.startswith(folder + os.sep):
        frame = frame.f_back
    return frame is not None


def _find(address: str) -> None:
    """Refuse what nobody answers at; Ray would take minutes to.

    Raises:
        ClusterError: nothing is there.
    """
    if "://" in address:
        raise ClusterError(
            f"{address} is an address of Ray Client, over which Ray Data does not work; run this "
            "on a machine of the cluster with --ray auto, or send it there with 'ray job submit'"
        )
    if address == "auto" and "RAY_ADDRESS" not in os.environ:
        return
    address = os.environ["RAY_ADDRESS"] if address == "auto" else address
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ClusterError(
            f"--ray takes local, auto or HOST:PORT, such as 10.0.0.1:6379, got {address!r:.100}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except OSError as error:
        raise ClusterError(
            f"nothing answers at {address} ({reason(error)}); start a cluster there with 'ray "
            "start --head', or take --ray local for this machine alone"
        ) from error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Give SIGTERM back to whom it was: `ray.init` takes it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _native_stderr_shut() -> Iterator[None]:
    """Let nothing out at descriptor 2: Ray's C++ writes there before it has its settings."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
