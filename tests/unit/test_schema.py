"""The checker of schemas and rules says what an API server of Kubernetes 1.34 says; its answers were taken down here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from finetune_operator.api.cel import check_rules, parse
from finetune_operator.api.schema import crd_schema, format_path, is_date_time, unknown_fields, violations

Schema = dict[str, Any]

WHOLE: Schema = {"type": "integer"}
SMALL: Schema = {"type": "integer", "minimum": 1, "maximum": 9}
SHARE: Schema = {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1, "exclusiveMaximum": True}
WORD: Schema = {"type": "string", "minLength": 1, "maxLength": 3, "pattern": "^[a-z]+$"}
CHOICE: Schema = {"enum": ["no", "epoch", False], "x-kubernetes-preserve-unknown-fields": True}
TIME: Schema = {"type": "string", "format": "date-time"}
NAMED: Schema = {
    "type": "array",
    "maxItems": 3,
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["name"],
    "items": {"type": "object", "properties": {"name": {"type": "string"}, "value": {"type": "string"}}},
}
LABELS: Schema = {"type": "object", "maxProperties": 2, "additionalProperties": {"type": "string"}}
FREE: Schema = {"type": "object", "maxProperties": 2, "x-kubernetes-preserve-unknown-fields": True}
HOLDER: Schema = {
    "type": "object",
    "required": ["word"],
    "properties": {"word": WORD, "other": WORD, "nullable": {**WORD, "nullable": True}, "choice": CHOICE, "free": FREE},
}


def said(schema: Schema, value: Any) -> list[str]:
    return [str(finding) for finding in violations(schema, value)]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (WHOLE, 5),
        (WHOLE, 5.0),
        (WHOLE, -0.0),
        (WHOLE, 5.0000000001),
        (WHOLE, 2**63 - 1),
        (WHOLE, -(2**63)),
        (WHOLE, 2.0**53 - 1),
        (SMALL, 9.0),
        ({"type": "number", "minimum": 0.01}, 0),  # the server cuts the bound's fraction off for a whole number
        ({"type": "number"}, 10**30),
        (SHARE, 5e-324),
        (SHARE, 0.9999999999999999),
        (WORD, "abc"),
        ({"type": "string", "maxLength": 2}, "🎉é"),
        ({"type": "string", "pattern": "a$"}, "ba"),
        ({"type": "string", "pattern": r"[$]\$"}, "$$"),
        (CHOICE, "no"),
        (CHOICE, False),
        (NAMED, [{"name": "a"}, {"name": "b"}, {}]),
        (NAMED, [{"name": "a", "value": None}]),
        (LABELS, {"a": "b", "c": None, "d": "e"}),
        (FREE, {"a": {"b": [None]}}),
        (HOLDER, {"word": "a", "other": None, "nullable": None, "choice": None}),
        (TIME, "2026-02-28T23:59:59Z"),
    ],
)
def test_what_the_api_server_takes_is_taken(schema: Schema, value: Any) -> None:
    assert said(schema, value) == []


@pytest.mark.parametrize(
    ("schema", "value", "sentence"),
    [
        (WHOLE, 5.5, "must be a whole number, not the number 5.5"),
        (WHOLE, -5.0000000001, "must be a whole number, not the number -5.0000000001"),
        (WHOLE, 2.0**53, "must be a whole number"),
        (WHOLE, 2**63, "must be a whole number"),
        (WHOLE, "5", "must be a whole number, not the text '5'; write it without quotes"),
        (WHOLE, True, "must be a whole number, not true"),
        (WHOLE, None, "null is not allowed; must be a whole number"),
        (SMALL, 0, "is 0; must be at least 1"),
        (SMALL, 10.0, "is 10.0; must be at most 9"),
        ({"type": "number", "minimum": 0.01}, 0.0, "is 0.0; must be at least 0.01"),
        ({"type": "number"}, False, "must be a number, not false"),
        ({"type": "number"}, float("nan"), "nan is no JSON number"),
        ({"type": "number"}, 10**400, "is no JSON number"),
        (SHARE, 0, "is 0; must be more than 0"),
        (SHARE, 1.0, "is 1.0; must be less than 1"),
        ({"type": "boolean"}, 1, "must be true or false, not the number 1"),
        ({"type": "boolean"}, "yes", "must be true or false, not the text 'yes'; write it without quotes"),
        (WORD, "", "must not be empty"),
        (WORD, "abcd", "has 4 characters; at most 3 are allowed"),
        (WORD, "a\n", "does not match ^[a-z]+$"),
        (WORD, 1, "must be text, not the number 1; put it into quotes"),
        (WORD, False, "yes, no, on and off are true and false in YAML"),
        ({"type": "string", "pattern": r"^\d$"}, "١", "does not match"),
        (CHOICE, 0, "the number 0 is not allowed; must be one of no, epoch, false"),
        (CHOICE, True, "true is not allowed"),
        (CHOICE, "Epoch", "did you mean epoch?"),
        (CHOICE, {"a": 1}, "a mapping is not allowed"),
        ({"enum": ["a"], "type": "string", "nullable": True}, None, "null is not allowed"),
        (NAMED, [{"name": "a"}] * 2, "[1]: the same name as an item above"),
        (NAMED, [{}, {}], "[1]: the same name as an item above"),
        (NAMED, [None], "[0]: null is not allowed"),
        (NAMED, [{"name": x} for x in "abcd"], "has 4 items; at most 3 are allowed"),
        ({"type": "array", "x-kubernetes-list-type": "set", "items": WHOLE}, [1, 2, 1], "[2]: the same value as an item above"),
        ({"type": "array", "minItems": 1, "items": WHOLE}, [], "has 0 items; at least 1 are needed"),
        (LABELS, {"a": "b", "c": "d", "e": "f"}, "has 3 entries; at most 2 are allowed"),
        (LABELS, [], "must be a mapping, not a list"),
        (FREE, [], "must be a mapping, not a list"),
        (HOLDER, {}, "word: required, but missing"),
        (HOLDER, {"word": None}, "word: required, and null is as good as missing"),
        (HOLDER, {"word": "a", "wrod": None}, "wrod: unknown field; did you mean word?"),
        (HOLDER, {"word": "a", "": 1}, "['']: unknown field"),
        (TIME, "2026-02-29T00:00:00Z", "is no time"),
    ],
)
def test_what_the_api_server_refuses_is_refused_in_words(schema: Schema, value: Any, sentence: str) -> None:
    (problem,) = said(schema, value)
    assert sentence in problem


def test_a_field_in_the_wrong_section_is_told_its_place() -> None:
    spec = {"config": {"General": {"base_model": "gpt2", "batch_size": 1}, "Dataset": {"train_file": "a"}}, "output": {}}
    assert said(crd_schema(), {"spec": spec}) == [
        "spec.config.General.batch_size: unknown field; did you mean spec.config.Training.batch_size?"
    ]


def test_every_mistake_is_told_at_once() -> None:
    spec = {
        "config": {"General": {"base_modle": 1}, "Training": {"seed": "x"}},
        "output": 5,
        "head": {"env": [{"name": "1"}, {}]},
    }
    assert {str(finding).partition(":")[0] for finding in violations(crd_schema(), {"spec": spec})} == {
        "spec.config.General.base_model",
        "spec.config.General.base_modle",
        "spec.config.Dataset",
        "spec.config.Training.seed",
        "spec.output",
        "spec.head.env[0].name",
        "spec.head.env[1].name",
    }


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("2026-01-31T12:00:00Z", True),
        ("2026-01-31t12:00:00.123456+25:99", True),
        ("2026-01-31T12:00:00z", True),
        ("0000-02-29T12:00:00Z", True),
        ("2026-01-31T12:00:00ZT24", True),
        ("2026-01-31T24:00:00Z", False),
        ("2026-01-31T12:60:00Z", False),
        ("2026-01-31T12:00:00", False),
        ("2026-1-31T12:00:00Z", False),
        ("20260131T12:00:00Z", False),
        ("2026-01-31 12:00:00Z", False),
        ("2026-01-31", False),
        ("", False),
    ],
)
def test_times_are_what_go_openapi_takes_for_them(text: str, is_one: bool) -> None:
    assert is_date_time(text) == is_one


@pytest.mark.parametrize(
    ("status", "unknown"),
    [
        (5, []),
        (None, []),
        ({"phase": "nonsense", "conditions": 5}, []),
        ({"phase": {"a": 1}}, ["status.phase.a"]),
        ([{"a": 1}], ["status[0].a"]),
        ({"conditions": [{"type": 1, "typ": 2}], "foo": None}, ["status.conditions[0].typ", "status.foo"]),
    ],
)
def test_only_unknown_fields_count_where_a_part_is_dropped_unread(status: Any, unknown: list[str]) -> None:
    found = unknown_fields(crd_schema()["properties"]["status"], status, ("status",))
    assert [format_path(finding.path) for finding in found] == unknown


def test_what_may_be_unknown_is_not_looked_into() -> None:
    assert list(unknown_fields(FREE, {"a": {"b": 1}, "c": [{"d": 1}]})) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("spec", "head", "tolerations", 0, "key"), "spec.head.tolerations[0].key"),
        (("metadata", "labels", "example.com/team"), "metadata.labels['example.com/team']"),
    ],
)
def test_paths_are_written_as_one_would_type_them(path: tuple[str | int, ...], text: str) -> None:
    assert format_path(path) == text


def judge(rule: str, value: Any, schema: Schema | None = None) -> str:
    """What one rule says: holds, broken or undecided."""
    properties: Schema = {name: {} for name in value} if isinstance(value, dict) else {}
    whole = {"properties": properties, **(schema or {}), "x-kubernetes-validations": [{"rule": rule, "message": "no"}]}
    verdict = check_rules(whole, value)
    return "broken" if verdict.broken else "undecided" if verdict.undecided else "holds"


@pytest.mark.parametrize(
    ("rule", "value", "outcome"),
    [
        ("has(self.a)", {"a": 0}, "holds"),
        ("has(self.a)", {"b": 0}, "broken"),
        ("!has(self.a) || self.a > 1", {"b": 0}, "holds"),
        ("!has(self.a) || self.a > 1", {"a": 1}, "broken"),
        ("self.a > 1 || has(self.b)", {"b": 0}, "holds"),  # an error is nothing where the other side decides
        ("self.a > 1 && has(self.c)", {"b": 0}, "broken"),
        ("self.a > 1", {"b": 0}, "undecided"),
        ("self.a > 1", {"a": "1"}, "undecided"),
        ("!self.a == false", {"a": True}, "holds"),  # `!` binds closer than `==`
        ("self.a in ['x', 'y']", {"a": "y"}, "holds"),
        ("self.lowerAscii() == 'kelvin'", "\u212aelvin", "broken"),  # the Kelvin sign is no ASCII letter
        ("self.upperAscii() == 'FSDP'", "fſdp", "broken"),
        ("size(self) <= 2", "🎉🎉", "holds"),
        ("self.matches('^[a-z]+$')", "a\n", "broken"),
        ("self.split('/').exists(part, part == '..')", "a/../b", "holds"),
        ("!self.split('/').exists(part, part == '..')", "a/..b", "holds"),
        ("self.all(key, !key.startsWith('ray.io/'))", {"a": 1, "ray.io/b": 2}, "broken"),
        ("self.exists(item, item > 1)", [0, "x", 2], "holds"),
        ("self.all(item, item > 1)", [2, "x"], "undecided"),
        ("self.a == ' && ! || '", {"a": " && ! || "}, "holds"),
        ("self == oldSelf", {"a": 1}, "holds"),
    ],
)
def test_rules_mean_what_cel_means(rule: str, value: Any, outcome: str) -> None:
    assert judge(rule, value) == outcome


def test_null_is_as_good_as_absent_to_a_rule() -> None:
    schema = {"properties": {"a": {"type": "string", "nullable": True}, "b": {}}}
    assert judge("has(self.a)", {"a": None, "b": 1}, schema) == "broken"


def test_a_rule_does_not_take_a_float_for_a_whole_number_though_the_schema_does() -> None:
    schema = {"properties": {"a": {"type": "integer"}}}
    assert said(schema, {"a": 1.0}) == []
    assert judge("has(self.a) && self.a == 1", {"a": 1}, schema) == "holds"
    assert judge("has(self.a) && self.a == 1", {"a": 1.0}, schema) == "undecided"


def test_a_finding_of_a_rule_is_placed_at_what_the_rule_is_about() -> None:
    schema = {"x-kubernetes-validations": [{"rule": "self.a.b == 1 || self.a.c.size() == 2", "message": "no"}]}
    (finding,) = check_rules(schema, {"a": {"b": 2, "c": ""}}).broken
    assert str(finding) == "a: no"


def test_every_rule_of_the_crd_is_understood() -> None:
    found = list(rules(crd_schema()))
    assert found
    for rule in found:
        parse(rule)


def rules(schema: Schema) -> Iterator[str]:
    yield from (rule["rule"] for rule in schema.get("x-kubernetes-validations", ()))
    for inner in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(inner, dict):
            yield from rules(inner)


@pytest.mark.parametrize(
    "rule", ["self.a ? 1 : 2", "self.map(x, x) == []", "duration('1s') > self", "1 < self.a < 3", "other == 1"]
)
def test_a_rule_in_words_that_are_not_known_is_never_passed_over(rule: str) -> None:
    with pytest.raises(NotImplementedError, match="not known here"):
        judge(rule, {"a": 2})
