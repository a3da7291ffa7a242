"""``finetune completion``: the script as bash and zsh load it, which asks the command itself, and that a cluster."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.builders import NAMESPACE
from tests.support.shell import Shell, shell_at

from finetune_client.cli import main

pytestmark = pytest.mark.sampled(8)

SHELLS = [name for name in ("bash", "zsh") if shutil.which(name)]
"""zsh takes bash's script, by a part of its own."""


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    """A cluster with jobs and claims, and a folder whose only file is a kubeconfig; `finetune` is on the PATH."""
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        config = {"Training": {"num_training_workers": 3}}
        shell.add("demo", "Running", spec={"config": config}, status={"attempt": 2})
        shell.add("demo-2", "Failed")
        shell.add("other", "Succeeded", metadata={"namespace": "elsewhere"})
        for name in ("data", "models"):
            shell.kube.put("persistentvolumeclaims", {"metadata": {"name": name, "namespace": NAMESPACE}})
        program = tmp_path / "bin" / "finetune"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m finetune_client.cli "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, map(os.path.abspath, sys.path))))
        yield shell


async def offered(shell_name: str, *words: str) -> list[str]:
    """What a shell offers for the last word by the script that it has loaded."""
    typed = " ".join(f"'{word}'" for word in words)
    load = f'eval "$(finetune completion {shell_name})"; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}'
    start = "autoload -U compinit && compinit -D -u; setopt ksharrays; " if shell_name == "zsh" else ""
    ask = f'{start}{load}; _finetune; printf "%s\\n" "${{COMPREPLY[@]}}"'
    process = await asyncio.create_subprocess_exec(shell_name, "-c", ask, stdout=PIPE, stderr=PIPE)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert err == b""
    return out.decode().split()


LINES = {
    "st": ["status"],
    "logs --fo": ["--follow"],
    "list -o y": ["yaml"],
    "status -o ": ["json", "name", "yaml"],
    "completion z": ["zsh"],
    "generate demo --device ": ["cpu", "gpu"],
    "logs demo --rank ": ["0", "1", "2"],
    "logs demo --attempt ": ["1", "2"],
    "list --context ": ["home", "work"],
    "upload rows.jsonl ": ["data:", "models:"],
    "submit -f job.yaml --dataset-claim d": ["data"],
    "compare demo demo-": ["demo-2"],
    "status -n elsewhere ": ["other"],
    "status --context home ": ["other"],
    "logs --rank 1 demo-": ["demo-2"],
    "submit -f ": [],
    "compare demo -o ": [],
    "nonsense ": [],
}
"""What is typed behind `finetune`, and what is offered; nothing where the shell completes files."""
OF_A_JOB = ("status", "watch", "logs", "report", "dashboard", "suspend", "resume", "cancel", "retry", "download", "list", "get",
            "compare", "generate")  # fmt: skip


@pytest.mark.parametrize("shell_name", SHELLS)
async def test_a_shell_is_offered_what_the_grammar_and_the_cluster_have(shell: Shell, shell_name: str) -> None:
    lines = LINES if shell_name == "bash" else {line: LINES[line] for line in ("st", "status -o ", "upload rows.jsonl ")}
    for line, expected in lines.items():
        assert await offered(shell_name, "finetune", *line.split(" ")) == expected, line


async def said(shell: Shell, *words: str) -> list[str]:
    """What the command answers to the script."""
    code, out, err = await shell.run("completion", "bash", "--words", *words)
    assert (code, err) == (0, "")
    return out.split()


@pytest.mark.parametrize("command", OF_A_JOB)
async def test_every_command_of_a_job_is_offered_the_jobs_of_the_namespace(shell: Shell, command: str) -> None:
    assert await said(shell, command, "d") == ["demo", "demo-2"]


async def test_a_folder_or_a_prompt_is_left_to_the_shell(shell: Shell) -> None:
    for words in (("download", "demo", ""), ("report", "demo", ""), ("generate", "demo", ""), ("status", "demo", "")):
        assert await said(shell, *words) == []


async def test_bash_splits_words_at_equals_signs_and_colons(shell: Shell) -> None:
    assert await said(shell, "list", "--output", "=", "js") == ["json"]
    assert await said(shell, "upload", "rows.jsonl", "data", ":", "") == []


async def test_names_that_a_shell_would_run_are_not_offered(shell: Shell) -> None:
    shell.add("$(touch here)")
    shell.add("*")
    assert await said(shell, "status", "") == ["demo", "demo-2"]


@pytest.mark.parametrize("fault", ["denied", "nobody", "no kubeconfig"])
async def test_without_an_answer_nothing_is_offered_and_nothing_said(
    shell: Shell, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    match fault:
        case "denied":
            shell.cluster.denied.add("list finetunejobs")
        case "nobody":
            shell.cluster.unknown_user = True
        case _:
            monkeypatch.setenv("KUBECONFIG", "/nowhere")
    assert await said(shell, "status", "") == []


@pytest.mark.parametrize(("name", "words"), [("zsh", "bashcompinit"), ("fish", "complete -c finetune -n __finetune_offers")])
def test_other_shells_have_their_script(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", name]) == 0
    out = capsys.readouterr().out
    assert words in out
    assert f"finetune completion {'bash' if name == 'zsh' else name} --words " in out
