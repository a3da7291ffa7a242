"""The job that ``finetune retry`` makes: its name, and what it takes over from the earlier one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetune_operator.constants import API_VERSION, KIND, MAX_JOB_NAME

Object = dict[str, Any]

_TOOLS = (
    "kubectl.kubernetes.io",
    "argocd.argoproj.io",
    "meta.helm.sh",
    "helm.sh",
    "fluxcd.io",
    "config.k8s.io",
    "cli-utils.sigs.k8s.io",
)
"""Domains whose labels and annotations say which tool keeps an object: a tool would delete the copy, or overwrite it."""
_TOOL_LABELS = frozenset({"app.kubernetes.io/instance", "app.kubernetes.io/managed-by"})
"""By the first Argo CD tells the objects of an application, by the second Helm its own."""


def stem_and_number(name: str, source: str | None) -> tuple[str, int]:
    """Of which name, and with which number, the next retry of a job is made.

    NAME-r1 is followed by NAME-r2 if it is itself a retry, which its source shows; a job may be called lora-r8, too.
    """
    found = re.fullmatch(r"(.+)-r([1-9][0-9]*)", name)
    if found is None or source is None:
        return name, 1
    stem = found[1]
    cut_off = source.startswith(stem) and len(source) + len(name) - len(stem) > MAX_JOB_NAME
    if source == stem or re.fullmatch(rf"{re.escape(stem)}-r[1-9][0-9]*", source) or cut_off:
        return stem, int(found[2]) + 1
    return name, 1


def retry_name(stem: str, number: int) -> str:
    """NAME-rN, held to the length that a job's name may have."""
    ending = f"-r{number}"
    return stem[: MAX_JOB_NAME - len(ending)].rstrip("-") + ending


def build_retry(old: Mapping[str, Any], name: str) -> Object:
    """The job that continues an earlier one: its spec, and its labels and annotations except those of tools."""
    given = old["metadata"]
    metadata = {"name": name, "namespace": given["namespace"]}
    for field in ("labels", "annotations"):
        if kept := {key: value for key, value in (given.get(field) or {}).items() if not _is_of_a_tool(key)}:
            metadata[field] = kept
    spec = {key: value for key, value in old["spec"].items() if key not in {"suspend", "cancel"}}
    spec["resumeFrom"] = given["name"]
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def _is_of_a_tool(key: str) -> bool:
    domain = key.partition("/")[0]
    return key in _TOOL_LABELS or any(domain == tool or domain.endswith(f".{tool}") for tool in _TOOLS)
