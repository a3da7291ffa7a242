"""Nothing that a user can cause ends in a traceback: files, arguments, kubeconfigs and servers of all shapes."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.support.http_server import Canned, running
from tests.unit.test_login import config

from finetune_client.cli import main

Object = dict[str, Any]
pytestmark = pytest.mark.sampled(8)

LINES = 3
"""What is wrong, what to do, and that -v tells more."""
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def typed(*words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command line; an exception is a traceback, and fails the test."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as stop:
            code = int(stop.code or 0)
        out.flush()
    return code, out.buffer.getvalue().decode("utf-8", "replace"), err.getvalue()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and no cluster."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, map(os.path.abspath, sys.path))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


BARE = "General: {base_model: gpt2}\nDataset: {train_file: rows.jsonl}\n"
DEEP = 100_000
FILES: dict[str, bytes] = {
    "deep JSON": b'{"a":' * DEEP,
    "deep YAML": b"[" * DEEP,
    "deep mappings": b"".join(b" " * depth + b"a:\n" for depth in range(2000)),
    "a number of 10,000 digits": b"apiVersion: " + b"9" * 10_000,
    "such a number in JSON": b'{"apiVersion": ' + b"9" * 10_000 + b"}",
    "such a number in a finetuning YAML": BARE.encode() + b"Training: {epochs: " + b"9" * 10_000 + b"}",
    "a deep finetuning YAML": b"General: " + b"[" * DEEP,
    "a day that is none": b"General: {base_model: 2024-99-99}\nDataset: {train_file: r}\n",
    "an alias of itself": b"General: &a {base_model: *a}\nDataset: {train_file: r}\n",
    "aliases without end": b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (97 + n, 97 + n, b", ".join([b"*%c" % (96 + n)] * 9)) for n in range(1, 12)),
    "no text": b"\xff\xfe\x00\x01",
    "nothing": b"",
    "a null byte": b"a: \0",
    "a key that is a mapping": b"{a: 1}: 2",
    "half a character": rb'{"a": "\ud800"}',
}  # fmt: skip


@pytest.mark.parametrize("command", ["validate", "submit", "convert", "run"])
@pytest.mark.parametrize("name", FILES)
def test_a_strange_file_is_named_and_refused(tmp_path: Path, name: str, command: str) -> None:
    (tmp_path / "job.yaml").write_bytes(FILES[name])
    code, _, err = typed(command, "-f", "job.yaml")
    assert code in {1, 2}
    assert err.startswith("job.yaml") or "job.yaml" in err.splitlines()[0]


@QUICK
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_random_bytes_are_no_job(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "job.yaml").write_bytes(content)
    for command in ("validate", "convert"):
        code, _, err = typed(command, "-f", "job.yaml")
        assert (code, "job.yaml" in err) == (2, True)


COMMANDS = (
    *("submit", "run", "validate", "convert", "list", "status", "watch", "logs", "report", "compare", "generate"),
    *("dashboard", "suspend", "resume", "cancel", "retry", "upload", "download", "doctor", "completion"),
)
ODD = (
    *("", ".", "..", "/", "~nobody-here", "~nobody-here/x", "-", "--", "\udcff", "\x1b[31m", "a:b", ":", "=", "9" * 5000),
    *("1e999", "nan", "-1", "²", "a" * 5000, "folder", "json", "Training.epochs=[", "x=" + "[" * 3000),
    *("--rank", "--attempt", "--timeout", "--port", "--set", "-f", "-o", "-n", "--context", "--claim", "--upload"),
    *("--create", "--words", "--image", "-A", "--open"),
)
WORDS = st.lists(st.sampled_from(ODD) | st.text(st.characters(exclude_characters="\0"), max_size=8), max_size=5)


@QUICK
@given(command=st.sampled_from(COMMANDS), words=WORDS)
@example(command="upload", words=["", "--", "--"])
def test_any_words_end_in_an_exit_code(tmp_path: Path, command: str, words: list[str]) -> None:
    (tmp_path / "folder").mkdir(exist_ok=True)
    code, _, err = typed(command, *words)
    assert code in {0, 1, 2}
    assert code == 0 or err or command == "doctor"
    assert code != 1 or err.count("\n") <= LINES, err


SHAPES = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.lists(st.text(max_size=3), max_size=2)
SERVERS = st.sampled_from(
    ["http://127.0.0.1:1", "https://127.0.0.1:1", "https://[::1", "http://127.0.0.1:99999", "x", "http://a b", "https://"]
)
EXEC = SHAPES | st.fixed_dictionaries(
    {"command": st.sampled_from(["/nowhere/program", "\0", ""])},
    optional={"args": SHAPES, "env": SHAPES, "installHint": SHAPES, "apiVersion": SHAPES},
)  # fmt: skip
USER = st.fixed_dictionaries(
    {},
    optional={
        "exec": EXEC, "token": SHAPES, "tokenFile": SHAPES, "as": SHAPES, "username": SHAPES, "client-certificate-data": SHAPES,
        "client-key-data": SHAPES, "client-certificate": SHAPES, "client-key": SHAPES,
    },
)  # fmt: skip
CLUSTER = st.fixed_dictionaries(
    {},
    optional={
        "certificate-authority": SHAPES, "certificate-authority-data": SHAPES, "tls-server-name": SHAPES,
        "proxy-url": st.sampled_from(["http://127.0.0.1:1", "http://x:port", "socks5://x", "//", "[", 7, None]),
        "insecure-skip-tls-verify": SHAPES,
    },
)  # fmt: skip


@QUICK
@given(server=SERVERS, user=USER, cluster=CLUSTER)
def test_a_kubeconfig_of_any_shape_is_told_what_is_wrong(tmp_path: Path, server: str, user: Object, cluster: Object) -> None:
    path = config(tmp_path / "config", server, user, cluster)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(path))
        code, out, err = typed("list")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.splitlines()[1].startswith("  -> ")
    assert err.count("\n") <= LINES


@pytest.mark.parametrize(
    "content", [b"{" * DEEP, b'{"a":' * DEEP, b"\xff", b"\0", b"contexts: 1", b"!!python/object:os.system {}"]
)
def test_a_kubeconfig_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    (tmp_path / "config").write_bytes(content)
    for place in (tmp_path / "config", tmp_path, tmp_path / "config" / "below", "~nobody-here/config", ":"):
        monkeypatch.setenv("KUBECONFIG", str(place))
        code, _, err = typed("list")
        assert code == 1
        assert err.startswith("error: no cluster to talk to")
        assert "\n  -> " in err


PAGE = "<!DOCTYPE html><html><body>Please log in</body></html>"


@pytest.mark.parametrize("status", [200, 401, 403, 404])
@pytest.mark.parametrize("words", [("list",), ("status", "demo"), ("doctor",)], ids=lambda words: words[0])
async def test_a_web_page_in_the_api_servers_place_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, words: tuple[str, ...]
) -> None:
    async with running(Canned(status=status, body=PAGE)) as url:
        monkeypatch.setenv("KUBECONFIG", str(config(tmp_path / "config", url)))
        code, out, err = await asyncio.to_thread(typed, *words)
    assert code == 1
    told = out if words == ("doctor",) else err
    assert f"answers with a web page ({status}) and not as an API server" in told
    assert "HTTPS_PROXY" in told
    assert "<" not in told.replace("<-", "")


def test_a_port_that_cannot_be_used_is_told() -> None:
    assert typed("dashboard", "demo", "--port", "70000")[2].startswith("error: argument --port: '70000' is no port")


@pytest.mark.parametrize("redirection", [">&-", "<&-", "2>&-"])
def test_closed_streams_are_no_error_of_the_program(tmp_path: Path, redirection: str) -> None:
    (tmp_path / "conf.yaml").write_text(BARE)
    for words in ("validate -f conf.yaml", "validate -f -", "list"):
        line = f'exec </dev/null; "{sys.executable}" -m finetune_client.cli {words} {redirection}'
        done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=60)
        assert b"Traceback" not in done.stderr
        assert done.returncode in {0, 1, 2}


def test_names_that_are_no_utf_8_are_printed(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.yaml")
    Path(name).write_text(BARE)
    code, out, err = typed("validate", "-f", name)
    assert (code, err) == (0, "")
    assert r"\udcff.yaml: the finetuning YAML is valid" in out


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = subprocess.Popen(["sh", "-c", f"printf '{BARE}' > pipe"])
    code, _, err = typed("submit", "-f", "pipe")
    assert writer.wait(10) == 0
    assert code == 2
    assert "is read from a file, not from a stream" in err
