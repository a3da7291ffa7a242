"""``finetune validate``: what the API server would say to ``kubectl create --validate=strict``, without one.

The verdict is that of the CRD: its schema, its rules, and what Kubernetes asks of any object. What the operator would
say about an object that the API server takes is a warning.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from finetune_client.files import expand
from finetune_client.manifest import Document, is_stream, read_documents
from finetune_client.submission import is_bare
from finetune_operator.api.cel import check_rules
from finetune_operator.api.checks import malformed_keys
from finetune_operator.api.metadata import metadata_violations, name_and_source
from finetune_operator.api.schema import (
    Finding,
    Path,
    crd_schema,
    describe,
    json_number,
    unknown_fields,
    violations,
    without_nulls,
)
from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.constants import API_VERSION, GROUP, KIND
from finetune_trainer.config.notes import config_notes
from finetune_trainer.errors import ConfigError

_OWN = ("apiVersion", "kind", "metadata", "status")
"""What is not checked by the CRD's schema: Kubernetes' own, and a status, which the API server drops on creation."""


def run(options: argparse.Namespace) -> int:
    """Check files; print what is wrong on stderr and what is valid on stdout; give the exit code, 2 for anything wrong."""
    codes = []
    for given in options.filename:
        try:
            codes += [_check_file(name) for name in expand([given], recursive=options.recursive)]
        except ConfigError as error:
            sys.stderr.write(f"{error}\n")
            codes.append(2)
    return max(codes)


def check_object(raw: Mapping[str, Any]) -> list[Finding]:
    """What is wrong with an object, given as JSON would give it; empty if the API server would create it."""
    return list(_wrong_kind(raw)) or _check_parts(raw)


def _check_parts(raw: Mapping[str, Any]) -> list[Finding]:
    metadata = raw.get("metadata")
    parts = {name: value for name, value in raw.items() if name not in _OWN}
    found = [
        *_no_numbers(raw),
        *metadata_violations(metadata),
        *violations(crd_schema(), parts),
        *unknown_fields(crd_schema()["properties"]["status"], raw.get("status"), ("status",)),
    ]
    name, source = name_and_source(metadata)
    rules = check_rules(crd_schema(), parts | ({"metadata": {"name": name}} if name else {}))
    broken = [_at_source(finding, source) for finding in rules.broken]
    known = {finding.path for finding in found}
    found += [finding for finding in broken if finding.path not in known]
    return found or list(rules.undecided)


def _at_source(finding: Finding, source: str) -> Finding:
    """A rule speaks of the name; it may come from generateName."""
    return Finding(("metadata", source), finding.message) if finding.path == ("metadata", "name") else finding


def _wrong_kind(raw: Mapping[str, Any]) -> Iterator[Finding]:
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if key not in raw:
            yield Finding((key,), f"required, but missing: {wanted}")
        elif raw[key] != wanted:
            yield Finding((key,), f"must be {wanted}, not {describe(raw[key])}")


def _no_numbers(raw: Mapping[str, Any]) -> Iterator[Finding]:
    """NaN, infinity, and what is beyond all floats: YAML and Python can hold it, JSON cannot."""
    stack: list[tuple[Path, Any]] = [((), raw)]
    for path, value in stack:
        if isinstance(value, dict):
            stack += [((*path, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            stack += [((*path, index), item) for index, item in enumerate(value)]
        elif isinstance(value, int | float) and not math.isfinite(json_number(value)):
            yield Finding(path, "NaN, infinity and numbers of such size are no JSON")


def notes(raw: Mapping[str, Any]) -> list[Finding]:
    """What is worth knowing of an object that the API server takes: keys without effect, and what the operator refuses."""
    spec = without_nulls(crd_schema()["properties"]["spec"], raw["spec"])
    metadata = {"name": name_and_source(raw["metadata"])[0], "namespace": "default", "uid": "none"}
    try:
        job = FinetuneJob.model_validate({"metadata": metadata, "spec": spec})
    except ValidationError as error:
        return [Finding(item["loc"], _REFUSED.format(item["msg"].removeprefix("Value error, "))) for item in error.errors()]
    malformed = (_split(line, ("spec",)) for line in malformed_keys(job))
    found = [_split(line, ("spec", "config")) for line in config_notes(job.spec.config)]
    return [*found, *(Finding(finding.path, _REFUSED.format(finding.message)) for finding in malformed)]


_REFUSED = "the API server takes it, but the operator will refuse the job: {}"


def _split(line: str, path: Path) -> Finding:
    """A finding from a line that begins with the dotted name of a key below the path."""
    key, _, message = line.partition(": ")
    return Finding((*path, *key.split(".")), message)


def _check_file(name: str) -> int:
    try:
        documents = read_documents(name)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if len(documents) == 1 and is_bare(documents[0].value) and not is_stream(name):
        return _check_config(name)
    codes = [code for document in documents for code in _check_document(document)]
    if not codes:
        sys.stderr.write(f"{name}: there is no {KIND} in it\n")
    return max(codes, default=2)


def _check_config(name: str) -> int:
    """The exit code of a finetuning YAML of llm-on-ray: it is valid if the trainer takes it, and a job can be made of it."""
    from finetune_client.convert import convert, options_of

    try:
        made = convert(options_of(name))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stderr.writelines(f"{note}\n" for note in made.notes)
    sys.stdout.write(f"{name}: the finetuning YAML is valid; `finetune convert -f {name}` makes a {KIND} of it\n")
    return 0


def _check_document(document: Document) -> Iterator[int]:
    """The exit code of each FinetuneJob, or of the document if its text is wrong; objects of other kinds are named."""
    findings, warnings, valid = [], [], []
    for path, raw in objects(document.value):
        if not is_job(raw):
            sys.stderr.write(f"{document.file}:{document.line(path)}: {_call(raw)}: skipped, it is no {KIND}\n")
        elif found := check_object(raw) if isinstance(raw, dict) else [Finding((), f"must be a mapping, not {describe(raw)}")]:
            findings += [Finding((*path, *finding.path), finding.message) for finding in found]
        else:
            warnings += [Finding((*path, *note.path), note.message) for note in notes(raw)]
            valid.append(f"{document.file}: {_call(raw)} is valid\n")
    sys.stderr.writelines(f"{line}\n" for line in document.errors(findings))
    for note in warnings:
        sys.stderr.write(f"{document.file}:{document.line(note.path)}: warning: {note}\n")
    wrong = document.problems or findings
    sys.stdout.writelines(() if document.problems else valid)
    yield from [2] if wrong else [0 for _ in valid]


def objects(value: Any) -> Iterator[tuple[Path, Any]]:
    """The objects of a document: itself, or the items of a list as ``kubectl get -o yaml`` prints it."""
    if isinstance(value, dict) and value.get("kind") in {"List", f"{KIND}List"} and isinstance(value.get("items"), list):
        yield from ((("items", index), item) for index, item in enumerate(value["items"]))
    elif value is not None:
        yield (), value


def is_job(raw: Any) -> bool:
    """Whether an object is meant to be a FinetuneJob; what does not say what it is, is."""
    if not isinstance(raw, dict) or not isinstance(raw.get("kind"), str):
        return True
    return raw["kind"] == KIND or str(raw.get("apiVersion")).startswith(f"{GROUP}/")


def _call(raw: Mapping[str, Any]) -> str:
    """Kind and name, as kubectl writes them."""
    metadata = raw.get("metadata")
    names = metadata if isinstance(metadata, dict) else {}
    return f"{raw['kind'].lower()} {names.get('name') or names.get('generateName') or ''}".rstrip()
