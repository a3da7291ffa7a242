"""The command line in a process of its own, against a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.kubectl import Kubectl

START_SECONDS = 60


def finetune(
    kubectl: Kubectl, *arguments: str, kubeconfig: Path | None = None, timeout: float = 60, cwd: Path | None = None
) -> tuple[int, str, str]:
    """Run a command in the namespace; exit code, standard output and standard error."""
    command, env = _command(kubectl, arguments, kubeconfig)
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


@contextmanager
def serving(kubectl: Kubectl, *arguments: str) -> Iterator[str]:
    """A command that runs during the block, by its first line; Ctrl-C ends it, as it has to."""
    command, env = _command(kubectl, arguments, None)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    silent = threading.Timer(START_SECONDS, process.kill)
    silent.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        silent.cancel()
        yield line
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
    finally:
        silent.cancel()
        if process.poll() is None:
            process.kill()
            process.communicate()


def _command(kubectl: Kubectl, arguments: tuple[str, ...], kubeconfig: Path | None) -> tuple[list[str], dict[str, str]]:
    command = [sys.executable, "-m", "finetune_client.cli", *arguments, "-n", kubectl.namespace]
    return command, os.environ | {"KUBECONFIG": str(kubeconfig or kubectl.kubeconfig)}
