"""Takes from an interpreter what Linux on x86-64 has and macOS on Apple silicon, or another system, has not.

Python imports it at its start if its folder is on PYTHONPATH, in the processes that the command starts too.
"""

import errno
import os
import platform
import sys

del os.sched_getaffinity, os.sched_setaffinity
sys.modules["resource"] = None  # type: ignore[assignment]  # an import of it fails
platform.machine = lambda: "arm64"


def hide(event, arguments):
    if event in {"open", "os.listdir", "os.scandir"} and str(arguments[0]).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(errno.ENOENT, "this system has no such file", str(arguments[0]))


sys.addaudithook(hide)
