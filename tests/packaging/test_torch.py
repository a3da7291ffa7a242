"""Where torch comes from, and the locks that hold it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.support.chart import ROOT

pytestmark = pytest.mark.sampled(4)

REQUIREMENTS = ROOT / "requirements"
VERSION = (REQUIREMENTS / "torch.in").read_text(encoding="utf-8").strip().removeprefix("torch==")
THIS_PYTHON, OTHER_PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}", "cp39"
LOCKS = sorted(path for path in REQUIREMENTS.glob("*.txt") if path.name != "smollm2.txt")


def decide(folder: Path | str, index: str, source: str = "") -> tuple[int, str]:
    """The exit status, and what the script says, without installing anything."""
    settings = {"TORCH_WHEELS": str(folder), "TORCH_INDEX": index, "TORCH_SOURCE": source}
    command = [sys.executable, REQUIREMENTS / "install_torch.py", "--dry-run"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def make_wheel(folder: Path, tag: str) -> Path:
    """A wheel of torch with nothing in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"torch-{VERSION}+cpu-{tag}-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        info = f"torch-{VERSION}+cpu.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {VERSION}+cpu\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(scope="module")
def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}/"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A package index that has torch for this Python."""
    root = tmp_path_factory.mktemp("index")
    wheel = make_wheel(root / "torch", THIS_PYTHON)
    (root / "torch" / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(root))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def silent_index() -> Iterator[str]:
    """An index that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def test_a_wheel_in_the_folder_comes_first(tmp_path: Path, index: str) -> None:
    make_wheel(tmp_path, THIS_PYTHON)
    code, said = decide(tmp_path, index)
    assert (code, said) == (0, f"torch: {VERSION} from {os.path.relpath(tmp_path)}; downloads nothing\n")


def test_the_index_comes_next_where_no_wheel_is_for_this_python(tmp_path: Path, index: str) -> None:
    make_wheel(tmp_path, OTHER_PYTHON)
    code, said = decide(tmp_path, index)
    assert code == 0
    assert said.startswith(f"torch: {VERSION} from the index {index}; downloads up to 0.2 GB (no wheel in ")


def test_pypi_comes_last_and_says_why(tmp_path: Path, closed_port: str) -> None:
    make_wheel(tmp_path, OTHER_PYTHON)
    code, said = decide(tmp_path, closed_port)
    assert code == 0
    assert re.fullmatch(rf"torch: {VERSION} from PyPI.*; downloads up to \d\.?\d* GB \(no wheel in .*; the index .*\)\n", said)


def test_an_index_that_never_answers_is_given_up_soon(tmp_path: Path) -> None:
    with silent_index() as url:
        began = time.monotonic()
        code, said = decide(tmp_path, url)
    assert (code, "from PyPI" in said) == (0, True)
    assert time.monotonic() - began < 30, "retries would take a minute"


@pytest.mark.parametrize(("source", "taken"), [("wheels", "from ../"), ("index", "from the index"), ("pypi", "from PyPI")])
def test_the_source_can_be_chosen(source: str, taken: str, tmp_path: Path, index: str) -> None:
    make_wheel(tmp_path, THIS_PYTHON)
    code, said = decide(tmp_path, index, source)
    assert (code, said.count("\n")) == (0, 1)
    assert said.startswith(f"torch: {VERSION} {taken}")


@pytest.mark.parametrize("source", ["wheels", "index", "conda"])
def test_a_chosen_source_without_torch_is_an_error(source: str, tmp_path: Path, closed_port: str) -> None:
    code, said = decide(tmp_path, closed_port, source)
    assert (code, f"TORCH_SOURCE={source} has no" in said or "TORCH_SOURCE must be" in said) == (1, True), said


@pytest.mark.parametrize("name", ["torch-cpu.txt", "torch-pypi.txt"])
def test_all_builds_of_torch_have_one_version(name: str) -> None:
    assert re.findall(r"^torch==([\d.]+)", (REQUIREMENTS / name).read_text(encoding="utf-8"), re.MULTILINE) == [VERSION]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_package_of_a_lock_has_a_version_and_hashes(path: Path) -> None:
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    lines = text.splitlines()
    assert lines
    wrong = [line for line in lines if not re.match(r"[a-z0-9-]+==[\w.+]+( ; [^#]*?)?\s+--hash=sha256:[0-9a-f]{64}", line)]
    assert wrong == []


@pytest.mark.parametrize("name", ["trainer.txt", "dev.txt"])
def test_what_differs_between_builds_of_torch_is_in_no_other_lock(name: str) -> None:
    """So that one lock goes with every source of torch."""
    found = packages(REQUIREMENTS / name)
    assert [package for package in found if re.match(r"torch$|triton$|nvidia-|cuda-", package)] == []
    for package, version in packages(REQUIREMENTS / "torch-pypi.txt").items():
        assert found.get(package, version) == version


def packages(path: Path) -> dict[str, str]:
    """The version of each package of a lock."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE))
