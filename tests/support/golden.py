"""Golden files: what a builder makes, as YAML in the repository. ``UPDATE_GOLDEN=1`` writes them anew."""

from __future__ import annotations

import io
import os
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString
from tests.support.builders import DATA, load_yaml

GOLDEN = DATA / "golden"


def assert_golden(job: str, part: str, value: Any) -> None:
    """Compare as parsed objects: order of keys and style of YAML do not matter. None: there is no such file."""
    path = GOLDEN / job / f"{part}.yaml"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        _write(path, value)
    if value is None:
        assert not path.exists(), f"{path} describes an object that is not made"
        return
    assert path.exists(), f"{path} is missing; run again with UPDATE_GOLDEN=1 and read what it writes"
    assert value == load_yaml(path), f"differs from {path}; UPDATE_GOLDEN=1 rewrites it"


def _write(path: Any, value: Any) -> None:
    path.unlink(missing_ok=True)
    if value is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    yaml = YAML()
    yaml.width = 120
    yaml.representer.ignore_aliases = lambda _data: True
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    yaml.dump(_readable(value), stream)
    path.write_text(stream.getvalue(), encoding="utf-8")


def _readable(value: Any) -> Any:
    """Texts of several lines as blocks."""
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return LiteralScalarString(value) if isinstance(value, str) and "\n" in value else value
