"""Where a segment runs: what must be the same for bits to repeat, pinned where it can be and recorded always."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch.utils import deterministic

from unbroken.base.errors import ConfigError

# Packages whose code takes part in a step or in turning text into ids.
NUMERIC_PACKAGES = (
    "unbroken",
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "jinja2",  # writes chat templates
    "peft",
    "bitsandbytes",
    "scikit-learn",
    "scipy",
)


def pin(threads: int) -> None:
    """Make results a function of the inputs: a fixed number of threads, deterministic kernels.

    The gradients of LayerNorm on a CPU depend on the number of threads, so it belongs to the run.
    `set_num_threads` also switches off MKL's dynamic choice. Uninitialised memory need not be filled: nothing
    here reads any, and filling costs time. Raises `ConfigError` where that many threads cannot be had.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ["MKL_DYNAMIC"] = "FALSE"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    require_whole_teams(threads)
    torch.set_deterministic_debug_mode("error")  # the other call imports torch's compiler
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def require_whole_teams(threads: int) -> None:
    """Make OpenMP start as many threads as torch counts on, on this thread.

    Measured with torch 2.13 on a CPU: with fewer (OMP_DYNAMIC=TRUE, OMP_MAX_ACTIVE_LEVELS=0, OMP_THREAD_LIMIT below
    the number), parts of results are never computed, and gradients hold whatever lay in memory. The environment is
    read when torch is loaded, so it is OpenMP itself that is told. Raises `ConfigError` for the limit, which it
    cannot be told to lift.
    """
    openmp = ctypes.CDLL(None)
    if threads == 1 or not hasattr(openmp, "omp_set_dynamic"):
        return
    openmp.omp_set_dynamic(0)
    if openmp.omp_get_max_active_levels() < 1:
        openmp.omp_set_max_active_levels(1)
    limit = openmp.omp_get_thread_limit()
    if limit < threads:
        raise ConfigError(
            f"OMP_THREAD_LIMIT allows {limit} {'thread' if limit == 1 else 'threads'}, the run has {threads}",
            why="torch computes wrong results with fewer threads than it counts on",
            next_step="unset OMP_THREAD_LIMIT; a new run may have fewer: `threads: 1`",
        )


def numerics(device: torch.device) -> dict[str, Any]:
    """Return what can change bits without anyone touching the configuration."""
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in NUMERIC_PACKAGES},
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def circumstances() -> dict[str, Any]:
    """Return when, where and how a segment began: for people, never compared."""
    began = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return {
        "began": began,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": sys.orig_argv,
        "folder": os.getcwd(),
    }


def cpu_model() -> str:
    """Return the processor's model name as the kernel gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # no such file on macOS and Windows
    return platform.processor() or platform.machine()


def changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Return one line for each value that differs between two records of `numerics`."""
    lines = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += changes(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} -> {new}")
    return lines


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
