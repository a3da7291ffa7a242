"""The spec's models: what they take, what they refuse, and that they name every error at once."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError
from tests.support.builders import make_job, raw_job

from finetune_operator.api.checks import broken_rules
from finetune_operator.api.v1alpha1 import FinetuneJob, Reason
from finetune_operator.api.variables import REFUSED
from finetune_trainer.errors import FailureReason


def problems(spec: dict[str, Any]) -> dict[str, str]:
    """Key path → message of each error."""
    with pytest.raises(ValidationError) as error:
        FinetuneJob.model_validate(raw_job(spec=spec))
    return {".".join(map(str, item["loc"])): item["msg"] for item in error.value.errors()}


def test_every_error_is_named_at_once_with_its_key() -> None:
    found = problems(
        {
            "config": {
                "General": {"base_model": "", "lora_config": {"r": 0}},
                "Dataset": {"train_file": None, "max_length": 1},
                "Training": {"device": "HPU", "optimizer": "magic", "num_training_workers": 0},
            },
            "output": {"size": "ten"},
            "workers": {"memory": "a lot"},
        }
    )
    assert set(found) == {
        "spec.config.General.base_model",
        "spec.config.General.lora_config.r",
        "spec.config.Dataset.train_file",
        "spec.config.Dataset.max_length",
        "spec.config.Training.device",
        "spec.config.Training.optimizer",
        "spec.config.Training.num_training_workers",
        "spec.output.size",
        "spec.workers.memory",
    }
    assert "HPU (Gaudi) is not supported" in found["spec.config.Training.device"]
    assert "AdamW" in found["spec.config.Training.optimizer"]


@pytest.mark.parametrize(
    ("spec", "key", "says"),
    [
        ({"output": {"persistentVolumeClaim": {"claimName": "x"}}}, "output", "exactly one of"),
        ({"output": {"size": None}}, "output", "exactly one of"),
        (
            {"output": {"size": None, "persistentVolumeClaim": {"claimName": "x"}, "deleteWithJob": True}},
            "output",
            "deleteWithJob",
        ),
        (
            {"output": {"size": None, "persistentVolumeClaim": {"claimName": "x"}, "storageClassName": "s"}},
            "output",
            "go with size",
        ),
        ({"dataset": {"configMap": {"name": "a"}, "persistentVolumeClaim": {"claimName": "b"}}}, "dataset", "not both"),
        (
            {"dataset": {"persistentVolumeClaim": {"claimName": "b", "subPath": "/etc"}}},
            "dataset.persistentVolumeClaim.subPath",
            "",
        ),
        ({"accelerator": "xe"}, "", "device GPU"),
        ({"config": {"Training": {"resources_per_worker": {"GPU": 1}}}}, "config.Training", "forbids"),
        ({"config": {"Training": {"device": "GPU", "accelerate_mode": "DDP"}}}, "config.Training", "at least 1"),
        ({"config": {"Training": {"accelerate_mode": "GPU_DDP"}}}, "config.Training", "needs device GPU"),
        ({"config": {"Training": {"accelerate_mode": "DEEPSPEED"}}}, "config.Training.accelerate_mode", "use GPU_FSDP"),
        ({"image": "-v /:/host"}, "image", ""),
        ({"output": {"accessModes": []}}, "output.accessModes", ""),
    ],
)
def test_what_does_not_go_together_is_refused(spec: dict[str, Any], key: str, says: str) -> None:
    found = problems(spec)
    assert set(found) == {f"spec.{key}".rstrip(".")}
    assert says in "".join(found.values())


HUB_ONLY = "model.revision and model.cache go with a model from the hub, not with model.persistentVolumeClaim"
CACHE = {"persistentVolumeClaim": {"claimName": "hub"}}
CLAIM = {"persistentVolumeClaim": {"claimName": "models"}}
VALUES = "values go with operator In, NotIn, Gt and Lt, and not with Exists and DoesNotExist"
OWN = "labels and annotations of ray.io/ and llmonray.dev/ are set by KubeRay and the operator"
YEAR = 31536000


def node_affinity(**requirement: Any) -> dict[str, Any]:
    terms = [{"matchExpressions": [{"key": "disk"} | requirement]}]
    rule = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"workers": {"affinity": {"nodeAffinity": rule}}}


def near(**term: Any) -> dict[str, Any]:
    return {"workers": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}}


def preferred(weight: int) -> dict[str, Any]:
    rule = [{"weight": weight, "preference": {}}]
    return {"workers": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": rule}}}}


def env(*names: str, value: str = "x") -> dict[str, Any]:
    return {"head": {"env": [{"name": name, "value": value} for name in names]}}


def tolerate(**toleration: Any) -> dict[str, Any]:
    return {"workers": {"tolerations": [toleration]}}


def rows(name: str, path: str) -> dict[str, Any]:
    return {"config": {"Dataset": {name: path}}}


INSIDE = {"/rows": "rows/", "../rows": "..rows", "a/..": "a/...b", "~/rows": "a/~", "-rows": "a/-rows"}
NEIGHBOURS = [
    ({"model": CLAIM | {"revision": "main"}}, HUB_ONLY, {"model": CLAIM | {"tokenSecretRef": {"name": "hub"}}}),
    ({"model": CLAIM | {"cache": CACHE}}, HUB_ONLY, {"model": {"cache": CACHE, "revision": "main"}}),
    ({"model": {"revision": "-x"}}, "match pattern", {"model": {"revision": "refs/pr/1-x"}}),
    ({"model": {"revision": ""}}, "at least 1", {"model": {"revision": "v"}}),
    ({"model": {"revision": "a b"}}, "match pattern", {"model": {"revision": "a.b"}}),
    ({"model": {"revision": "v" * 129}}, "at most 128", {"model": {"revision": "v" * 128}}),
    ({"model": {"cache": {}}}, "Field required", {"model": {"cache": CACHE}}),
    ({"model": {"tokenSecretRef": {"key": "k"}}}, "Field required", {"model": {"tokenSecretRef": {"name": "s"}}}),
    *((env(name), "a hub token goes into model.tokenSecretRef", env(f"MY_{name}")) for name in REFUSED[0].names),
    (env("RAY_address"), "KUBERNETES_ or RAY_", env("ray_address", "RAYS")),
    (env("KUBERAY_X"), "names that begin with FINETUNE_, KUBERAY_", env("KUBERAYS_X")),
    (env("1A"), "match pattern", env("_1A")),
    (env("A-B"), "match pattern", env("A_B")),
    (env(""), "match pattern", env("A")),
    (env("A" * 129), "at most 128", env("A" * 128)),
    (env("A", value="x" * 4097), "at most 4096", env("A", value="x" * 4096)),
    (env(*(f"A{n}" for n in range(33))), "at most 32", env(*(f"A{n}" for n in range(32)))),
    (tolerate(effect="NoSchedule"), "without key tolerates every taint", tolerate(effect="NoSchedule", operator="Exists")),
    (tolerate(key="", operator="Equal"), "without key tolerates every taint", tolerate(key="a", operator="Equal")),
    (tolerate(key="a", operator="Exists", value="x"), "with operator Equal", tolerate(key="a", operator="Exists", value="")),
    (tolerate(key="a", tolerationSeconds=9), "effect NoExecute", tolerate(key="a", tolerationSeconds=9, effect="NoExecute")),
    (tolerate(key="a", effect="NoSchedule", tolerationSeconds=9), "effect NoExecute", tolerate(key="a", effect="NoSchedule")),
    (tolerate(key="a", value="b c"), "match pattern", tolerate(key="a", value="b.c")),
    ({"head": {"labels": {"ray.io/cluster": "x"}}}, OWN, {"head": {"labels": {"my-ray.io/cluster": "x", "ray.io": "x"}}}),
    ({"head": {"annotations": {"llmonray.dev/attempt": "2"}}}, OWN, {"head": {"annotations": {"a.b/llmonray.dev": "2"}}}),
    ({"workers": {"labels": {"a": "b c"}}}, "match pattern", {"workers": {"annotations": {"a": "b c"}}}),
    ({"workers": {"labels": {"a": "x" * 64}}}, "at most 63", {"workers": {"labels": {"a": "x" * 63}}}),
    ({"workers": {"annotations": {"a": "x" * 1025}}}, "at most 1024", {"workers": {"annotations": {"a": "x" * 1024}}}),
    ({"head": {"priorityClassName": "High"}}, "match pattern", {"head": {"priorityClassName": "high.1"}}),
    (node_affinity(operator="In"), VALUES, node_affinity(operator="In", values=["ssd"])),
    (node_affinity(operator="Exists", values=["ssd"]), VALUES, node_affinity(operator="Exists")),
    (node_affinity(operator="NotIn", values=[]), "at least 1 item", node_affinity(operator="NotIn", values=[""])),
    (
        node_affinity(operator="Within", values=["1"]),
        "'In', 'NotIn', 'Exists', 'DoesNotExist', 'Gt' or 'Lt'",
        node_affinity(operator="Lt", values=["1"]),
    ),
    (preferred(0), "greater than or equal to 1", preferred(1)),
    (preferred(101), "less than or equal to 100", preferred(100)),
    (near(labelSelector={}), "Field required", near(topologyKey="rack")),
    (
        near(topologyKey="rack", labelSelector={"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}),
        "'In', 'NotIn', 'Exists' or 'DoesNotExist'",
        near(topologyKey="rack", labelSelector={"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}),
    ),
    *(
        bound
        for name in ("provisioningTimeoutSeconds", "activeDeadlineSeconds", "stallTimeoutSeconds")
        for bound in (
            ({name: 0}, "greater than or equal to 1", {name: 1}),
            ({name: YEAR + 1}, f"less than or equal to {YEAR}", {name: YEAR}),
            ({name: 1.5}, "valid integer", {name: 2}),
        )
    ),
    ({"ttlSecondsAfterFinished": -1}, "greater than or equal to 0", {"ttlSecondsAfterFinished": 0}),
    ({"ttlSecondsAfterFinished": YEAR + 1}, f"less than or equal to {YEAR}", {"ttlSecondsAfterFinished": YEAR}),
    *(
        ({"clusterTTLSeconds": {name: -1}}, "greater than or equal to 0", {"clusterTTLSeconds": {name: 0}})
        for name in ("onSuccess", "onFailure")
    ),
    *(
        (rows(name, outside), f"config.Dataset.{name} must be a relative path", rows(name, inside))
        for name in ("train_file", "validation_file")
        for outside, inside in INSIDE.items()
    ),
]  # fmt: skip
"""A spec that is refused, words of the message, and the nearest one that is accepted."""


def refusals_of(spec: dict[str, Any]) -> list[str]:
    """By the models, and by the rules that are asked again before a job begins."""
    raw = raw_job(spec=spec)
    try:
        FinetuneJob.model_validate(raw)
    except ValidationError as error:
        return [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    return broken_rules(raw["spec"])


@pytest.mark.parametrize(("refused", "says", "accepted"), NEIGHBOURS)
def test_the_border_of_each_rule(refused: dict[str, Any], says: str, accepted: dict[str, Any]) -> None:
    refusal, *_others = refusals_of(refused)  # pydantic also misses, in a list that must not be empty, an item that it refuses
    assert says in refusal
    assert next(iter(refused)) in refusal
    assert refusals_of(accepted) == []


@pytest.mark.parametrize("spec", [env("HF_TOKEN"), tolerate(effect="NoSchedule"), node_affinity(operator="In")])
def test_a_job_that_is_older_than_a_rule_stays_readable(spec: dict[str, Any]) -> None:
    """It may run already."""
    assert refusals_of(spec)
    make_job(spec=spec)


def test_times_have_the_defaults_of_the_documentation() -> None:
    spec = make_job(spec={"clusterTTLSeconds": {}}).spec
    assert (spec.provisioning_timeout_seconds, spec.active_deadline_seconds, spec.ttl_seconds_after_finished) == (
        None,
        None,
        None,
    )
    assert spec.stall_timeout_seconds == 900
    assert spec.cluster_ttl_seconds is not None
    assert (spec.cluster_ttl_seconds.on_success, spec.cluster_ttl_seconds.on_failure, spec.cancel) == (0, 0, False)


@pytest.mark.parametrize("path", ["..", "../x", "a/../b", "a/.."])
def test_a_sub_path_that_leaves_its_volume_is_refused(path: str) -> None:
    """The CRD says so by CEL; objects may be older than its rules."""
    assert problems({"dataset": {"persistentVolumeClaim": {"claimName": "b", "subPath": path}}})


def test_a_literal_token_is_refused_and_not_repeated() -> None:
    found = problems({"config": {"General": {"config": {"use_auth_token": "hf_verysecret"}}}})
    assert list(found) == ["spec.config.General.config.use_auth_token"]
    assert "tokenSecretRef" in found["spec.config.General.config.use_auth_token"]
    assert "hf_verysecret" not in str(found)


@pytest.mark.parametrize("name", ["a" * 41, "1a", "A", "a.b", "a-", "a_b", ""])
def test_a_name_that_makes_no_cluster_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        make_job(metadata={"name": name})


def test_models_are_frozen() -> None:
    job = make_job()
    with pytest.raises(ValidationError):
        job.spec.config.training.epochs = 9
    with pytest.raises(ValidationError):
        job.status.phase = None


def test_keys_of_a_newer_api_server_are_ignored() -> None:
    raw = raw_job(spec={"fromTheFuture": 1})
    raw["status"] = {"fromTheFuture": 1}
    assert FinetuneJob.model_validate(raw).spec == make_job().spec


def test_every_reason_of_the_trainer_is_a_reason_of_the_job() -> None:
    assert set(get_args(FailureReason)) <= set(Reason)
