"""Takes from an interpreter what Linux on x86-64 has and macOS on Apple silicon, or another system, has not.

Python imports it at its start if its folder is on PYTHONPATH, in the processes that the command starts too.
"""

import builtins
import errno
import os
import platform
import sys

import_module = builtins.__import__


def import_but_resource(name, *arguments, **options):
    """The import statement. psutil, built for Linux, may still import `resource`; the project's own modules may not."""
    if name == "resource" and arguments and str((arguments[0] or {}).get("__name__")).startswith("finetune_"):
        raise ModuleNotFoundError("No module named 'resource'", name=name)
    return import_module(name, *arguments, **options)


def hide_files(event, arguments):
    """An audit hook: there is neither /proc nor /sys."""
    if event in {"open", "os.listdir", "os.scandir"} and str(arguments[0]).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(errno.ENOENT, "this system has no such file", str(arguments[0]))


del os.sched_getaffinity, os.sched_setaffinity
platform.machine = lambda: "arm64"
builtins.__import__ = import_but_resource
sys.addaudithook(hide_files)
