"""Reads manifests as kubectl does, and keeps the line of every value.

kubectl splits a file at lines that begin with ``---``, reads each document by YAML 1.1 as go-yaml 2 understands it (``no``
is false, ``010`` is 8, ``1e-5`` is a number), and sends what comes of it as JSON. ruamel.yaml parses; what a scalar is,
what a merge does, and which keys there are, is decided here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path as File
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, DocumentEndEvent, MappingStartEvent, ScalarEvent, SequenceStartEvent
from ruamel.yaml.scanner import Scanner

from finetune_client.scalars import MERGE_TAG, Node, Unreadable, json_number, mapping_key, scalar
from finetune_operator.api.schema import Finding, Path
from finetune_trainer.errors import ConfigError

STANDARD_INPUT = "-"
MAX_DEPTH = 200
"""Lists and mappings within each other; where Python's own limit is, differs between its versions."""


@dataclass(frozen=True)
class Document:
    """One document of a file."""

    file: str
    value: Any
    """What kubectl makes JSON of; None if it cannot be read."""
    lines: Mapping[Path, int]
    problems: tuple[tuple[int, str], ...]
    """What is wrong with the text itself: line and sentence."""

    def line(self, path: Path) -> int:
        """The line of a value, or of the nearest one around it that is there."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def errors(self, findings: Iterable[Finding] = ()) -> list[str]:
        """Problems and findings, each with file and line, in the order of the lines."""
        found = [*self.problems, *((self.line(finding.path), str(finding)) for finding in findings)]
        return [f"{self.file}:{line}: {message}" for line, message in sorted(found, key=itemgetter(0))]


def read_documents(name: str) -> list[Document]:
    """Read a file, or standard input for ``-``; documents that are empty or null are left out.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    file = "<stdin>" if name == STANDARD_INPUT else name
    documents = (_read_document(file, chunk) for chunk in _chunks(_read(name, file)))
    return [document for document in documents if document.value is not None or document.problems]


def is_stream(name: str) -> bool:
    """Whether a name can be read once only: standard input, a pipe, what a shell makes of ``<(…)``."""
    return name == STANDARD_INPUT or not File(name).is_file()


def parse_value(text: str, where: str) -> Any:
    """A value as it would stand in a manifest.

    Raises:
        ConfigError: it is no YAML.
    """
    document = _read_document(where, _Chunk(0, f"{text}\n"))
    if document.problems:
        raise ConfigError([f"{where}: {message}" for _, message in document.problems])
    return document.value


def _read(name: str, file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == STANDARD_INPUT else File(name).read_bytes()
    except OSError as error:
        raise ConfigError([f"{file}: cannot read the manifest: {error.strerror}"]) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{file}:{line}: the file is not UTF-8 text"]) from None


@dataclass(frozen=True)
class _Chunk:
    """The text of one document, and how many lines are before it."""

    offset: int
    text: str
    from_json: bool = False
    problem: str = ""


def _chunks(text: str) -> Iterator[_Chunk]:
    """A stream of JSON objects; or, from where it is none on, YAML, unless there were several objects already."""
    decoder, start, count = json.JSONDecoder(parse_constant=_refuse), 0, 0
    rest = text
    while rest.lstrip() and text.lstrip().startswith("{"):
        begin = len(text) - len(rest.lstrip())
        try:
            start = decoder.raw_decode(text, begin)[1]
        except (ValueError, RecursionError) as error:
            if count > 1:
                yield _Chunk(text.count("\n", 0, begin), "", problem=f"this is no JSON: {error}")
                return
            break
        yield _Chunk(text.count("\n", 0, begin), text[begin:start], from_json=True)
        rest, count = text[start:], count + 1
    lines = rest.removesuffix("\n").split("\n")
    marks = [number for number, line in enumerate(lines) if line.startswith("---")]
    for first, end in zip([0, *marks], [*marks, len(lines)], strict=True):
        yield _Chunk(text.count("\n", 0, start) + first, "\n".join([*lines[first:end], ""]).removeprefix("\ufeff"))


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _read_document(file: str, chunk: _Chunk) -> Document:
    reader = _Reader(from_json=chunk.from_json)
    value = None
    try:
        value = reader.read(_escape(chunk.text) if chunk.from_json else chunk.text)
    except Unreadable as error:
        reader.problems[error.line, error.message] = None
    problems = [*reader.problems, *([(0, chunk.problem)] if chunk.problem else [])]
    first = chunk.offset + 1
    lines = {(): first} | {path: line + first for path, line in reader.lines.items()}
    return Document(file, value, lines, tuple((line + first, message) for line, message in problems))


def _escape(text: str) -> str:
    """JSON as YAML takes it: tabs are spaces, and characters that only JSON allows in a text are escaped."""
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text.replace("\t", " "))


class _TabScanner(Scanner):
    """Takes tabs where kubectl's parser does: wherever no key may begin."""

    def scan_to_next_token(self) -> None:
        """Go over blanks, comments and line breaks."""
        peek, forward = self.reader.peek, self.reader.forward
        while True:
            while peek() == " " or (peek() == "\t" and (self.flow_level or not self.allow_simple_key)):
                forward()
            if peek() == "#":
                while peek() not in "\0\r\n\x85\u2028\u2029":
                    forward()
            if not self.scan_line_break():
                return
            self.allow_simple_key = self.allow_simple_key or not self.flow_level

    def scan_plain_spaces(self, indent: Any, start_mark: Any) -> Any:
        """Take the blanks after a word of a plain scalar; those that are part of it are given back."""
        length = 0
        while self.reader.peek(length) in " \t":
            length += 1
        blanks = self.reader.prefix(length)
        if "\t" not in blanks:
            return super().scan_plain_spaces(indent, start_mark)
        self.reader.forward(length)
        if self.reader.peek() in "\r\n\x85\u2028\u2029":
            return super().scan_plain_spaces(indent, start_mark)
        return [blanks]


class _Reader:
    """Reads the first document of a text; kubectl looks no further either."""

    def __init__(self, *, from_json: bool) -> None:
        self.lines: dict[Path, int] = {}
        self.problems: dict[tuple[int, str], None] = {}
        self._from_json = from_json
        self._anchors: dict[str, Node] = {}
        self._open: list[Node] = []
        self._counts = [0, 0]

    def read(self, text: str) -> Any:
        """The document's value.

        Raises:
            Unreadable: it is not YAML, or means nothing in JSON.
        """
        if not text.strip():
            return None
        if re.match(r"---(?!\s*(#|\n|\Z))", text):
            raise Unreadable(0, "nothing but a comment may follow --- in its line")
        yaml = YAML(typ="safe", pure=True)
        yaml.version = "1.1"
        yaml.Scanner = _TabScanner
        try:
            events = yaml.parse(text)
            node = next((self._compose(event, events) for event in events if _begins(event)), None)
            next((event for event in events if isinstance(event, DocumentEndEvent)), None)
            return None if node is None else self._construct(node, (), aliased=False)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = str(error.problem or error.context).splitlines()[0]
            raise Unreadable(min(mark.line, text.rstrip().count("\n")) if mark else 0, problem) from None
        except YAMLError as error:
            position = getattr(error, "position", 0)
            raise Unreadable(text.count("\n", 0, position), "a character that YAML does not allow") from None
        except RecursionError:
            raise Unreadable(0, "nested too deeply") from None

    def _compose(self, event: Any, events: Iterator[Any], depth: int = 0) -> Node:
        node = Node(event.start_mark.line)
        if depth > MAX_DEPTH:
            raise Unreadable(node.line, "nested too deeply")
        if isinstance(event, AliasEvent):
            node.alias = self._anchors.get(event.anchor)
            if node.alias is None:
                raise Unreadable(node.line, f"there is no anchor &{event.anchor} before *{event.anchor}")
            return node
        if event.anchor:
            self._anchors[event.anchor] = node
        if isinstance(event, ScalarEvent):
            node.tag = str(event.tag or "")
            node.plain, node.text = event.implicit[0], self._text(node, event.value)
        elif isinstance(event, SequenceStartEvent):
            node.items = [self._compose(inner, events, depth + 1) for inner in _until_end(events)]
        else:
            compose = partial(self._compose, events=events, depth=depth + 1)
            node.pairs = [(compose(inner), compose(next(events))) for inner in _until_end(events)]
        return node

    def _text(self, node: Node, text: str) -> str:
        r"""A text without halves of characters: JSON writes others than those of 16 bits as two escapes, YAML may not."""
        if not re.search("[\ud800-\udfff]", text):
            return text
        if not self._from_json:
            raise Unreadable(node.line, r"\ud800 to \udfff are no characters; write \U0001F600 for 😀")
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def _construct(self, node: Node, path: Path, *, aliased: bool) -> Any:
        self._count(node, aliased=aliased)
        line = self.lines[path] = node.line
        if node.alias is not None:
            node, aliased = node.alias, True
        if node.items is None and node.pairs is None:
            return json_number(scalar(node))
        if node in self._open:
            raise Unreadable(line, "an anchor's value contains itself")
        self._open.append(node)
        if node.pairs is not None:
            value: Any = {}
            self._fill(value, node, path, aliased=aliased)
        else:
            value = [self._construct(item, (*path, index), aliased=aliased) for index, item in enumerate(node.items or ())]
        self._open.remove(node)
        return value

    def _count(self, node: Node, *, aliased: bool) -> None:
        """Stop where kubectl does: when nearly everything comes from aliases, and there is no end of it."""
        self._counts[0] += 1
        self._counts[1] += aliased
        total, copies = self._counts
        if copies > 100 and total > 1000 and copies / total > (0.99 if total <= 400_000 else 0.1):
            raise Unreadable(node.line, "too many aliases")

    def _fill(self, value: dict[str, Any], node: Node, path: Path, *, aliased: bool) -> None:
        own = set()
        for key_node, item_node in node.pairs or ():
            if key_node.text == "<<" and (key_node.plain or key_node.tag == MERGE_TAG):
                self._merge(value, item_node, path)
                continue
            key = mapping_key(key_node.alias or key_node)
            if key in own:
                self.problems[key_node.line, f"the key {key!r} occurs twice"] = None
            own.add(key)
            value[key] = self._construct(item_node, (*path, key), aliased=aliased)
            self.lines[*path, key] = key_node.line

    def _merge(self, value: dict[str, Any], source: Node, path: Path) -> None:
        """Take in other mappings' entries; they win over what is written above the merge, as with kubectl."""
        sources = reversed(source.items) if source.items is not None else [source]
        for node in sources:
            target = node.alias or node
            if target.pairs is None or target in self._open:
                raise Unreadable(node.line, "<< takes a mapping, or a list of mappings")
            self._count(node, aliased=node.alias is not None)
            self._open.append(target)
            self._fill(value, target, path, aliased=node.alias is not None)
            self._open.remove(target)


def _begins(event: Any) -> bool:
    return isinstance(event, ScalarEvent | AliasEvent | SequenceStartEvent | MappingStartEvent)


def _until_end(events: Iterator[Any]) -> Iterator[Any]:
    for event in events:
        if not _begins(event):
            return
        yield event
