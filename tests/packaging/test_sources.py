"""Rules about the source tree itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.chart import ROOT

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
HOST = "trainer_image/finetune_trainer/runtime/host.py"
HOST_MODULES = {"ctypes", "fcntl", "mmap", "resource"}
HOST_FUNCTIONS = {"posix_fadvise", "prctl", "process_cpu_count", "sched_getaffinity", "sched_setaffinity", "sysconf"}
HOST_FOLDERS = ("/proc", "/sys/")
PAUSES = {"time.sleep", "asyncio.sleep", "sleep"}
PATCHES = {"mock.patch", "patch", ".setattr", "patch.object", "mock.patch.object", "mocker.patch", "mocker.patch.object"}


def python_files() -> Iterator[Path]:
    for folder in ("operator", "trainer_image", "tests", "docs", "examples", "requirements"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_nothing_in_the_operators_source_root_shadows_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "operator" / "operator.py").exists()
    assert not (ROOT / "operator.py").exists()
    found = {path.name for path in (ROOT / "operator").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert not found & (set(sys.stdlib_module_names) - {"__pycache__"})


def test_files_are_at_most_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert len(lengths) > 50
    assert {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_functions_are_at_most_50_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in python_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def calls(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def test_tests_neither_sleep_nor_replace_parts_of_the_program() -> None:
    """They look at the wire, and poll with a deadline: the helpers that do so, in tests/support, may pause, and benchmarks
    measure for a time.
    """
    offenders = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        forbidden = PATCHES if path.parent.name in {"support", "benchmarks"} else PATCHES | PAUSES
        offenders += [f"{path.relative_to(ROOT)}:{line} {name}" for line, name in calls(path) if is_one_of(name, forbidden)]
    assert offenders == []


def is_one_of(name: str, forbidden: set[str]) -> bool:
    """Whether a call has one of these names. `.setattr` is forbidden on whatever name a MonkeyPatch goes by."""
    return name in forbidden or any(name.endswith(end) for end in forbidden if end.startswith("."))


def test_a_part_that_is_replaced_is_found_under_any_name(tmp_path: Path) -> None:
    calls_of = {
        "monkeypatch.setattr(loop, 'x', 1)": True,
        "patch.setattr(loop, 'x', 1)": True,
        "pytest.MonkeyPatch().setattr(loop, 'x', 1)": True,
        "mock.patch('loop.x')": True,
        "mock.patch.object(loop, 'x')": True,
        "mocker.patch('loop.x')": True,
        "monkeypatch.setenv('X', '1')": False,
        "setattr(config, 'x', 1)": False,
        "client.patch('/jobs')": False,
    }
    path = tmp_path / "test_it.py"
    path.write_text("".join(f"{call}\n" for call in calls_of))
    found = {line for line, name in calls(path) if is_one_of(name, PATCHES)}
    assert found == {line for line, forbidden in enumerate(calls_of.values(), start=1) if forbidden}


def host_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each thing in a file that not every operating system has."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                found = {name.name for name in names} & HOST_MODULES
            case ast.ImportFrom(module=module, names=names):
                found = {module} & HOST_MODULES | {name.name for name in names} & HOST_FUNCTIONS
            case ast.Attribute(attr=name):
                found = {name} & HOST_FUNCTIONS
            case ast.Constant(value=str() as text):
                found = {text} if text.startswith(HOST_FOLDERS) else set()
            case _:
                found = set()
        yield from ((node.lineno, name) for name in found)


def test_one_module_alone_asks_what_not_every_system_has() -> None:
    """CPU affinity, control groups, /proc and the like: macOS lacks them, so their use has to have a fallback."""
    programs = [path for folder in ("operator", "trainer_image") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): list(host_names(path)) for path in programs}
    assert {"resource", "ctypes", "sched_getaffinity", "/sys/fs/cgroup"} <= {name for _, name in found.pop(HOST)}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "modules", ["finetune_operator.reconciler, finetune_operator.handlers", "finetune_client.cli, finetune_client.local"]
)
def test_operator_and_client_import_no_training_library(modules: str) -> None:
    """An operator that imports torch needs gigabytes, and a client seconds; import-linter says the same of direct imports."""
    program = f"import sys, {modules}; print(sorted({{'torch', 'transformers', 'ray', 'peft', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
