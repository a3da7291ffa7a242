"""Where pods may go: Kubernetes' Affinity, typed, so that a misspelt key is refused with the job and not with its pods.

Names and meaning are those of the core API (v1.Affinity), without its looks into other namespaces; every list has a
maximum, which Kubernetes does not set.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_operator.api.base import LabelMap, Model, Rules

Key = Annotated[str, StringConstraints(min_length=1, max_length=317)]
Value = Annotated[str, StringConstraints(max_length=63)]
Values = Annotated[tuple[Value, ...], Field(min_length=1, max_length=32)]
Weight = Annotated[int, Field(ge=1, le=100)]

_VALUES_MESSAGE = "values go with operator In, NotIn, Gt and Lt, and not with Exists and DoesNotExist"
_VALUES_RULE: Rules = [
    {"rule": "has(self.values) != (self.operator in ['Exists', 'DoesNotExist'])", "message": _VALUES_MESSAGE},
]


class _Requirement(Model):
    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": _VALUES_RULE})

    key: Key
    """Label key."""
    values: Values | None = None
    """Values to compare with; one number for Gt and Lt."""


class NodeRequirement(_Requirement):
    """A condition on a node's labels or fields."""

    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """In, NotIn, Exists, DoesNotExist, Gt or Lt."""


class LabelRequirement(_Requirement):
    """A condition on an object's labels."""

    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """In, NotIn, Exists or DoesNotExist."""


class NodeSelectorTerm(Model):
    """Conditions that must all hold."""

    match_expressions: Annotated[tuple[NodeRequirement, ...], Field(max_length=8)] | None = None
    """Conditions on the node's labels."""
    match_fields: Annotated[tuple[NodeRequirement, ...], Field(max_length=8)] | None = None
    """Conditions on the node's fields, as metadata.name."""


class NodeSelector(Model):
    """Terms of which one must hold."""

    node_selector_terms: Annotated[tuple[NodeSelectorTerm, ...], Field(min_length=1, max_length=8)]
    """The terms."""


class PreferredNode(Model):
    """A preference for nodes."""

    weight: Weight
    """1 to 100."""
    preference: NodeSelectorTerm
    """Which nodes."""


class NodeAffinity(Model):
    """Which nodes are allowed, and which are preferred."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Nodes that are allowed."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PreferredNode, ...], Field(max_length=8)] | None
    ) = None  # fmt: skip
    """Nodes that are preferred."""


class LabelSelector(Model):
    """Objects by their labels."""

    match_labels: LabelMap | None = None
    """Labels that must be there."""
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=8)] | None = None
    """Conditions that must all hold."""


class PodAffinityTerm(Model):
    """Pods of the job's namespace, and what counts as the same place as theirs."""

    topology_key: Key
    """Node label whose value is the place, as kubernetes.io/hostname."""
    label_selector: LabelSelector | None = None
    """Which pods."""


class PreferredPods(Model):
    """A preference for places."""

    weight: Weight
    """1 to 100."""
    pod_affinity_term: PodAffinityTerm
    """Which places."""


class PodAffinity(Model):
    """Places beside other pods, or away from them."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PodAffinityTerm, ...], Field(max_length=8)] | None
    ) = None  # fmt: skip
    """Terms that must all hold."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PreferredPods, ...], Field(max_length=8)] | None
    ) = None  # fmt: skip
    """Terms that are preferred."""


class Affinity(Model):
    """Where pods may go, beyond nodeSelector."""

    node_affinity: NodeAffinity | None = None
    """By the nodes' labels."""
    pod_affinity: PodAffinity | None = None
    """Beside other pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Away from other pods."""
