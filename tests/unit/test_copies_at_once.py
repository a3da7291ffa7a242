"""Uploads of one name at once, uploads that were cut off, and files whose checksum takes longer than a request."""

from __future__ import annotations

import ast
import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.builders import NAMESPACE
from tests.support.shell import Shell, shell_at

from finetune_client import FinetuneClient
from finetune_client.errors import RefusedError
from finetune_client.transfer import server
from finetune_client.transfer.copies import Count, Progress, sha256_here
from finetune_client.transfer.pod import Helper, helper
from finetune_client.transfer.server import Hashes
from finetune_trainer.files import describe_file

pytestmark = pytest.mark.sampled(4)

PART = 4 << 20
MINE, OTHER = (random.Random(seed).randbytes(2 * PART + 17) for seed in (1, 2))
"""Of the same size: three parts."""


class CutOffError(Exception):
    """Ends a command between two parts."""


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        for folder in ("claim", "mine", "other"):
            (tmp_path / folder).mkdir()
        (tmp_path / "mine" / "rows.jsonl").write_bytes(MINE)
        (tmp_path / "other" / "rows.jsonl").write_bytes(OTHER)
        shell.cluster.helpers.claims["data"] = tmp_path / "claim"
        shell.kube.put("persistentvolumeclaims", {"metadata": {"name": "data", "namespace": NAMESPACE}})
        monkeypatch.chdir(tmp_path)
        yield shell


async def upload(file: str, progress: Callable[[Progress], None] = lambda _: None) -> None:
    """As a command does it."""
    await asyncio.to_thread(_upload, file, progress)


def _upload(file: str, progress: Callable[[Progress], None] = lambda _: None) -> None:
    FinetuneClient().upload([file], "data", image="t:1", progress=progress)


def after_a_part(act: Callable[[], None]) -> Callable[[Progress], None]:
    """Do something once, when the first part of a file is on the claim."""
    steps: Iterator[Callable[[], None]] = iter([act])

    def progress(now: Progress) -> None:
        if now.done >= PART:
            next(steps, lambda: None)()

    return progress


def cut_off() -> None:
    raise CutOffError


def all_below(folder: Path) -> dict[str, bytes]:
    """Every file, and every folder too: none is left behind."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"(folder)" for path in folder.rglob("*")}


@pytest.mark.parametrize("second", ["mine", "other"])
async def test_two_uploads_of_one_name_at_once_leave_a_whole_file(shell: Shell, tmp_path: Path, second: str) -> None:
    seen: list[dict[str, bytes]] = []

    def another() -> None:
        _upload(f"{second}/rows.jsonl")
        seen.append(all_below(tmp_path / "claim"))

    await upload("mine/rows.jsonl", after_a_part(another))
    assert seen[0]["rows.jsonl"] == (MINE if second == "mine" else OTHER)
    assert all_below(tmp_path / "claim") == {"rows.jsonl": MINE}
    assert len(shell.cluster.helpers.made) == 2


async def test_what_was_cut_off_is_taken_up_though_another_content_was_cut_off_too(shell: Shell, tmp_path: Path) -> None:
    for file in ("mine/rows.jsonl", "other/rows.jsonl"):
        with pytest.raises(CutOffError):
            await upload(file, after_a_part(cut_off))
    assert "rows.jsonl" not in all_below(tmp_path / "claim")
    told: list[int] = []
    await upload("mine/rows.jsonl", lambda now: told.append(now.done))
    assert told == [PART, 2 * PART, len(MINE)]
    assert all_below(tmp_path / "claim") == {"rows.jsonl": MINE}


async def test_what_earlier_versions_have_left_is_in_nobodys_way(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "claim" / "rows.jsonl.finetune-partial").write_bytes(b"old")
    await upload("mine/rows.jsonl")
    assert all_below(tmp_path / "claim") == {"rows.jsonl": MINE}


async def test_a_writer_that_was_taken_for_dead_begins_again(shell: Shell, tmp_path: Path) -> None:
    told: list[int] = []

    def another() -> None:
        (partial,) = (tmp_path / "claim" / "rows.jsonl.finetune-partial").iterdir()
        os.utime(partial, (1, 1))
        FinetuneClient().upload(["mine/rows.jsonl"], "data", image="t:1", progress=lambda now: told.append(now.done))

    await upload("mine/rows.jsonl", after_a_part(another))
    assert told[0] == PART
    assert all_below(tmp_path / "claim") == {"rows.jsonl": MINE}


async def test_damage_on_the_claim_is_mended(shell: Shell, tmp_path: Path) -> None:
    def damage() -> None:
        (partial,) = (tmp_path / "claim" / "rows.jsonl.finetune-partial").iterdir()
        with partial.open("r+b") as file:
            file.write(b"XXXX")

    await upload("mine/rows.jsonl", after_a_part(damage))
    assert all_below(tmp_path / "claim") == {"rows.jsonl": MINE}


async def with_pod(act: Callable[[Helper], None]) -> None:
    def run() -> None:
        with helper(FinetuneClient(), "data", "t:1", read_only=False, tell=lambda _: None) as pod:
            act(pod)

    await asyncio.to_thread(run)


async def test_a_part_that_comes_again_and_late_cuts_nothing(shell: Shell, tmp_path: Path) -> None:
    sha256 = describe_file(tmp_path / "mine", "rows.jsonl").sha256

    def act(pod: Helper) -> None:
        file: dict[str, Any] = {"path": "rows.jsonl", "sha256": sha256}
        pod.put("begin", **file)
        for offset in (0, PART, 2 * PART, 0):
            pod.put("file", MINE[offset : offset + PART], offset=offset, **file)
        assert pod.ask_for_hash("PUT", "name", lambda _: None, **file) == {"done": True}
        with pytest.raises(RefusedError, match="0 bytes so far"):
            pod.put("file", OTHER[:PART], offset=PART, **file)
        assert pod.ask_for_hash("PUT", "name", lambda _: None, **file) == {"done": True}

    await with_pod(act)
    assert all_below(tmp_path / "claim") == {"rows.jsonl": MINE}


@pytest.mark.parametrize("writer", ["../../../x", "0" * 9])
async def test_a_writer_names_no_other_file(shell: Shell, tmp_path: Path, writer: str) -> None:
    def act(pod: Helper) -> None:
        with pytest.raises(RefusedError, match="no writer"):
            pod.put("drop", path="rows.jsonl", sha256="0" * 64, writer=writer)

    await with_pod(act)


async def test_a_checksum_that_takes_longer_than_a_request_is_waited_for(shell: Shell, tmp_path: Path) -> None:
    await upload("mine/rows.jsonl")
    (tmp_path / "claim" / "rows.jsonl").write_bytes(OTHER)  # of the same size, so that its checksum is asked for
    shell.cluster.helpers.pending = 3
    told: list[str] = []
    await upload("mine/rows.jsonl", lambda now: told.append(now.file))
    assert all_below(tmp_path / "claim") == {"rows.jsonl": MINE}
    assert told[:3] == ["rows.jsonl (checksum, 0%)"] * 3


async def test_the_pod_answers_before_a_large_file_is_hashed_and_hashes_it_once(shell: Shell, tmp_path: Path) -> None:
    with (tmp_path / "claim" / "large.bin").open("wb") as file:
        file.truncate(256 << 20)
    asked: list[dict[str, Any]] = []

    def act(pod: Helper) -> None:
        asked.append(pod.get("digest", path="large.bin"))
        asked.append(pod.get("digest", path="large.bin"))
        asked.append(pod.ask_for_hash("GET", "digest", lambda _: None, path="large.bin"))
        asked.append(pod.get("digest", path="large.bin"))
        asked.append(pod.get("digest", path="large.bin", size=1))

    await with_pod(act)
    first, second, whole, again, of_another_size = asked
    assert (first["pending"], first["sizeBytes"]) == (True, 256 << 20)
    assert second["hashedBytes"] >= first["hashedBytes"]
    assert whole["sha256"] == describe_file(tmp_path / "claim", "large.bin").sha256
    assert again == whole
    assert of_another_size == {"partials": [], "sizeBytes": 256 << 20}


def test_a_file_is_hashed_by_one_thread_and_again_when_it_has_changed(tmp_path: Path) -> None:
    path, hashes = tmp_path / "large.bin", Hashes()
    with path.open("wb") as file:
        file.truncate(256 << 20)
    first = hashes.ask(path, 0)
    assert all(hashes.ask(path, 0) is first for _ in range(5))
    path.write_bytes(b"short")
    second = hashes.ask(path, 5)
    assert first.ended.wait(30)
    assert (first.sha256, first.given_up) == ("", True)
    assert second.sha256 == describe_file(path.parent, path.name).sha256
    assert hashes.is_known(path, second.sha256)
    hashes.rename(path, path.rename(tmp_path / "named.bin"))
    assert hashes.ask(tmp_path / "named.bin", 0) is second


def test_what_is_sent_to_the_pod_needs_nothing_but_an_old_python() -> None:
    tree = ast.parse(Path(server.__file__).read_text(), feature_version=(3, 8))
    imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imports |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).partition(".")[0] for name in imports} <= sys.stdlib_module_names


async def test_the_pod_hears_of_us_while_a_file_of_this_machine_is_hashed(shell: Shell, tmp_path: Path) -> None:
    before: list[int] = []

    def act(pod: Helper) -> None:
        before.append(shell.cluster.helpers.requests)
        found = sha256_here(pod, tmp_path / "mine" / "rows.jsonl", Count(0, lambda _: None), every=0)
        assert found == describe_file(tmp_path / "mine", "rows.jsonl").sha256

    await with_pod(act)
    assert shell.cluster.helpers.requests - before[0] == 3
