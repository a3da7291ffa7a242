"""Choose for a CPU: the instruction set of oneDNN, the compute type, the number of threads, and the CPUs they run on.

oneDNN trusts the CPU's AMX feature flag. Virtual machines may show the flag and hide the table of tile palettes
(CPUID leaf 0x1D): then a bfloat16 matmul dies with SIGILL. So CPUID is read first, and if bfloat16 is configured, another
process tries a matmul. Without AMX bfloat16 is slower than float32 on Intel's CPUs, and float32 is used instead. AMD's, which
have no AMX, multiply bfloat16 twice as fast as float32 from Zen 4 on.
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
    from collections.abc import Callable, Iterable
    from pathlib import Path

ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"
SAFE_ISA = "AVX512_CORE_BF16"
"""The most capable instruction set of oneDNN without AMX."""

FORCE_VARIABLE = "FINETUNE_CPU_BF16"
"""If it is 1, bfloat16 is used on a CPU without AMX, provided that a matmul works."""

AMD = b"AuthenticAMD"
"""How AMD's CPUs name their maker."""

_PROBE = "import torch; a = torch.ones(64, 64, dtype=torch.bfloat16); raise SystemExit(float((a @ a)[0, 0]) != 64)"
_PROBE_SECONDS = 120
"""Time for the probe to import torch on a slow volume."""


AFFINITY_VARIABLE = "FINETUNE_AFFINITY"
"""If it is 0, workers that share a host are not bound to CPUs of their own."""


@dataclass(frozen=True)
class Compute:
    """How a worker computes, for the log and the report."""

    dtype: str
    """float32, bfloat16 or float16."""
    isa: str = ""
    """The limit of oneDNN's instruction set; empty: there is none."""
    threads: int = 0
    """Compute threads; 0: a GPU is used."""
    cpus: tuple[int, ...] = ()
    """CPUs that this worker is bound to; empty: it is not bound."""
    notes: tuple[str, ...] = ()
    """Differences from the configuration, with the reasons."""

    def environment(self) -> dict[str, str]:
        """Lines of a table, by their names, without those that do not apply."""
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
    """A message for the user if the type differs from the configuration."""


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
    if amx != "usable" and not multiplies_bf16() and os.environ.get(FORCE_VARIABLE) != "1":
        slower = "this CPU has no usable AMX, and without it bfloat16 is slower than float32"
        why = slower if host.is_x86() else "whether bfloat16 is faster than float32 on this kind of CPU was not measured"
        return Precision("float32", f"mixed_precision bf16: {why}: computing in float32 ({FORCE_VARIABLE}=1 forbids that)")
    if bf16_matmul_works():
        return Precision("bfloat16")
    if host.is_x86():
        os.environ[ISA_VARIABLE] = SAFE_ISA
    return Precision("float32", "mixed_precision bf16: a bfloat16 matmul fails on this CPU: computing in float32")


def agree(precisions: list[Precision]) -> list[Precision]:
    """The compute types of the workers, by rank: the same type for all, even if their CPUs differ."""
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
        # Executable memory is forbidden here, so CPUID cannot be read: AMX must not be used.
        return "broken"


def multiplies_bf16(cpuid: Callable[[int, int], tuple[int, int, int, int]] = host.cpuid) -> bool:
    """Whether this is a CPU of AMD whose AVX-512 multiplies bfloat16: there a step takes two thirds of its time in float32.

    Intel's CPUs have the same instructions, and a matmul takes up to three times as long with them as in float32.
    """
    if not host.is_x86():
        return False
    try:
        _, *names = cpuid(0, 0)
        vendor = b"".join(names[place].to_bytes(4, "little") for place in (0, 2, 1))
        return vendor == AMD and cpuid(7, 0)[0] >= 1 and bool(cpuid(7, 1)[0] >> 5 & 1)
    except OSError:
        return False


@functools.cache
def bf16_matmul_works() -> bool:
    """Try a bfloat16 matmul in another process: an illegal instruction kills that process only."""
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=_PROBE_SECONDS, check=False)  # noqa: S603 - this interpreter, a constant text
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0


def choose_threads(wanted: float, workers_on_host: int = 1, root: Path = host.CGROUPS) -> int:
    """Compute threads of a worker: as configured, at most its share of the available CPUs.

    Args:
        wanted: resources_per_worker.CPU.
        workers_on_host: workers that share the host or pod.
        root: mount point of the control groups.
    """
    return max(1, min(math.ceil(wanted), int(host.available_cpus(root) / workers_on_host)))


def bind(threads: int, local_rank: int, local_size: int) -> tuple[int, ...]:
    """Bind this process to its own share of the CPUs, so that the threads of workers do not compete for the same CPUs.

    Call it before torch starts its threads: it does not move running threads.

    Args:
        threads: compute threads of a worker.
        local_rank: which of the workers on this host this is.
        local_size: how many there are.

    Returns:
        The CPUs; empty if the worker is the only one, if the shares are smaller than its threads, if FINETUNE_AFFINITY is
        0, or if the system does not support binding.
    """
    if local_size == 1 or os.environ.get(AFFINITY_VARIABLE) == "0":
        return ()
    own = share(host.by_core(host.affinity()), local_rank, local_size)
    if len(own) < threads:
        return ()
    host.bind(own)
    return own


def share(cpus: list[int], local_rank: int, local_size: int) -> tuple[int, ...]:
    """The CPUs of one of several workers: neighbours, and equally many for each worker; the remainder is not used."""
    size = len(cpus) // local_size
    return tuple(sorted(cpus[local_rank * size : (local_rank + 1) * size]))


def ranges(cpus: Iterable[int]) -> str:
    """CPU numbers as ranges: 0-3,8 for 0, 1, 2, 3 and 8."""
    found: list[list[int]] = []
    for cpu in sorted(cpus):
        if found and cpu == found[-1][1] + 1:
            found[-1][1] = cpu
        else:
            found.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
