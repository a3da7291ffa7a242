"""The parts of `make test`, and the turns of tests that share a cluster."""

from __future__ import annotations

import fcntl
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event, Thread

import pytest
from tests.run import PYTEST, Part, run
from tests.support import durations, lanes
from tests.support.kubectl import wait_until

PASSES, FAILS = ["true"], ["false"]


def test_a_part_runs_its_commands_in_order_after_the_parts_that_it_needs(tmp_path: Path) -> None:
    write = [["sh", "-c", f"echo {word}; echo {word} >> {tmp_path}/order"] for word in ("one", "two", "three")]
    later = Part("later", [write[2]], after=("first",), folder=tmp_path)
    assert run([later, Part("first", write[:2], folder=tmp_path)])
    assert (tmp_path / "order").read_text().split() == ["one", "two", "three"]
    assert (tmp_path / "first.log").read_text().split() == ["one", "two"]


def test_a_part_whose_need_has_failed_is_not_run_and_the_failure_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = Part("build", [["sh", "-c", "echo no compiler; exit 3"], PASSES], folder=tmp_path)
    needs = Part("cluster", [["touch", str(tmp_path / "ran")]], after=("build",), folder=tmp_path)
    assert not run([needed, needs, Part("lint", [PASSES], folder=tmp_path)])
    assert not (tmp_path / "ran").exists()
    told = capsys.readouterr().out
    assert "no compiler" in told
    assert "build FAILED" in told
    assert "not run: it needs build" in told
    assert "lint passed" in told.splitlines()[-1]


def test_a_command_that_fails_ends_its_part(tmp_path: Path) -> None:
    assert not run([Part("a", [FAILS, ["touch", str(tmp_path / "ran")]], folder=tmp_path)])
    assert not (tmp_path / "ran").exists()


def test_a_test_that_fails_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "test_it.py"
    path.write_text("def test_right():\n    pass\n\n\ndef test_wrong():\n    assert 0\n")
    assert not run([Part("local", [[*PYTEST, str(path)]], folder=tmp_path)])
    told = capsys.readouterr().out.splitlines()
    assert told.count("test_it.py::test_wrong failed") == 1
    assert "test_it.py::test_right failed" not in told


def test_durations_are_told_by_folder_and_the_slowest_first(tmp_path: Path) -> None:
    case = '<testcase classname="tests.{}.test_x" name="{}" time="{}"/>'
    case_of_class = '<testcase classname="tests.unit.test_x.TestIt" name="slow" time="30.25"/>'
    cases = [case.format("unit", "quick", 0.5), case_of_class, case.format("e2e", "job", 60)]
    (tmp_path / "local-0.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    lines = durations.report(tmp_path).splitlines()
    assert "| tests/unit | 2 | 31 |" in lines
    assert "| tests/e2e | 1 | 60 |" in lines
    assert lines[-3:-1] == ["| tests/e2e/test_x.py::job | 60.0 |", "| tests/unit/test_x.py::TestIt::slow | 30.2 |"]


def test_a_test_that_wants_the_cluster_alone_has_its_turn_before_newcomers(tmp_path: Path) -> None:
    order: list[str] = []
    inside, may_leave = Event(), Event()

    def have_a_turn(name: str, *, alone: bool = False) -> None:
        with lanes.turn(tmp_path, alone=alone):
            if name == "first":
                inside.set()
                may_leave.wait(30)
            order.append(name)

    def waits_at_the_gate() -> bool:
        with (tmp_path / "gate.lock").open("a") as gate:
            try:
                fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    threads = [
        Thread(target=have_a_turn, args=(name,), kwargs={"alone": name == "alone"}) for name in ("first", "alone", "newcomer")
    ]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    wait_until("the second one waits for its turn", waits_at_the_gate, 30, every=0.01)
    threads[2].start()
    may_leave.set()
    for thread in threads:
        thread.join(30)
    assert order == ["first", "alone", "newcomer"]


def test_what_workers_share_is_made_by_the_first_and_removed_by_the_last(tmp_path: Path) -> None:
    done: list[str] = []

    def share() -> AbstractContextManager[None]:
        return lanes.shared(tmp_path / "release.lock", lambda: done.append("made"), lambda: done.append("removed"))

    with share():
        with share():
            assert done == ["made"]
        assert done == ["made"]
    assert done == ["made", "removed"]
