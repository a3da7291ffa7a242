"""What the models of spec and status have in common: frozen, camelCase, every string with a maximum."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, PlainSerializer, StringConstraints, WithJsonSchema
from pydantic.alias_generators import to_camel

from finetune_operator.constants import MESSAGE_LIMIT

Rules = list[JsonValue]
"""CEL rules of a schema: ``x-kubernetes-validations``."""


def _rfc3339(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str, when_used="always")]
"""A time in UTC with seconds, as Kubernetes writes it."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Quantity = Annotated[
    str,
    StringConstraints(min_length=1, max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"),
]


def _inside(path: str) -> str:
    if {".", ".."} & set(path.split("/")):
        raise ValueError("must stay inside the volume: no '.' or '..'")
    return path


SubPath = Annotated[
    str,
    AfterValidator(_inside),
    StringConstraints(max_length=256, pattern=r"^([A-Za-z0-9_.][A-Za-z0-9_.-]*(/[A-Za-z0-9_.][A-Za-z0-9_.-]*)*)?$"),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": 256,
            "pattern": r"^([A-Za-z0-9_.][A-Za-z0-9_.-]*(/[A-Za-z0-9_.][A-Za-z0-9_.-]*)*)?$",
            "x-kubernetes-validations": [
                {
                    "rule": "!self.split('/').exists(s, s == '..' || s == '.')",
                    "message": "must stay inside the volume: no '.' or '..'",
                }
            ],
        }
    ),
]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")]
ImagePullPolicy = Literal["Always", "IfNotPresent", "Never"]
LabelMap = Annotated[dict[str, LabelValue], Field(max_length=64)]


Text = Annotated[str, StringConstraints(max_length=MESSAGE_LIMIT)]
ShortText = Annotated[str, StringConstraints(max_length=512)]


class Model(BaseModel):
    """A frozen part of the resource, with camelCase keys."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", use_attribute_docstrings=True
    )


class LocalReference(Model):
    """An object of the job's namespace."""

    name: Name
    """Its name."""


def dump(model: BaseModel) -> dict[str, Any]:
    """A model as the JSON object that the API server takes, without nulls."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)
