"""Ask the operating system about this host: CPUs, control groups, memory.

Linux has CPU affinity, control groups and /sys; macOS has none of them. No other module uses them, and each function
here documents its result where they are missing.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

CGROUPS = Path("/sys/fs/cgroup")
"""Mount point of the control groups."""

# push rbx; mov r8, rdx; mov eax, edi; mov ecx, esi; cpuid; mov [r8], eax; mov [r8+4], ebx; mov [r8+8], ecx;
# mov [r8+12], edx; pop rbx; ret
_CPUID = bytes.fromhex("534989d089f889f10fa241890041895804418948084189500c5bc3")


def affinity() -> frozenset[int]:
    """The CPUs that this process may run on; empty: the system does not support it."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def bind(cpus: Iterable[int]) -> None:
    """Bind this process to these CPUs; without effect where `affinity` is empty."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def by_core(cpus: Iterable[int], root: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """Order CPUs so that those of a socket are neighbours, and within it those of a core, whose numbers often differ much.

    Where the core of a CPU is unknown, CPUs are ordered by their numbers.
    """

    def place(cpu: int) -> tuple[int, int, int]:
        try:
            topology = root / f"cpu{cpu}" / "topology"
            return int((topology / "physical_package_id").read_text()), int((topology / "core_id").read_text()), cpu
        except (OSError, ValueError):
            return 0, cpu, cpu

    return sorted(cpus, key=place)


def available_cpus(root: Path = CGROUPS) -> float:
    """CPUs that this process may use: its affinity, else all, within the quota of its control group (v2 or v1), if any."""
    cpus = float(len(affinity()) or os.cpu_count() or 1)
    quota = _quota(root)
    return cpus if quota is None else min(cpus, quota)


def _quota(root: Path) -> float | None:
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        return None if quota.strip() == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def peak_memory() -> int:
    """The peak of this process's memory in RAM so far, in bytes; 0: the system does not report it."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine() -> str:
    """Name this host as its processes see it: numbers of processes mean the same wherever this is the same."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def process_start(pid: int) -> str | None:
    """When a process of this machine began, in units of the system; empty: unknown; None: there is no such process."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return None
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return None if state in ("Z", "X") else fields[18]


def available_memory(root: Path = CGROUPS) -> int:
    """Bytes that processes may still take: what the host has, within the limit of the control group (v2); 0: unknown."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return 0
    free = int(found[1]) * 1024 if found else 0
    with suppress(OSError, ValueError):  # without a limit the file says "max"
        held = int((root / "memory.current").read_text()) - _cached(root)
        free = min(free, int((root / "memory.max").read_text()) - held)
    return max(free, 0)


def _cached(root: Path) -> int:
    """Bytes of files that a control group (v2) keeps in memory and has not read again: the system takes them for others."""
    with suppress(OSError, ValueError):
        found = re.search(r"^inactive_file (\d+)$", (root / "memory.stat").read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def is_x86() -> bool:
    """Whether the CPU has the instruction set x86-64."""
    return platform.machine() in ("x86_64", "AMD64")


def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """Registers EAX, EBX, ECX and EDX of the instruction CPUID. Only x86-64 has it: ask `is_x86` first.

    Raises:
        OSError: the system allows no executable memory.
    """
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(_CPUID)
        code = ctypes.c_char.from_buffer(page)
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
        registers = (ctypes.c_uint32 * 4)()
        prototype(ctypes.addressof(code))(leaf, subleaf, registers)
        del code  # the page cannot be closed while it is borrowed
    return registers[0], registers[1], registers[2], registers[3]
