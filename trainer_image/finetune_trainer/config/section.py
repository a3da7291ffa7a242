"""What all sections of the configuration have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, WithJsonSchema

_NO = ("no", "No", "NO", "false", "False")


def lower(value: Any) -> Any:
    """Text in lower case; any other value as it is."""
    return value.lower() if isinstance(value, str) else value


def yaml_no(value: Any) -> Any:
    """Treat a bare `no` as text, even if a YAML 1.1 parser has read it as False."""
    return "no" if value is False or value in _NO else lower(value)


def choice(*values: Any, type_: str | None = "string") -> WithJsonSchema:
    """The schema of a key that takes one of some values; with type_ None they are of several types."""
    schema: dict[str, Any] = {"enum": list(values)}
    if type_ is None:
        schema["x-kubernetes-preserve-unknown-fields"] = True
    else:
        schema["type"] = type_
    return WithJsonSchema(schema)


def cel(rule: str, message: str, max_length: int = 32) -> WithJsonSchema:
    """The schema of a text that the API server checks by a rule in CEL."""
    validation = {"rule": rule, "message": message}
    return WithJsonSchema({"type": "string", "maxLength": max_length, "x-kubernetes-validations": [validation]})


class Section(BaseModel):
    """A section of the YAML. It ignores unknown keys: `unknown_keys` reports all of them together."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, use_attribute_docstrings=True)
