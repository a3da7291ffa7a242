"""The chart's admission policy in a real API server: what it refuses, in which words, and what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import cluster
from tests.support.chart import render
from tests.support.jobs import finetune_job
from tests.support.kubectl import Kubectl, Object, wait_until
from tests.support.policy_cases import DANGEROUS, DEFAULT_CASES, HARMLESS, NARROW, NULLS, SET_CASES, WIDE, Case, env

PLAIN, MORE, LESS, OTHER, WIDER = (f"finetune-policy{suffix}" for suffix in ("", "-more", "-less", "-narrow", "-wide"))
"""Namespaces with the limits for all, with wider ones of its own, with narrower ones, and with short and long lists of names."""

VALUES: Object = {
    "watchNamespaces": [PLAIN, MORE, LESS, WIDER, OTHER],
    "policy": {
        "allowedImagePrefixes": ["registry.example/a/", "registry.example/b/"],
        "maxWorkers": 4,
        "maxGPUs": 6,
        "namespaces": {
            MORE: {"allowedImagePrefixes": [], "allowRemoteCode": True, "maxWorkers": 8, "maxGPUs": "unlimited"},
            LESS: {"allowedImagePrefixes": ["registry.example/a/less/"], "maxWorkers": 1, "maxGPUs": 0},
            OTHER: NARROW,
            WIDER: WIDE,
        },
    },
}

KINDS = "validatingadmissionpolicies,validatingadmissionpolicybindings"


def job(workers: int = 1, gpus: int = 0, image: str | None = None, remote_code: bool | None = None) -> Object:
    """A job that says only what is asked for."""
    device: Object = {"Training__device": "GPU", "Training__accelerate_mode": "GPU_DDP"} if gpus else {}
    changes: Object = {"image": image} if image else {}
    config = {} if remote_code is None else {"trust_remote_code": remote_code}
    return finetune_job(
        "job",
        Training__num_training_workers=workers,
        Training__resources_per_worker={"CPU": 1, "GPU": gpus},
        General__config=config,
        **device,
        **changes,
    )


def older_job(name: str) -> Object:
    """A job that breaks every limit."""
    made = job(workers=9, gpus=8, image="elsewhere.example/trainer:1", remote_code=True)
    made["spec"] |= {"workers": env("EVIL_HOOK")["workers"] | {"annotations": {"iam.amazonaws.com/role": "x"}}}
    made["spec"] |= {"head": {"priorityClassName": "system-node-critical", "tolerations": [{"operator": "Exists"}]}}
    return made | {"metadata": {"name": name}}


OLDER = [f"older-{use}" for use in ("applied", "labelled", "cancelled", "reported", "deleted")]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """The policy and its binding, as the chart renders them."""
    values: Path = tmp_path_factory.mktemp("policy") / "values.yaml"
    values.write_text(json.dumps(VALUES), encoding="utf-8")
    return render("--values", str(values), "--show-only", "templates/admission_policy.yaml")


@pytest.fixture(scope="module")
def spaces(api: Kubectl, policy: list[Object]) -> Iterator[dict[str, Kubectl]]:
    """The namespaces, with older jobs in PLAIN, once the policy is in force."""
    name = policy[0]["metadata"]["name"]
    remove = ["delete", KINDS, name, "--ignore-not-found"]
    api.run(*remove)
    found = {space: cluster.new_namespace(api, space) for space in (PLAIN, MORE, LESS, WIDER, OTHER)}

    def accepted(space: str, made: Object, dry_run: bool = True) -> bool:
        return found[space].apply(made, check=False, dry_run=dry_run).returncode == 0

    for older in OLDER:
        wait_until("no policy of an earlier run", lambda older=older: accepted(PLAIN, older_job(older), dry_run=False))
    api.apply(*policy)
    try:
        for space in found:
            wait_until(f"the policy in {space}", lambda space=space: not accepted(space, job(workers=256)))
        yield found
    finally:
        api.run(*remove)
        api.run("delete", "namespace", *found, "--wait=false")


PREFIXES = "registry.example/a/, registry.example/b/ (or be left out): ask the administrator (policy.allowedImagePrefixes)"
PAIRS: list[Any] = [
    pytest.param(
        PLAIN,
        job(image="registry.example/abc/trainer:1"),
        job(image="registry.example/a/bc/trainer:1"),
        f"spec.image is registry.example/abc/trainer:1, but in namespace {PLAIN} it must begin with one of {PREFIXES}",
        id="image",
    ),
    pytest.param(
        PLAIN,
        job(image="mirror.example/registry.example/b/trainer"),
        job(image="registry.example/b/trainer"),
        f"it must begin with one of {PREFIXES}",
        id="image with the prefix elsewhere",
    ),
    pytest.param(PLAIN, job(image="trainer:dev"), job(), "spec.image is trainer:dev, but", id="image without a registry"),
    pytest.param(
        PLAIN,
        job(remote_code=True),
        job(remote_code=False),
        f"spec.config.General.config.trust_remote_code is true, but in namespace {PLAIN} it must be false: "
        "ask the administrator (policy.allowRemoteCode)",
        id="remote code",
    ),
    pytest.param(
        PLAIN,
        job(workers=5),
        job(workers=4),
        f"spec.config.Training.num_training_workers is 5, but in namespace {PLAIN} it may be at most 4: "
        "lower it, or ask the administrator (policy.maxWorkers)",
        id="workers",
    ),
    pytest.param(
        PLAIN,
        job(workers=4, gpus=2),
        job(workers=3, gpus=2),
        "the job asks for 8 GPUs (num_training_workers 4, resources_per_worker.GPU 2), but in namespace "
        f"{PLAIN} it may have at most 6: lower one of them in spec.config.Training, or ask the administrator (policy.maxGPUs)",
        id="GPUs",
    ),
    pytest.param(MORE, job(workers=9), job(workers=8), "may be at most 8", id="workers of a namespace with more"),
    pytest.param(
        LESS,
        job(image="registry.example/a/trainer"),
        job(image="registry.example/a/less/trainer"),
        "must begin with one of registry.example/a/less/ (or",
        id="image of a namespace with less",
    ),
    pytest.param(LESS, job(remote_code=True), job(), f"in namespace {LESS} it must be false", id="what a namespace leaves out"),
    pytest.param(LESS, job(workers=2), job(workers=1), "may be at most 1", id="workers of a namespace with less"),
    pytest.param(LESS, job(gpus=1), job(gpus=0), "may have at most 0", id="no GPU at all"),
]


@pytest.mark.parametrize(("space", "refused", "accepted", "words"), PAIRS)
def test_what_a_limit_forbids_is_refused_in_words_and_its_neighbour_is_taken(
    spaces: dict[str, Kubectl], space: str, refused: Object, accepted: Object, words: str
) -> None:
    result = spaces[space].apply(refused, check=False, dry_run=True)
    assert result.returncode != 0
    assert "is forbidden: ValidatingAdmissionPolicy" in result.stderr
    assert words in result.stderr
    spaces[space].apply(accepted, dry_run=True)


@pytest.mark.parametrize(
    "allowed",
    [job(image="elsewhere.example/trainer"), job(remote_code=True), job(workers=8, gpus=64)],
    ids=["any image", "remote code", "any number of GPUs"],
)
def test_a_namespace_may_be_allowed_more(spaces: dict[str, Kubectl], allowed: Object) -> None:
    assert spaces[PLAIN].apply(allowed, check=False, dry_run=True).returncode != 0
    spaces[MORE].apply(allowed, dry_run=True)


@pytest.mark.parametrize("case", [*DEFAULT_CASES, *SET_CASES], ids=lambda case: case.name)
def test_a_way_around_the_policy_is_closed_and_its_neighbour_is_open(spaces: dict[str, Kubectl], case: Case) -> None:
    space = {id(NARROW): OTHER, id(WIDE): WIDER}.get(id(case.policy), PLAIN)
    result = spaces[space].apply(finetune_job("job", **case.refused), check=False, dry_run=True)
    assert result.returncode != 0
    assert "is forbidden: ValidatingAdmissionPolicy" in result.stderr
    assert f"(policy.{case.key})" in result.stderr
    assert case.shown in result.stderr
    spaces[space].apply(finetune_job("job", **case.accepted), dry_run=True)


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_dangerous_variable_is_refused_by_name_whatever_is_allowed(spaces: dict[str, Kubectl], name: str) -> None:
    result = spaces[WIDER].apply(finetune_job("job", **env(name)), check=False, dry_run=True)
    assert result.returncode != 0
    assert "spec.workers.env[0].name" in result.stderr


@pytest.mark.parametrize("spec", HARMLESS, ids=lambda spec: spec["workers"]["env"][0]["name"])
def test_what_ordinary_users_set_is_allowed_by_default(spaces: dict[str, Kubectl], spec: Object) -> None:
    spaces[PLAIN].apply(finetune_job("job", **spec), dry_run=True)


def test_null_asks_for_nothing(spaces: dict[str, Kubectl]) -> None:
    """`kubectl create` sends it as it is."""
    made = finetune_job("job")
    made["spec"] |= NULLS
    spaces[OTHER].run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(made))


def test_pods_of_a_suspended_job_are_held_to_the_policy_when_they_change(spaces: dict[str, Kubectl]) -> None:
    """Between two attempts they may be changed; what the policy forbids they may not ask for then either."""
    space = spaces[PLAIN]
    space.apply(finetune_job("suspended", suspend=True))
    space.run(
        "patch", "finetunejob", "suspended", "--subresource=status", "--type=merge", "-p", '{"status": {"phase": "Suspended"}}'
    )
    bad, good = (json.dumps({"spec": env(name)}) for name in ("EVIL_HOOK", "OMP_NUM_THREADS"))
    result = space.run("patch", "finetunejob", "suspended", "--type=merge", "-p", bad, check=False)
    assert "(policy.allowedVariables)" in result.stderr
    space.run("patch", "finetunejob", "suspended", "--type=merge", "-p", good)


def test_a_job_that_says_nothing_has_one_worker_without_gpus(spaces: dict[str, Kubectl]) -> None:
    """The narrowest limits there are: one worker, no GPU, no remote code."""
    silent = finetune_job("job")
    del silent["spec"]["config"]["Training"]
    spaces[LESS].apply(silent, dry_run=True)


def test_an_image_of_null_is_no_image(spaces: dict[str, Kubectl]) -> None:
    made = job()
    made["spec"]["image"] = None
    result = spaces[LESS].run("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(made))
    assert json.loads(result.stdout)["spec"]["image"] is None


def test_a_number_of_workers_with_a_decimal_point_is_counted(spaces: dict[str, Kubectl]) -> None:
    """The schema takes 5.0 for an integer; kubectl would send 5."""
    raw = f"/apis/llmonray.dev/v1alpha1/namespaces/{PLAIN}/finetunejobs?dryRun=All"
    text = json.dumps(job(workers=77))
    assert text.count("77") == 1
    result = spaces[PLAIN].run("create", "--raw", raw, "-f", "-", stdin=text.replace("77", "5.0"), check=False)
    assert "num_training_workers is 5, but" in result.stdout + result.stderr
    spaces[PLAIN].run("create", "--raw", raw, "-f", "-", stdin=text.replace("77", "4.0"))


def test_a_namespace_that_is_not_watched_is_left_alone(api: Kubectl, spaces: dict[str, Kubectl]) -> None:
    api.apply(job(workers=256, image="elsewhere.example/trainer"), dry_run=True)


def test_a_job_older_than_the_limits_can_be_applied_unchanged(spaces: dict[str, Kubectl]) -> None:
    """On the server's side, as Flux does: kubectl alone sends nothing when nothing changes."""
    assert spaces[PLAIN].apply(older_job("newer"), check=False, dry_run=True).returncode != 0
    older = json.dumps(older_job("older-applied"))
    spaces[PLAIN].run("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=older)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("older-labelled", ["-p", '{"metadata": {"labels": {"team": "a"}, "annotations": {"note": "kept"}}}']),
        ("older-cancelled", ["-p", '{"spec": {"cancel": true, "ttlSecondsAfterFinished": 86400}}']),
        ("older-reported", ["--subresource=status", "-p", '{"status": {"phase": "Pending"}}']),
    ],
)
def test_a_job_older_than_the_limits_can_be_changed_where_they_say_nothing(
    spaces: dict[str, Kubectl], name: str, options: list[str]
) -> None:
    result = spaces[PLAIN].run("patch", "finetunejob", name, "--type=merge", *options)
    assert "patched" in result.stdout
    assert "no change" not in result.stdout


def test_a_job_older_than_the_limits_can_be_deleted_with_finalizers(spaces: dict[str, Kubectl]) -> None:
    def finalizers(value: str) -> None:
        patch = f'{{"metadata": {{"finalizers": {value}}}}}'
        spaces[PLAIN].run("patch", "finetunejob", "older-deleted", "--type=merge", "-p", patch)

    finalizers('["llmonray.dev/test"]')
    spaces[PLAIN].run("delete", "finetunejob", "older-deleted", "--wait=false")
    deleted = spaces[PLAIN].get("finetunejob", "older-deleted")
    assert deleted is not None
    assert deleted["metadata"]["deletionTimestamp"]
    finalizers("null")
    wait_until("the job to be gone", lambda: spaces[PLAIN].get("finetunejob", "older-deleted") is None)


def test_the_expressions_fit_the_schema_of_the_crd(spaces: dict[str, Kubectl], policy: list[Object]) -> None:
    name = policy[0]["metadata"]["name"]

    def checked() -> Object | None:
        found = spaces[PLAIN].get("validatingadmissionpolicy", name) or {}
        status: Object = found.get("status", {})
        return status if status.get("observedGeneration") == found.get("metadata", {}).get("generation") else None

    assert wait_until("the check of types", checked).get("typeChecking", {}) == {}
