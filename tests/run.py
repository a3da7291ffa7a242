"""All tests, as parts that run beside each other: ``make test``.

    python -m tests.run [PART…]

Each part writes build/tests/<part>.log. A line now and then tells how far each is, and when one has failed the end of its
log is shown. At the end: how long each folder and the slowest tests took (build/tests/durations.md).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import durations, tally

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "tests"
CLUSTER = ROOT / "tests" / "cluster" / "cluster"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.tally", "-m", "not benchmark"]
BESIDE = ["-n", "2", "--dist", "loadfile"]
"""Options of pytest-xdist: two workers, and the tests of a file on one of them."""
CHART = "tests/packaging/test_chart.py"
"""Needs helm, which is made with the cluster's programs."""
EVERY_SECONDS = 30 if not sys.stdout.isatty() else 2
LOG_LINES = 80


@dataclass
class Part:
    """Commands that run one after the other, beside those of other parts."""

    name: str
    commands: list[list[str]]
    after: tuple[str, ...] = ()
    """Parts whose success it needs."""
    niceness: int = 0
    folder: Path = LOGS
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    ended: float = 0.0
    code: int | None = None
    _left: list[list[str]] = field(default_factory=list)
    _named: set[str] = field(default_factory=set)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        """Begin with the first command."""
        self.began, self._left = time.monotonic(), list(self.commands)
        self.log.write_bytes(b"")
        self._next()

    def _next(self) -> None:
        command = self._left.pop(0)
        results = self.folder / f"{self.name}-{len(self._left)}"
        if "pytest" in command:
            command = [*command, f"--junit-xml={results}.xml"]
        environment = os.environ | {tally.VARIABLE: f"{results}.tally"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["nice", "-n", str(self.niceness), *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def poll(self) -> None:
        """Go on to the next command, or note the end."""
        if self.process is None or self.code is not None or (code := self.process.poll()) is None:
            return
        if code == 0 and self._left:
            self._next()
            return
        self.code, self.ended = code, time.monotonic()

    def refuse(self) -> None:
        """A part that this one needs has failed."""
        self.began = self.ended = time.monotonic()
        self.code = 1
        self.log.write_text(f"not run: it needs {' and '.join(self.after)}\n")

    def tells(self) -> str:
        """How far it is, in a few words."""
        if self.process is None and self.code is None:
            return f"{self.name} waits for {' and '.join(self.after)}"
        seconds = (self.ended or time.monotonic()) - self.began
        how = {None: "", 0: " passed"}.get(self.code, " FAILED")
        return " ".join(filter(None, (self.name + how, tally.read(self.folder, self.name)[0], f"{seconds:.0f} s")))

    def new_failures(self) -> list[str]:
        """Tests that have failed since this was last asked."""
        found = [test for test in tally.read(self.folder, self.name)[1] if test not in self._named]
        self._named.update(found)
        return found


def parts() -> list[Part]:
    """What there is to run on this machine."""
    why_not = subprocess.run([CLUSTER, "why-not"], capture_output=True, text=True, check=False).stdout.strip()
    local = [
        *PYTEST,
        *BESIDE,
        "--no-loadscope-reorder",
        *(f"tests/{name}" for name in ("unit", "packaging", "system", "trainer")),
    ]
    found = [Part("lint", [["make", "--no-print-directory", "lint"]]), Part("site", [[*PYTEST, "tests/site"]])]
    if why_not and not os.environ.get("CI"):
        print(why_not, flush=True)
        return [*found, Part("local", [local])]
    found.append(Part("local", [[*local, f"--ignore={CHART}"]]))
    cluster = [[*PYTEST, "tests/api", CHART], [*PYTEST, *BESIDE, "tests/e2e"]]
    return [*found, Part("build", [[str(CLUSTER), "prepare"]], niceness=2), Part("cluster", cluster, after=("build",))]


def main(names: list[str]) -> int:
    """Run the parts with these names, or all of them; 0 if all have passed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    for old in LOGS.iterdir():
        old.unlink()
    passed = run([part for part in parts() if not names or part.name in names])
    print(durations.report(LOGS), flush=True)
    return 0 if passed else 1


def run(parts: list[Part]) -> bool:
    """Run parts side by side, each after those that it needs; whether all have passed."""
    chosen = {part.name: part for part in parts}
    began = told = time.monotonic()
    while any(part.code is None for part in chosen.values()):
        for part in chosen.values():
            advance(part, chosen)
        if time.monotonic() - told >= EVERY_SECONDS:
            told = time.monotonic()
            tell(began, chosen)
        wait(chosen)
    tell(began, chosen)
    return all(part.code == 0 for part in parts)


def wait(chosen: dict[str, Part]) -> None:
    """Wait for the end of a command, for a fifth of a second at most."""
    running = next((part.process for part in chosen.values() if part.process and part.code is None), None)
    if running is not None:
        with suppress(subprocess.TimeoutExpired):
            running.wait(timeout=0.2)


def advance(part: Part, chosen: dict[str, Part]) -> None:
    """Start a part whose turn it is, and look after one that runs."""
    if part.code is not None:
        return
    needed = [chosen[name].code for name in part.after if name in chosen]
    if part.process is None and any(needed):
        part.refuse()
    elif part.process is None and all(code == 0 for code in needed):
        part.start()
    else:
        part.poll()
    if part.code:
        print(f"\n{part.name} FAILED; the end of {part.log}:", flush=True)
        print(*part.log.read_text(errors="replace").splitlines()[-LOG_LINES:], sep="\n", flush=True)


def tell(began: float, chosen: dict[str, Part]) -> None:
    """One line: seconds so far, parts that have ended of all parts, and how far each is; before it, the tests that failed."""
    for test in (test for part in chosen.values() for test in part.new_failures()):
        print(f"{test} failed", flush=True)
    ended = sum(part.code is not None for part in chosen.values())
    line = f"[{time.monotonic() - began:5.0f} s, {ended}/{len(chosen)}] " + " | ".join(part.tells() for part in chosen.values())
    print(f"\r\x1b[K{line}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
