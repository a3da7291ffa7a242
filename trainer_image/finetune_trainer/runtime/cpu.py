"""What the CPU can do: the instruction set for oneDNN, the compute type, the number of threads, and where they run.

oneDNN trusts the CPU's AMX feature flag. Virtual machines may show the flag and hide the table of tile palettes
(CPUID leaf 0x1D): then a bfloat16 matmul dies with SIGILL. So the CPU is asked first, and where bfloat16 is wanted a
matmul is tried in a process of its own. Without AMX bfloat16 is slower than float32, which is used instead.
"""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer.runtime import host

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"
SAFE_ISA = "AVX512_CORE_BF16"
"""The most capable instruction set of oneDNN without AMX."""

FORCE_VARIABLE = "FINETUNE_CPU_BF16"
"""Set to 1, bfloat16 is used on a CPU although it has no AMX, if a matmul works there."""

_PROBE = "import torch; a = torch.ones(64, 64, dtype=torch.bfloat16); raise SystemExit(float((a @ a)[0, 0]) != 64)"
_PROBE_SECONDS = 120
"""Time for the probe to import torch on a slow volume."""


AFFINITY_VARIABLE = "FINETUNE_AFFINITY"
"""Set to 0, workers that share a host are not bound to CPUs of their own."""


@dataclass(frozen=True)
class Compute:
    """How a worker computes, for the log and the report."""

    dtype: str
    """float32, bfloat16 or float16."""
    isa: str = ""
    """What oneDNN's instruction set is held to; empty: it is not."""
    threads: int = 0
    """Compute threads; 0: a GPU computes."""
    cpus: tuple[int, ...] = ()
    """CPUs that this worker is bound to; empty: it is not bound."""
    notes: tuple[str, ...] = ()
    """What is other than the configuration asks for, and why."""

    def environment(self) -> dict[str, str]:
        """Lines for a table, by their names; what does not apply is left out."""
        lines = {
            "Compute type": self.dtype,
            "Instruction set": self.isa and f"{self.isa} at most",
            "Threads of a worker": str(self.threads or ""),
            "CPUs of the first worker": ranges(self.cpus),
            "Notes": "; ".join(self.notes),
        }
        return {name: line for name, line in lines.items() if line}


@dataclass(frozen=True)
class Precision:
    """The compute type on this CPU, and why."""

    dtype: str
    """float32 or bfloat16."""
    note: str = ""
    """A line for the user when it is not what the configuration asks for."""


def choose_precision(wanted: str) -> Precision:
    """Choose the compute type for `mixed_precision`. Call it before the first operation of torch.

    Side effect: sets the environment variable ONEDNN_MAX_CPU_ISA, which oneDNN reads once, unless it is set.
    """
    amx = amx_state()
    if amx == "broken":
        os.environ.setdefault(ISA_VARIABLE, SAFE_ISA)
    if wanted == "no":
        return Precision("float32")
    if wanted == "fp16":
        return Precision("float32", "mixed_precision fp16 is slow on a CPU: computing in float32")
    if amx != "usable" and os.environ.get(FORCE_VARIABLE) != "1":
        slower = "this CPU has no usable AMX, and without it bfloat16 is slower than float32"
        why = slower if host.is_x86() else "whether bfloat16 is faster than float32 on this kind of CPU was not measured"
        return Precision("float32", f"mixed_precision bf16: {why}: computing in float32 ({FORCE_VARIABLE}=1 forbids that)")
    if bf16_matmul_works():
        return Precision("bfloat16")
    if host.is_x86():
        os.environ[ISA_VARIABLE] = SAFE_ISA
    return Precision("float32", "mixed_precision bf16: a bfloat16 matmul fails on this CPU: computing in float32")


def agree(precisions: list[Precision]) -> list[Precision]:
    """What the workers compute in, by rank: the same, whatever their CPUs can do."""
    if len({precision.dtype for precision in precisions}) == 1:
        return precisions
    why = "mixed_precision bf16: not every worker's CPU can do it: computing in float32"
    return [Precision("float32", why)] * len(precisions)


@functools.cache
def amx_state() -> str:
    """`usable`, `absent`, or `broken`: the CPU shows the feature flag and no tile palette."""
    if not host.is_x86():
        return "absent"
    try:
        leaves = host.cpuid(0)[0]
        if not host.cpuid(7)[3] >> 24 & 1:
            return "absent"
        return "usable" if leaves >= 0x1D and host.cpuid(0x1D)[0] >= 1 else "broken"
    except OSError:
        # Executable memory is forbidden here. Without an answer, stay off AMX.
        return "broken"


@functools.cache
def bf16_matmul_works() -> bool:
    """Try a bfloat16 matmul in a process of its own: an illegal instruction kills that one."""
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=_PROBE_SECONDS, check=False)  # noqa: S603 - this interpreter, a constant text
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0


def choose_threads(wanted: float, workers_on_host: int = 1, root: Path = host.CGROUPS) -> int:
    """Compute threads of a worker: what it asks for, within its share of the CPUs that the host gives.

    Args:
        wanted: resources_per_worker.CPU.
        workers_on_host: workers that share the host or pod.
        root: mount point of the control groups.
    """
    return max(1, min(math.ceil(wanted), int(host.available_cpus(root) / workers_on_host)))


def bind(threads: int, local_rank: int, local_size: int) -> tuple[int, ...]:
    """Bind this process to its own share of the CPUs, so that workers do not push each other's threads around.

    Call it before torch makes its threads: those that run already stay where they are.

    Args:
        threads: compute threads of a worker.
        local_rank: which of the workers on this host this is.
        local_size: how many there are.

    Returns:
        The CPUs; empty: the worker is alone, or the shares are smaller than its threads, or FINETUNE_AFFINITY is 0, or
        the system binds no process to CPUs.
    """
    if local_size == 1 or os.environ.get(AFFINITY_VARIABLE) == "0":
        return ()
    own = share(host.by_core(host.affinity()), local_rank, local_size)
    if len(own) < threads:
        return ()
    host.bind(own)
    return own


def share(cpus: list[int], local_rank: int, local_size: int) -> tuple[int, ...]:
    """The CPUs of one of several workers: neighbours, as many as every other worker's; what remains is nobody's."""
    size = len(cpus) // local_size
    return tuple(sorted(cpus[local_rank * size : (local_rank + 1) * size]))


def ranges(cpus: Iterable[int]) -> str:
    """0-3,8 for 0, 1, 2, 3 and 8."""
    found: list[list[int]] = []
    for cpu in sorted(cpus):
        if found and cpu == found[-1][1] + 1:
            found[-1][1] = cpu
        else:
            found.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
