"""What users get wrong, and what they are told."""

from __future__ import annotations

from tests.support.cluster import applied, ended, job_status
from tests.support.jobs import claim, finetune_job
from tests.support.kubectl import Kubectl, Object, wait_until


def test_a_broken_row_fails_with_file_and_line(jobs: Kubectl) -> None:
    with applied(jobs, finetune_job("broken-row", Dataset__train_file="broken.jsonl")):
        status = wait_until("the job to fail", lambda: ended(jobs, "broken-row"))
        assert (status["phase"], status["reason"]) == ("Failed", "DatasetInvalid")
        assert "broken.jsonl:17" in status["message"]
        assert "response" in status["message"]
        wait_until("its cluster to be gone", lambda: not jobs.list("rayclusters"))


def test_an_unknown_claim_is_named_and_the_job_goes_on_when_it_appears(jobs: Kubectl) -> None:
    with applied(jobs, finetune_job("no-claim", output={"persistentVolumeClaim": {"claimName": "not-there"}})):
        status = wait_until("the claim to be missed", lambda: _reason(jobs, "no-claim", "ClaimNotFound"))
        assert status["phase"] == "Pending"
        assert "'not-there'" in status["message"]
        assert "spec.output.persistentVolumeClaim" in status["message"]
        validated = next(condition for condition in status["conditions"] if condition["type"] == "Validated")
        assert validated["status"] == "False"
        assert not jobs.list("rayclusters")
        jobs.apply(claim("not-there"))
        wait_until("the job to go on", lambda: job_status(jobs, "no-claim").get("attempt"))


def test_a_missing_priority_class_is_named(jobs: Kubectl) -> None:
    with applied(jobs, finetune_job("no-class", workers={"memory": "4Gi", "priorityClassName": "not-there"})):
        status = wait_until("the class to be missed", lambda: _reason(jobs, "no-class", "PriorityClassNotFound"))
        assert "PriorityClass 'not-there' (spec.workers.priorityClassName)" in status["message"]


def test_a_missing_token_is_told_by_the_pod_that_needs_it(jobs: Kubectl) -> None:
    """The operator may not read Secrets."""
    model = finetune_job("x")["spec"]["model"] | {"tokenSecretRef": {"name": "hf-token-not-there"}}
    with applied(jobs, finetune_job("no-secret", model=model)):
        status = wait_until("the secret to be missed", lambda: _reason(jobs, "no-secret", "SecretNotFound"))
        assert "hf-token-not-there" in status["message"]


def test_a_model_with_code_of_its_own_is_refused_unless_the_administrator_allows_it(jobs: Kubectl) -> None:
    """By the admission policy of the chart; the operator says the same of a job that came before it."""
    result = jobs.apply(finetune_job("own-code", General__config={"trust_remote_code": True}), check=False)
    assert result.returncode != 0
    assert "trust_remote_code" in result.stderr


def test_an_invalid_spec_is_refused_by_the_api_server(jobs: Kubectl) -> None:
    result = jobs.apply(finetune_job("wrong", Training__device="GPU"), check=False)
    assert result.returncode != 0
    assert "device GPU needs resources_per_worker.GPU of at least 1" in result.stderr
    assert jobs.get("finetunejob", "wrong") is None


def _reason(jobs: Kubectl, name: str, reason: str) -> Object | None:
    status = job_status(jobs, name)
    return status if status.get("reason") == reason else None
