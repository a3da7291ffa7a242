"""The command line in a process of its own, against a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.kubectl import Kubectl


def finetune(kubectl: Kubectl, *arguments: str, kubeconfig: Path | None = None, timeout: float = 60) -> tuple[int, str, str]:
    """Run a command in the namespace; exit code, standard output and standard error."""
    command = [sys.executable, "-m", "finetune_client.cli", *arguments, "-n", kubectl.namespace]
    env = os.environ | {"KUBECONFIG": str(kubeconfig or kubectl.kubeconfig)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout)
    return done.returncode, done.stdout, done.stderr
