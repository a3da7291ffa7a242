"""How the values of options are written: each function is a ``type`` of argparse, and raises ArgumentTypeError."""

from __future__ import annotations

import argparse
from pathlib import Path

from finetune_client.home import at_home

LAST_PORT = 65535


def claim(text: str) -> tuple[str, Path]:
    """``NAME=DIR``."""
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, at_home(folder)


def count(text: str) -> int:
    """A number that is not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def number(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return value


def port(text: str) -> int:
    """A port of this machine."""
    number = count(text)
    if number > LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: the last one is {LAST_PORT}")
    return number


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    """A time as 90, 90s, 30m, 2h or 1d."""
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1)
    try:
        value = float(number) * unit
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no time, as 90s, 30m or 2h")
    return value
