"""How benchmarks measure: contenders in turns, so that a machine's moods reach all of them alike, and memory in processes of its own."""
from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

ROUNDS = 5  # of which the median is taken, after one to warm up


def seconds(step: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def medians(measures: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """The median of what each measure gives, all taken in turns. The first round warms up and does not count."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds + 1):
        for name, measure in measures.items():
            value = measure()
            if number:
                found[name].append(value)
    return {name: median(values) for name, values in found.items()}


def resident() -> int:
    """Bytes of this process that are in memory (Linux)."""
    return _of_status("VmRSS")


def reset_peak() -> None:
    """The high-water mark starts anew from what is in memory now (Linux, proc(5): clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most bytes that were in memory since `reset_peak` (Linux)."""
    return _of_status("VmHWM")


def _of_status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def in_own_process(script: str, arguments: Sequence[str]) -> str:
    """What a script prints last, run by itself."""
    done = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def machine() -> str:
    """What the figures depend on: processor, threads, and the instructions that matter here."""
    flags = cpu_flags()
    has = ", ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags) or "none"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, of AVX2, AVX-512, bf16 and AMX: {has}"


def cpu_flags() -> set[str]:
    """The processor's instruction sets (Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def has_bf16() -> bool:
    """Whether the processor computes in bfloat16; without, PyTorch emulates it slowly."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})
