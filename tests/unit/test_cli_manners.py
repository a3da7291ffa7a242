"""How the command line behaves whatever happens: quick to start, quiet about closed pipes, never a traceback."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.chart import ROOT
from tests.support.http_server import until
from tests.support.shell import CLUSTER, SUBMISSION, Shell, shell_at

from finetune_client import grammar
from finetune_client.cli import main

pytestmark = pytest.mark.sampled(3)

COMMAND = [sys.executable, "-m", "finetune_client.cli"]
BARE = "General: {base_model: gpt2}\nDataset: {train_file: rows.jsonl}\n"
HEAVY = {"pydantic", "kubernetes", "ruamel", "urllib3", "aiohttp", "requests", "ssl", "http.client", "asyncio"}


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        yield shell


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "conf.yaml"
    path.write_text(BARE)
    return path


PROGRAM = """
import sys
from finetune_client.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("\\n".join(sys.modules))
"""


def loaded_by(*arguments: str) -> set[str]:
    """Modules that a command line imports."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60)
    return set(done.stdout.split())


def finetune(folder: Path, *arguments: str, stdout: Any) -> tuple[int, str]:
    """Exit code and standard error of a command line whose standard output goes somewhere."""
    command = [*COMMAND, *arguments]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=folder, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["submit", "--help"], ["completion", "bash"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert loaded_by(*arguments) & HEAVY == set()


def test_a_list_imports_neither_models_nor_the_kubernetes_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kubeconfig"
    clusters = "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]"
    path.write_text(f"contexts: [{{name: x, context: {{cluster: c}}}}]\n{clusters}\ncurrent-context: x\n")
    monkeypatch.setenv("KUBECONFIG", str(path))
    loaded = loaded_by("list")
    assert "finetune_client.kube.rest" in loaded
    assert loaded & {"pydantic", "kubernetes", "urllib3", "aiohttp", "requests", "asyncio"} == set()


PRINTING = [["convert", "-f", "conf.yaml"], ["validate", "-f", "conf.yaml"], ["completion", "bash"]]


@pytest.mark.parametrize("arguments", PRINTING, ids=lambda words: words[0])
def test_a_closed_pipe_ends_a_command_without_words(config: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert finetune(config.parent, *arguments, stdout=writer) == (141, "")
    os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
@pytest.mark.parametrize("arguments", PRINTING, ids=lambda words: words[0])
def test_a_full_disk_is_told_in_a_line(config: Path, arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        told = finetune(config.parent, *arguments, stdout=full)
    assert told == (1, "error: standard output cannot be written: No space left on device\n")


@pytest.mark.parametrize("arguments", [["watch", "demo"], ["logs", "-f", "demo"], ["submit", "-f", "conf.yaml", "--wait"]])
async def test_ctrl_c_ends_the_command_and_no_job(shell: Shell, config: Path, arguments: list[str]) -> None:
    shell.add(phase="Running", status={"attempt": 1, "ray": {"cluster": CLUSTER, "submissionId": SUBMISSION}})
    shell.cluster.start_ray(log="x\n")
    process = await asyncio.create_subprocess_exec(*COMMAND, *arguments, stdout=PIPE, stderr=PIPE, cwd=config.parent)
    try:
        await until(lambda: shell.cluster.watches or shell.cluster.ray.requests, "it follows")
        before = shell.writes()
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 130, err
    assert "Traceback" not in err.decode()
    assert "`finetune cancel" in err.decode()
    assert "goes on" in err.decode()
    assert shell.writes() == before


def test_details_of_an_error_are_told_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("a: [")
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert main(["list"]) == 1
    short = capsys.readouterr().err
    assert short.count("\n") == 3
    assert main(["list", "-v"]) == 1
    assert "expected" in capsys.readouterr().err.removeprefix(short)


@pytest.mark.parametrize(("typed", "meant"), [("lst", "list"), ("statsu", "status"), ("retri", "retry")])
def test_a_mistyped_command_is_told_with_the_one_that_is_meant(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([typed])
    assert capsys.readouterr().err == f"error: there is no {typed}; did you mean {meant}?\nfinetune --help shows what it takes\n"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("finetune ")


def test_validate_takes_folders_and_finetuning_yamls(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("General: {base_model: gpt2}\nDataset: {}\n")
    samples = ROOT / "config_samples" / "finetunejobs"
    assert main(["validate", "-f", str(samples), "-f", str(config)]) == 0
    out, err = capsys.readouterr()
    assert out.count(" is valid\n") == len(list(samples.glob("*.yaml")))
    assert f"{config}: the finetuning YAML is valid; `finetune convert -f {config}` makes a FinetuneJob of it\n" in out
    assert err == ""
    assert main(["validate", "-f", str(tmp_path)]) == 2
    assert f"{wrong}: Dataset.train_file: " in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["validate", "-f", str(tmp_path / "empty"), "-f", str(config)]) == 2
    assert "there is no .yaml, .yml or .json file in this folder" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-f", "--filename", "--config_file"])
def test_convert_takes_its_file_as_the_other_commands_do(config: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", option, str(config)]) == 0
    assert "kind: FinetuneJob" in capsys.readouterr().out


def test_every_command_has_help_and_a_place_in_the_documents(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    parser = grammar.build()
    commands: Any = next(action.choices for action in parser._actions if action.dest == "command")
    for name, command in commands.items():
        assert f"finetune {name}" in text, name
        for action in command._actions:
            longest = max(action.option_strings, key=len, default="")
            assert longest in {"", "--help"} or longest in text, (name, longest)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("generate demo --base Q", {"model": "demo", "prompt": "Q", "base": True}),
        ("generate demo Q --base", {"model": "demo", "prompt": "Q", "base": True}),
        ("generate demo --base", {"model": "demo", "prompt": None, "base": True}),
        ("generate demo --base -- -x", {"model": "demo", "prompt": "-x", "base": True}),
        ("report demo --open folder", {"job": "demo", "folder": "folder", "open": True}),
        ("watch --timeout 1 demo", {"job": "demo", "timeout": 1.0}),
    ],
)
def test_an_argument_that_may_be_left_out_may_stand_behind_options(line: str, expected: dict[str, Any]) -> None:
    found = vars(grammar.build().parse_args(line.split()))
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    "line", ["generate demo Q --base R", "generate demo --bases Q", "list demo --bad", "report demo --open a b"]
)
def test_what_no_command_takes_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        grammar.build().parse_args(line.split())
    assert "unrecognized arguments" in capsys.readouterr().err
