"""What scalars of YAML mean to kubectl: go-yaml 2 reads them by YAML 1.1, then they become JSON."""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from finetune_operator.api.schema import INT64


class Unreadable(Exception):  # noqa: N818 - becomes a problem of the document
    """Something that is no YAML, or means nothing in JSON; the line counts from 0."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass(eq=False)
class Node:
    """A value, before it is known what it is."""

    line: int
    tag: str = ""
    plain: bool = True
    text: str = ""
    items: list[Node] | None = None
    pairs: list[tuple[Node, Node]] | None = None
    alias: Node | None = None


MOST_DIGITS = 4000
"""Python reads no longer number in decimal digits; none of 64 bits is that long."""

_TAG = "tag:yaml.org,2002:"
MERGE_TAG = f"{_TAG}merge"
_TRUE = ("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON")
_FALSE = ("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(_TRUE, True),
    **dict.fromkeys(_FALSE, False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_INTEGER = re.compile(r"([-+]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

_KINDS: dict[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "null": lambda value: value is None,
    "timestamp": lambda value: (
        isinstance(value, str) and re.match(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ]|\Z)", value) is not None
    ),
}
"""Tags that a scalar must live up to; under all others it is text."""


def scalar(node: Node) -> Any:
    """What a scalar is to go-yaml."""
    kind = node.tag.removeprefix(_TAG)
    if kind == "binary":
        try:
            return base64.b64decode(re.sub(r"[\r\n]", "", node.text), validate=True).decode(errors="replace")
        except ValueError:
            raise Unreadable(node.line, "!!binary takes base64") from None
    if kind not in _KINDS:
        return node.text if kind or not node.plain else _plain(node.text)
    value = _plain(node.text)
    if not _KINDS[kind](value):
        raise Unreadable(node.line, f"{node.text!r} is no {kind}")
    return value


def _plain(text: str) -> Any:
    """What a scalar without quotes and tag is: a word or a number that YAML 1.1 knows, or text."""
    if text in _WORDS:
        return _WORDS[text]
    digits = text if text.startswith(".") else text.replace("_", "")
    if text[0] not in "+-.0123456789":
        return text
    if len(digits) < MOST_DIGITS and (found := _INTEGER.fullmatch(digits)):
        base = 0 if found[2][1:2].isalpha() else 8 if found[2].startswith("0") else 10
        number = int(found[2], base) * (-1 if found[1] == "-" else 1)
        if number in INT64 or (not found[1] and number < 2**64):
            return number
    if _FLOAT.fullmatch(digits) and math.isfinite(real := float(digits)):
        return real
    return text


def json_number(value: Any) -> Any:
    """Go writes 5.0 into JSON as 5."""
    return int(value) if isinstance(value, float) and abs(value) < 2**63 and value.is_integer() else value


def mapping_key(node: Node) -> str:
    """The key of a JSON object that a YAML key becomes."""
    if node.items is not None or node.pairs is not None:
        raise Unreadable(node.line, "a key must be text, not a list or a mapping")
    match scalar(node):
        case str(text):
            return text
        case bool(truth):
            return str(truth).lower()
        case int(number) if number in INT64:
            return str(number)
        case float(real):
            return _float_key(real)
        case _:
            raise Unreadable(node.line, f"{node.text or 'null'} cannot be a key; put it into quotes")


def _float_key(value: float) -> str:
    """Go's FormatFloat(value, 'g', -1, 32): the shortest text that means the same float of 32 bits."""
    target = _single(value)
    if not math.isfinite(target):
        return ".nan" if math.isnan(target) else ".inf" if target > 0 else "-.inf"
    text = next(text for digits in range(9) if _single(float(text := f"{value:.{digits}e}")) == target)
    return text if not -4 <= int(text.partition("e")[2]) < 6 else format(Decimal(text), "f")


def _single(value: float) -> float:
    try:
        single: float = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return single
