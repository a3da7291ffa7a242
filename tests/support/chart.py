"""The Helm chart as tests read it: what it grants, and what it renders."""

from __future__ import annotations

import copy
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "finetune-operator"

Right = tuple[str, str, str]
"""(API group, resource with subresource, verb)."""


def namespace_rules() -> list[dict[str, Any]]:
    """RBAC rules that hold in each watched namespace."""
    text = (CHART / "templates" / "_helpers.tpl").read_text(encoding="utf-8")
    match = re.search(r'define "finetune-operator.rules" -}}\n(.*?){{- end }}', text, re.DOTALL)
    assert match is not None
    return list(YAML(typ="safe", pure=True).load(match[1]))


def rights(rules: list[dict[str, Any]]) -> Iterator[Right]:
    """Rules one by one."""
    for rule in rules:
        for group in rule["apiGroups"]:
            yield from ((group, resource, verb) for resource in rule["resources"] for verb in rule["verbs"])


def request_right(method: str, path: str) -> Right:
    """The right that the API server asks for."""
    match = re.match(r"^/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/[^/]+)?/(?P<rest>.+)$", path)
    assert match is not None
    plural, *others = match["rest"].split("/")
    resource = "/".join([plural, *others[1:]])
    verb = {"GET": "get" if others else "list", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]
    return match["group"] or "", resource, verb


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm; without it the test is skipped, but never in CI."""
    program = shutil.which("helm", path=os.pathsep.join([os.environ["PATH"], str(Path.home() / ".cache/finetune-cluster/bin")]))
    if program is None:
        assert os.environ.get("CI") != "true", "helm is missing in CI"
        pytest.skip("helm is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=30)


def render(*options: str) -> list[dict[str, Any]]:
    """What `helm template` makes of the chart."""
    return copy.deepcopy(_rendered(options))


@functools.cache
def _rendered(options: tuple[str, ...]) -> list[dict[str, Any]]:
    done = helm("template", "fto", str(CHART), "--namespace", "finetune-system", "--kube-version", "1.36.0", *options)
    assert done.returncode == 0, done.stderr
    return [document for document in YAML(typ="safe", pure=True).load_all(done.stdout) if document]
