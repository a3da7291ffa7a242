"""What is made for a job, whole, as the API server and Ray get it."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.support.builders import DATA, KEYS, SETTINGS, UID, make_job
from tests.support.golden import GOLDEN, assert_golden

from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.desired.config_map import build_config_map
from finetune_operator.desired.fetch import build_fetch_pod
from finetune_operator.desired.ray_cluster import build_ray_cluster
from finetune_operator.desired.secrets import build_token_secret
from finetune_operator.desired.sources import sources
from finetune_operator.desired.storage import build_output_claim
from finetune_operator.desired.submission import build_submission
from finetune_trainer.config.schema import TrainerConfig

pytestmark = pytest.mark.sampled(4)

JOBS = sorted(path.stem for path in (DATA / "jobs").glob("*.yaml"))
GPU_JOBS = {
    "everything": ("gpu.intel.com/xe", "2"),
    "gpu_i915": ("gpu.intel.com/i915", "1"),
    "gpu_xe_fsdp": ("gpu.intel.com/xe", "2"),
    "nvidia": ("nvidia.com/gpu", "1"),
}


def build_all(name: str) -> dict[str, Any]:
    job = make_job(name)
    return {
        "ray_cluster": build_ray_cluster(job, 1, SETTINGS, KEYS),
        "submission": build_submission(job, 1),
        "output_claim": build_output_claim(job),
        "config_map": build_config_map(job),
        "token_secret": build_token_secret(job, KEYS),
        "fetch_pod": build_fetch_pod(job, 1, SETTINGS) if sources(job) else None,
    }


def templates(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster["spec"]
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_made_into_its_golden_objects(name: str) -> None:
    for part, value in build_all(name).items():
        assert_golden(name, part, value)


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_building_twice_gives_equal_and_separate_objects(name: str) -> None:
    first, second = build_all(name), build_all(name)
    assert first == second
    for template in templates(first["ray_cluster"]):
        template["metadata"]["labels"].clear()
        template["spec"]["containers"][0]["securityContext"].clear()
    assert build_all(name) == second


@pytest.mark.parametrize("name", JOBS)
def test_ray_pods_satisfy_pod_security_restricted(name: str) -> None:
    built = build_all(name)
    for template in [*templates(built["ray_cluster"]), *filter(None, [built["fetch_pod"]])]:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & spec.keys()
        assert spec["automountServiceAccountToken"] is False
        assert all({"configMap", "persistentVolumeClaim", "emptyDir"} & volume.keys() for volume in spec["volumes"])
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["runAsNonRoot"] is True


@pytest.mark.parametrize("name", JOBS)
def test_no_pod_is_restarted_and_no_head_replaced(name: str) -> None:
    cluster = build_all(name)["ray_cluster"]
    assert [template["spec"]["restartPolicy"] for template in templates(cluster)] == ["Never", "Never"]
    assert cluster["metadata"]["annotations"]["ray.io/disable-provisioned-head-restart"] == "true"


@pytest.mark.parametrize("name", JOBS)
def test_the_head_never_trains_and_ray_is_told_the_gpus_of_a_worker(name: str) -> None:
    spec = build_all(name)["ray_cluster"]["spec"]
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert workers["rayStartParams"]["num-gpus"] == GPU_JOBS.get(name, ("", "0"))[1]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    secret = build_all(name)["token_secret"]["metadata"]["name"]
    assert spec["authOptions"] == {"mode": "token", "secretName": secret}


@pytest.mark.parametrize("name", JOBS)
def test_only_workers_of_gpu_jobs_take_gpus_and_request_equals_limit(name: str) -> None:
    head, worker = (template["spec"]["containers"][0]["resources"] for template in templates(build_all(name)["ray_cluster"]))
    extended = dict([GPU_JOBS[name]] if name in GPU_JOBS else [])
    assert {key: value for key, value in worker["limits"].items() if key != "memory"} == extended
    assert {key: value for key, value in worker["requests"].items() if "/" in key} == extended
    assert not [key for key in (head["limits"] | head["requests"]) if "/" in key]
    for resources in (head, worker):
        assert resources["requests"]["memory"] == resources["limits"]["memory"]


@pytest.mark.parametrize("name", JOBS)
def test_objects_go_with_their_job_and_the_output_claim_only_when_asked(name: str) -> None:
    built, job = build_all(name), make_job(name)
    owner = {
        "apiVersion": "llmonray.dev/v1alpha1",
        "kind": "FinetuneJob",
        "name": job.metadata.name,
        "uid": UID,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    for part in ("ray_cluster", "config_map", "token_secret"):
        assert built[part]["metadata"]["ownerReferences"] == [owner]
    claim = built["output_claim"]
    assert (claim is None) == (job.spec.output.size is None)
    if claim is not None:
        assert claim["metadata"].get("ownerReferences") == ([owner] if job.spec.output.delete_with_job else None)


@pytest.mark.parametrize("name", JOBS)
def test_every_object_and_pod_says_whose_it_is(name: str) -> None:
    built, job = build_all(name), make_job(name)
    labels = {"llmonray.dev/finetunejob": job.metadata.name, "llmonray.dev/finetunejob-uid": UID}
    objects = [built[part] for part in ("ray_cluster", "config_map", "token_secret")] + [built["output_claim"] or {}]
    for obj in objects[: 4 if built["output_claim"] else 3] + templates(built["ray_cluster"]):
        assert obj["metadata"]["labels"].items() >= labels.items()
        if "namespace" in obj["metadata"]:
            assert obj["metadata"]["namespace"] == "team"


@pytest.mark.parametrize("name", JOBS)
def test_the_trainer_reads_back_the_configuration_that_was_meant(name: str) -> None:
    text = build_all(name)["config_map"]["data"]["config.yaml"]
    assert TrainerConfig.model_validate(YAML(typ="safe", pure=True).load(text)) == make_job(name).spec.config


@pytest.mark.parametrize("name", JOBS)
def test_the_token_stands_in_its_secret_and_nowhere_else(name: str) -> None:
    built = build_all(name)
    token = KEYS.token(UID)
    assert base64.b64decode(built.pop("token_secret")["data"]["auth_token"]).decode() == token
    assert token not in repr(built)


def test_an_attempt_has_a_cluster_and_a_submission_of_its_own() -> None:
    job = make_job()
    assert build_ray_cluster(job, 2, SETTINGS, KEYS)["metadata"]["name"] == "demo-1f0c3-2"
    assert build_submission(job, 2)["submission_id"] == f"{UID}-a2"
    assert "--attempt 2" in build_submission(job, 2)["entrypoint"]


@pytest.mark.parametrize("word", ["$(touch /tmp/x)", "a b; rm -rf /", "`id`", "'", "{{runtime_env}}"])
def test_words_of_the_user_never_reach_the_command_line(word: str) -> None:
    spec = {"config": {"General": {"base_model": word, "output_dir": word}, "Dataset": {"train_file": word}}}
    assert build_submission(make_job(spec=spec), 1) == build_submission(make_job(), 1)


@pytest.mark.parametrize(("cpus", "wanted"), [(0.0001, "1m"), (0.5, "500m"), (1, "1000m"), (1.25, "1250m")])
def test_a_worker_requests_its_cpus_and_never_none(cpus: float, wanted: str) -> None:
    job = make_job(spec={"config": {"Training": {"resources_per_worker": {"CPU": cpus}}}})
    (group,) = build_ray_cluster(job, 1, SETTINGS, KEYS)["spec"]["workerGroupSpecs"]
    assert group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == wanted
    assert int(group["rayStartParams"]["num-cpus"]) >= cpus


def variables(job: FinetuneJob, **given: str) -> list[dict[str, str]]:
    cluster = build_ray_cluster(job, 1, SETTINGS.model_copy(update={"trainer_env": given}), KEYS)
    containers = [template["spec"]["containers"][0] for template in templates(cluster)]
    for container in containers:
        names = [item["name"] for item in container["env"]]
        assert len(names) == len(set(names)), "the API server refuses a name that occurs twice"
    return [{item["name"]: item.get("value", "") for item in container["env"]} for container in containers]


def test_the_administrators_variables_come_after_those_of_the_job_and_of_the_operator() -> None:
    job = make_job(spec={"workers": {"env": [{"name": "OMP_NUM_THREADS", "value": "4"}]}})
    head, workers = variables(job, OMP_NUM_THREADS="2", HF_ENDPOINT="https://hub.example", RAY_USAGE_STATS_ENABLED="1")
    assert (head["OMP_NUM_THREADS"], workers["OMP_NUM_THREADS"]) == ("2", "4")
    assert head["HF_ENDPOINT"] == workers["HF_ENDPOINT"] == "https://hub.example"
    assert head["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_pods_know_what_the_driver_has_to_read() -> None:
    job = make_job()
    text = build_config_map(job)["data"]["config.yaml"]
    assert all(pod["FINETUNE_CONFIG_SHA256"] == hashlib.sha256(text.encode()).hexdigest() for pod in variables(job))
