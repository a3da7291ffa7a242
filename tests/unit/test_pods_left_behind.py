"""No helper pod is left behind: not by a lost answer, by Ctrl-C pressed twice, by `timeout`, or by a server that is busy."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.builders import NAMESPACE
from tests.support.http_server import ResetConnection, until
from tests.support.shell import Shell, shell_at

from finetune_client.transfer import signals
from finetune_client.transfer.lifetime import LABEL

pytestmark = pytest.mark.sampled(4)

Object = dict[str, Any]
UPLOAD = ("upload", "rows.jsonl", "data:", "--image", "t:1")
BUSY = (503, "ServiceUnavailable", "the server is busy")


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        (tmp_path / "claim").mkdir()
        (tmp_path / "rows.jsonl").write_text("{}\n")
        shell.cluster.helpers.claims["data"] = tmp_path / "claim"
        shell.kube.put("persistentvolumeclaims", {"metadata": {"name": "data", "namespace": NAMESPACE}})
        monkeypatch.chdir(tmp_path)
        yield shell


class Some(dict[Any, Any]):
    """Refusals of which each is given a number of times only."""

    def __init__(self, refusals: Object, times: int) -> None:
        super().__init__(refusals)
        self.times = times

    def get(self, key: Any, default: Any = None) -> Any:
        if key not in self or self.times == 0:
            return default
        self.times -= 1
        return self[key]


def deletions(shell: Shell) -> int:
    return sum(line.startswith(f"DELETE /api/v1/namespaces/{NAMESPACE}/pods/") for line in shell.writes())


async def test_a_pod_whose_creation_was_not_answered_is_deleted(shell: Shell) -> None:
    def lose(type_: str, plural: str, _pod: Object) -> None:
        if (type_, plural) == ("ADDED", "pods"):
            raise ResetConnection

    shell.kube.listeners.append(lose)
    code, _, err = await shell.run(*UPLOAD)
    assert (code, "the connection was closed" in err) == (1, True)
    assert len(shell.cluster.helpers.made) == 1
    assert shell.kube.objects["pods"] == {}


async def test_nothing_is_deleted_where_no_pod_was_made(shell: Shell) -> None:
    shell.kube.refusals["POST", "pods"] = (403, "Forbidden", "exceeded quota")
    code, _, err = await shell.run(*UPLOAD)
    assert (code, "exceeded quota" in err) == (1, True)
    assert deletions(shell) == 0


async def test_a_deletion_is_repeated(shell: Shell) -> None:
    shell.kube.refusals = Some({("DELETE", "pods"): BUSY}, 2)
    assert await shell.run(*UPLOAD) == (0, "data:rows.jsonl\n", "")
    assert deletions(shell) == 3
    assert shell.kube.objects["pods"] == {}


async def test_a_pod_that_cannot_be_deleted_is_told(shell: Shell) -> None:
    shell.kube.refusals["DELETE", "pods"] = (403, "Forbidden", "you may not delete pods")
    code, out, err = await shell.run(*UPLOAD)
    (name,) = (name for _, name in shell.kube.objects["pods"])
    assert (code, out) == (0, "data:rows.jsonl\n")
    assert err == (
        f"the helper pod {name} is left behind: the API server says: you may not delete pods\n"
        f"  -> kubectl delete pod {name} -n {NAMESPACE}\n"
    )


@asynccontextmanager
async def waiting(shell: Shell) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command that waits for its pod."""
    shell.cluster.helpers.never_ready = {"phase": "Pending"}
    command = (sys.executable, "-m", "finetune_client.cli", *UPLOAD)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, preexec_fn=_listen)
    try:
        await until(lambda: shell.cluster.helpers.made, "it makes its pod")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _listen() -> None:
    """Be deaf to no signal, as what `nohup` or a script has started would be."""
    for number in (signal.SIGINT, *signals.ENDING):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
async def test_a_signal_ends_the_command_and_the_pod(shell: Shell, number: signal.Signals, code: int) -> None:
    async with waiting(shell) as process:
        process.send_signal(number)
        out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, out, err) == (code, b"", b"")
    assert shell.kube.objects["pods"] == {}


async def test_a_second_ctrl_c_waits_for_the_deletion(shell: Shell) -> None:
    async with waiting(shell) as process:
        shell.kube.refusals = Some({("DELETE", "pods"): BUSY}, 2)
        process.send_signal(signal.SIGINT)
        await until(lambda: deletions(shell), "it deletes the pod")
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, err) == (130, b"")
    assert shell.kube.objects["pods"] == {}


def test_handlers_of_others_are_left_alone_and_the_default_is_restored() -> None:
    def own(_number: int, _frame: Any) -> None:
        pass

    before = {number: signal.getsignal(number) for number in signals.ENDING}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, own)
    try:
        with signals.as_exceptions(), signals.as_exceptions():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            assert signal.getsignal(signal.SIGHUP) is own
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        _in_a_thread(lambda: signals.as_exceptions().__enter__())
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_a_thread(act: Callable[[], object]) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


async def test_pods_that_ended_long_ago_are_deleted_and_no_others(shell: Shell) -> None:
    def pod(name: str, phase: str, hours: int, label: str = LABEL) -> None:
        created = (datetime.now(UTC) - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = {"name": name, "namespace": NAMESPACE, "labels": {label: "true"}, "creationTimestamp": created}
        shell.kube.put("pods", {"metadata": metadata, "status": {"phase": phase}})

    pod("ended", "Succeeded", 13)
    pod("failed", "Failed", 13)
    pod("just-ended", "Succeeded", 11)
    pod("running", "Running", 13)
    pod("anothers", "Succeeded", 13, "app")
    assert (await shell.run(*UPLOAD))[0] == 0
    assert {name for _, name in shell.kube.objects["pods"]} == {"just-ended", "running", "anothers"}


async def test_pods_need_not_be_listed(shell: Shell) -> None:
    shell.cluster.denied = {"list pods"}
    assert await shell.run(*UPLOAD) == (0, "data:rows.jsonl\n", "")
