"""The operator as a process of its own, for benchmarks: how long its loop is blocked, its memory and its CPU time.

    python -m tests.support.operator_process LOG

A thread asks the loop for an answer every few milliseconds; the longest time without one goes to the file LOG, as JSON, and
starts anew, with each SIGUSR1. SIGUSR2 stops the questions, so that what the process does by itself can be seen.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TICK_SECONDS = 0.005


class LoopWatch:
    """Measures how long the loop of another thread does not answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path) -> None:
        self._loop, self._path = loop, path
        self._longest = self._longest_cpu = 0.0
        self._asking = True
        threading.Thread(target=self._ask, daemon=True).start()

    def report(self) -> None:
        """Write the longest block since the last report, and start anew."""
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps([round(self._longest, 4), round(self._longest_cpu, 4)]))
        new.rename(self._path)
        self._longest = self._longest_cpu = 0.0

    def stop(self) -> None:
        """Ask no more."""
        self._asking = False

    def _ask(self) -> None:
        while self._asking:
            answered = threading.Event()
            asked, cpu = time.monotonic(), time.process_time()
            self._loop.call_soon_threadsafe(answered.set)
            answered.wait()
            self._longest = max(self._longest, time.monotonic() - asked)
            self._longest_cpu = max(self._longest_cpu, time.process_time() - cpu)
            time.sleep(TICK_SECONDS)


async def _serve(path: Path) -> None:
    from finetune_operator.__main__ import serve
    from finetune_operator.settings import Settings

    loop = asyncio.get_running_loop()
    watch = LoopWatch(loop, path)
    loop.add_signal_handler(signal.SIGUSR1, watch.report)
    loop.add_signal_handler(signal.SIGUSR2, watch.stop)
    watch.report()
    await serve(Settings())


@dataclass(frozen=True)
class Block:
    """The longest time in which a loop did not answer."""

    seconds: float
    """By the clock: on a busy machine, the process may have been without a core."""
    cpu_seconds: float
    """The most that all threads of the process computed while the loop did not answer."""


class OperatorProcess:
    """The child, as its parent sees it."""

    def __init__(self, process: subprocess.Popen[bytes], report: Path, probe_port: int) -> None:
        self._process, self._report = process, report
        self.log = report.with_name("operator.log")
        self.probe_url = f"http://127.0.0.1:{probe_port}"

    async def up(self) -> None:
        """Wait until it listens to signals."""
        await self._reported()

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def mebibytes(self, field: str) -> float:
        """VmRSS, or its peak VmHWM."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith(f"{field}:")]
        return round(int(line.split()[1]) / 1024, 1)

    def cpu_seconds(self) -> float:
        """User and system time."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def longest_block(self) -> Block:
        """Since it was asked last."""
        self._report.unlink()
        self._process.send_signal(signal.SIGUSR1)
        return await self._reported()

    async def _reported(self) -> Block:
        deadline = time.monotonic() + 60
        while not self._report.exists():
            if self.exit_status is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the operator does not report: {self.log.read_text()[-3000:]}")
            await asyncio.sleep(0.05)
        seconds, cpu = json.loads(self._report.read_text())
        return Block(seconds, cpu)

    async def terminated(self) -> int:
        """Ask it to end; its exit status."""
        self._process.terminate()
        return await asyncio.to_thread(self._process.wait, 30)

    def stop_asking(self) -> None:
        self._process.send_signal(signal.SIGUSR2)


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


@contextmanager
def started(api_server: str, folder: Path, **settings: str) -> Iterator[OperatorProcess]:
    """Start the operator against an API server; it ends with the context."""
    user = {"name": "u", "user": {"token": "none"}}
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": api_server}}],
        "users": [user],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (folder / "kubeconfig").write_text(json.dumps(kubeconfig))
    (folder / "key").write_text("0" * 64 + "\n")
    port, report = free_port(), folder / "report.json"
    env = os.environ | {
        "KUBECONFIG": str(folder / "kubeconfig"),
        "FINETUNE_TOKEN_KEY_FILE": str(folder / "key"),
        "FINETUNE_DASHBOARD_ROUTE": "proxy",
        "FINETUNE_PROBE_PORT": str(port),
        "FINETUNE_METRICS_PORT": str(free_port()),
    }
    env |= settings
    with (folder / "operator.log").open("wb") as log:
        command = [sys.executable, "-m", "tests.support.operator_process", str(report)]
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            yield OperatorProcess(process, report, port)
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
