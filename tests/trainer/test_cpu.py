"""The CPU's share of a worker: which CPUs, and how they are shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from finetune_trainer.runtime import cpu, host

if TYPE_CHECKING:
    from pathlib import Path

BIND = """
import json, os, sys
from finetune_trainer.runtime import cpu
threads, rank, size = map(int, sys.argv[1:])
print(json.dumps([cpu.bind(threads, rank, size), sorted(os.sched_getaffinity(0))]))
"""


def bind(threads: int, rank: int, size: int, **environment: str) -> tuple[list[int], list[int]]:
    """Bind a process of its own; what it says, and where it may run then."""
    line = [sys.executable, "-c", BIND, *map(str, (threads, rank, size))]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    said, allowed = json.loads(done.stdout)
    return said, allowed


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU")
def test_workers_of_a_host_are_bound_to_cpus_of_their_own() -> None:
    (first, first_allowed), (second, second_allowed) = (bind(1, rank, 2) for rank in range(2))
    assert first == first_allowed
    assert second == second_allowed
    assert len(first) == len(second) == len(os.sched_getaffinity(0)) // 2
    assert not set(first) & set(second)


@pytest.mark.parametrize(
    ("threads", "size", "affinity"),
    [
        pytest.param(1, 1, "1", id="alone"),
        pytest.param(1, 2, "0", id="turned off"),
        pytest.param(1, 10_000, "1", id="more workers than CPUs"),
        pytest.param(10_000, 2, "1", id="shares smaller than the threads"),
    ],
)
def test_worker_is_not_bound(threads: int, size: int, affinity: str) -> None:
    assert bind(threads, 0, size, FINETUNE_AFFINITY=affinity) == ([], sorted(os.sched_getaffinity(0)))


def test_threads_of_a_core_stay_with_one_worker(tmp_path: Path) -> None:
    """Two sockets of two cores with two threads each, numbered as Linux does: second threads last."""
    for number in range(8):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{number // 2 % 2}\n")
        (folder / "core_id").write_text(f"{number % 2}\n")
    ordered = host.by_core(range(8), tmp_path)
    assert [cpu.share(ordered, rank, 2) for rank in range(2)] == [(0, 1, 4, 5), (2, 3, 6, 7)]
    assert [cpu.share(ordered, rank, 4) for rank in range(4)] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert cpu.share(ordered, 2, 3) == (2, 6)
    assert host.by_core({3, 1}, tmp_path / "none") == [1, 3]


@pytest.mark.parametrize(("cpus", "text"), [((), ""), ((5,), "5"), ((8, 0, 1, 2, 3), "0-3,8"), ((0, 2, 3), "0,2-3")])
def test_cpus_are_shown_as_ranges(cpus: tuple[int, ...], text: str) -> None:
    assert cpu.ranges(cpus) == text


def test_quota_limits_the_threads(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cpu.choose_threads(8, root=tmp_path) == 1
    assert cpu.choose_threads(8, workers_on_host=2, root=tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpu.choose_threads(0.5, root=tmp_path) == 1
    assert cpu.choose_threads(10_000, root=tmp_path) == len(os.sched_getaffinity(0))


def test_workers_of_different_cpus_compute_in_the_same_type() -> None:
    able, unable = cpu.Precision("bfloat16"), cpu.Precision("float32", "a matmul fails")
    assert cpu.agree([able, able]) == [able, able]
    first, second = cpu.agree([able, unable])
    assert first == second
    assert first.dtype == "float32"
    assert "not every worker's CPU" in first.note


def test_environment_names_what_applies_only() -> None:
    assert cpu.Compute("bfloat16").environment() == {"Compute type": "bfloat16"}
    assert cpu.Compute("float32", "AVX512_CORE_BF16", 2, (4, 5), ("why",)).environment() == {
        "Compute type": "float32",
        "Instruction set": "AVX512_CORE_BF16 at most",
        "Threads of a worker": "2",
        "CPUs of the first worker": "4-5",
        "Notes": "why",
    }


def test_files_that_the_system_keeps_in_memory_leave_it_free(tmp_path: Path) -> None:
    def group(limit: str, current: int, cached: int) -> int:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{current}\n")
        (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\nactive_file 7\n")
        return host.available_memory(tmp_path)

    assert group("1000", 900, 600) == 700
    assert group("1000", 900, 0) == 100
    assert group("max", 900, 600) > 1000
    (tmp_path / "memory.stat").unlink()
    (tmp_path / "memory.max").write_text("1000\n")
    assert host.available_memory(tmp_path) == 100


@pytest.mark.parametrize(
    ("vendor", "leaves", "flags", "pays"),
    [
        pytest.param(b"AuthenticAMD", 1, 1 << 5, True, id="Zen 4"),
        pytest.param(b"AuthenticAMD", 1, 0, False, id="AMD without these instructions"),
        pytest.param(b"AuthenticAMD", 0, 1 << 5, False, id="AMD without the leaf that tells"),
        pytest.param(b"GenuineIntel", 1, 1 << 5, False, id="Intel, whose AMX is hidden"),
    ],
)
def test_bfloat16_is_chosen_without_amx_where_it_was_measured_to_pay(vendor: bytes, leaves: int, flags: int, pays: bool) -> None:
    ebx, edx, ecx = (int.from_bytes(vendor[start : start + 4], "little") for start in (0, 4, 8))
    registers = {(0, 0): (7, ebx, ecx, edx), (7, 0): (leaves, 0, 0, 0), (7, 1): (flags, 0, 0, 0)}
    assert cpu.multiplies_bf16(lambda leaf, subleaf: registers[leaf, subleaf]) is (pays and host.is_x86())


def test_cpu_that_cannot_be_asked_computes_in_float32() -> None:
    def refuse(*_: int) -> tuple[int, int, int, int]:
        raise PermissionError("no executable memory")

    assert not cpu.multiplies_bf16(refuse)
