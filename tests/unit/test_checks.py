"""What is asked again, or only by the operator, before anything is made for a job."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.builders import make_job, raw_job

from finetune_operator.api.checks import broken_rules, refusals
from finetune_operator.api.policy import Policy
from finetune_operator.settings import Settings

OWN_CODE = {"config": {"General": {"config": {"trust_remote_code": True}}}}
POLICY = Policy.model_validate(
    {
        "allowedImagePrefixes": ["registry.example/a/"],
        "namespaces": {"team": {"allowRemoteCode": True}, "other": {"allowedImagePrefixes": ["registry.example/b/"]}},
    }
)


def in_namespace(namespace: str, **spec: Any) -> list[str]:
    return refusals(make_job(metadata={"namespace": namespace}, spec=spec), POLICY)


def test_a_model_with_code_of_its_own_needs_leave() -> None:
    (refusal,) = refusals(make_job(spec=OWN_CODE), Policy())
    assert refusal.startswith("config.General.config.trust_remote_code: the administrator does not allow")
    assert refusals(make_job(spec=OWN_CODE), Policy(allow_remote_code=True)) == []
    assert in_namespace("team", **OWN_CODE) == []
    assert in_namespace("other", **OWN_CODE)


@pytest.mark.parametrize(
    ("namespace", "image", "allowed"),
    [
        ("team", "registry.example/a/trainer:1", True),
        ("team", "registry.example/b/trainer:1", False),
        ("other", "registry.example/b/trainer:1", True),
        ("other", "registry.example/a/trainer:1", False),
        ("team", None, True),
    ],
)
def test_images_are_held_to_their_prefixes(namespace: str, image: str | None, allowed: bool) -> None:
    assert (in_namespace(namespace, image=image) == []) == allowed


def test_without_prefixes_any_image_will_do() -> None:
    assert refusals(make_job(spec={"image": "anywhere/trainer:1"}), Policy()) == []


@pytest.mark.parametrize("field", ["labels", "annotations", "nodeSelector"])
@pytest.mark.parametrize("key", ["a b", "/a", "a/", "-a", "A/b", "a/b/c", "x" * 64])
def test_a_key_that_no_pod_may_have_is_named(field: str, key: str) -> None:
    (refusal,) = refusals(make_job(spec={"workers": {field: {key: "x"}}}), Policy(allowed_annotations=("*",)))
    assert refusal == f"workers.{field}: {key!r} is no qualified name"


@pytest.mark.parametrize("key", ["a", "a.b_c-d", "example.com/a", "x" * 63])
def test_a_key_that_pods_may_have_is_not(key: str) -> None:
    assert refusals(make_job(spec={"head": {"labels": {key: "x"}}}), Policy()) == []


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"workers": {"labels": {"ray.io/cluster": "x"}}}, "labels and annotations of ray.io/"),
        ({"workers": {"env": [{"name": "HF_TOKEN", "value": "x"}]}}, "model.tokenSecretRef"),
        ({"head": {"tolerations": [{"effect": "NoSchedule"}]}}, "needs operator Exists"),
        ({"config": {"Dataset": {"train_file": "../rows.jsonl"}}}, "must be a relative path"),
    ],
)
def test_a_spec_that_is_older_than_a_rule_is_held_to_it(spec: dict[str, Any], says: str) -> None:
    (found,) = broken_rules(raw_job(spec=spec)["spec"])
    assert says in found


def test_a_spec_of_today_breaks_no_rule() -> None:
    assert broken_rules(raw_job("pod_options")["spec"]) == []


def test_the_policy_comes_from_the_chart_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "FINETUNE_POLICY", '{"allowRemoteCode":true,"allowedImagePrefixes":["r/"],"namespaces":{"a":{"allowRemoteCode":false}}}'
    )
    policy = Settings().policy
    assert policy.of("b").allow_remote_code
    assert not policy.of("a").allow_remote_code
    assert policy.of("a").allowed_image_prefixes == ("r/",)
