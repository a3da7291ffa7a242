"""``spec.resumeFrom``: what an earlier job left, what is waited for, and what becomes of it in the manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.support.builders import NAMESPACE, NOW, OTHER_UID, SETTINGS, UID, begun, make_job, raw_job

from finetune_client.local import load_job
from finetune_operator.api.v1alpha1 import CheckpointStatus, FinetuneJobStatus, Phase, Reason, ResumeStatus
from finetune_operator.clients.kube import Kind
from finetune_operator.decide import decide
from finetune_operator.desired.storage import build_volumes
from finetune_operator.desired.submission import build_entrypoint
from finetune_operator.errors import KubeUnavailableError
from finetune_operator.observed import Missing, Observed
from finetune_operator.preflight import Preflight
from finetune_operator.status import find_condition
from finetune_trainer.errors import ConfigError

Object = dict[str, Any]
FOLDER = f"first-{OTHER_UID}"
FIRST = ResumeStatus(job="first", uid=OTHER_UID, persistent_volume_claim="first-out", path=FOLDER)
BEFORE = ResumeStatus(job="zeroth", uid="0" * 32, persistent_volume_claim="zeroth-out", path="zeroth-0")


class Kube:
    """Jobs and claims by name."""

    def __init__(self, *jobs: Object, claims: tuple[str, ...] = ("first-out",)) -> None:
        self.objects = {("finetunejobs", job["metadata"]["name"]): job for job in jobs}
        self.objects |= {("persistentvolumeclaims", name): {} for name in claims}
        self.silent = False

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        assert namespace == NAMESPACE
        if self.silent:
            raise KubeUnavailableError(0, "no answer")
        return self.objects.get((kind.plural, name))


def ran(phase: Phase = Phase.FAILED, step: int | None = None, folder: str = FOLDER, **changes: Any) -> FinetuneJobStatus:
    """The status of a job that was seen to run."""
    output = {"persistentVolumeClaim": "first-out", "path": FOLDER}
    status = FinetuneJobStatus.model_validate({"phase": phase, "startTime": NOW, "output": output}).model_copy(update=changes)
    if step is None:
        return status
    checkpoint = CheckpointStatus(step=step, path=f"/output/{folder}/checkpoints/step-{step:08}", time=NOW)
    return status.model_copy(update={"checkpoint": checkpoint})


def job(name: str, status: FinetuneJobStatus | None = None, resume_from: str | None = None) -> Object:
    return raw_job(metadata={"name": name, "uid": OTHER_UID}, spec={"resumeFrom": resume_from}, status=status)


async def look(kube: Kube, **parts: Any) -> Observed:
    new = make_job(spec={"resumeFrom": "first"}, **parts)
    return await Preflight(kube, SETTINGS).observe(new)  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.CANCELLED, Phase.SUCCEEDED, Phase.SUSPENDED])
@pytest.mark.parametrize("step", [None, 400])
async def test_a_job_that_has_ended_or_is_suspended_is_begun_from(phase: Phase, step: int | None) -> None:
    assert await look(Kube(job("first", ran(phase, step)))) == Observed(resume=FIRST)


async def test_a_job_that_has_succeeded_is_begun_from_itself_and_not_from_what_it_was_begun_from() -> None:
    """Whether it has kept checkpoints is for the trainer to say: the earlier job's would lose what this one has learned."""
    assert await look(Kube(job("first", ran(Phase.SUCCEEDED, resume=BEFORE)))) == Observed(resume=FIRST)


async def test_a_job_whose_status_cannot_be_read_whole_is_still_begun_from() -> None:
    unreadable = job("first", ran(Phase.FAILED, 400))
    unreadable["status"] |= {"phase": "Failed", "progress": {"step": "many"}}
    assert await look(Kube(unreadable)) == Observed(resume=FIRST)


@pytest.mark.parametrize("phase", [None, *sorted({*Phase} - {"Failed", "Cancelled", "Succeeded", "Suspended"})])
async def test_a_job_that_goes_on_is_waited_for(phase: Phase | None) -> None:
    found = await look(Kube(job("first", ran(phase))))
    assert found.resume is None
    says = f"FinetuneJob 'first' (spec.resumeFrom) is {phase or 'Pending'}: it has to end or to be suspended"
    assert found.missing == (Missing(Reason.WAITING_FOR_JOB, says),)


async def test_a_job_or_claim_that_is_not_there_is_waited_for_by_name() -> None:
    (missing,) = (await look(Kube())).missing
    assert missing == Missing(Reason.JOB_NOT_FOUND, "FinetuneJob 'first' (spec.resumeFrom) does not exist in namespace 'team'")
    (missing,) = (await look(Kube(job("first", ran(step=3)), claims=()))).missing
    assert missing == Missing(
        Reason.CLAIM_NOT_FOUND, "PersistentVolumeClaim 'first-out' (spec.resumeFrom) does not exist in namespace 'team'"
    )


async def test_a_job_that_never_ran_left_nothing_and_its_claim_is_not_waited_for() -> None:
    never = ran(Phase.CANCELLED, start_time=None)
    found = await look(Kube(job("first", never), claims=()))
    assert found == Observed(resume=ResumeStatus(job="first", uid=OTHER_UID))
    status = decide(make_job(spec={"resumeFrom": "first"}), found, NOW).status
    condition = find_condition(status, "Validated")
    assert condition is not None
    assert "FinetuneJob 'first' has never run, so this job begins at the beginning" in condition.message


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (ran(resume=BEFORE), BEFORE),
        (ran(step=400, folder="zeroth-0", resume=BEFORE), BEFORE),
        (ran(start_time=None, resume=BEFORE), BEFORE),
        (ran(step=500, resume=BEFORE), FIRST),
    ],
    ids=["none reported", "that of the job before", "never ran", "its own"],
)
async def test_a_retry_that_made_no_checkpoint_hands_on_what_it_began_from(
    status: FinetuneJobStatus, expected: ResumeStatus
) -> None:
    assert (await look(Kube(job("first", status, "zeroth"), claims=("first-out", "zeroth-out")))).resume == expected


async def test_a_retry_that_was_cancelled_while_it_waited_hands_on_the_name() -> None:
    second = job("first", FinetuneJobStatus(phase=Phase.CANCELLED), "zeroth")
    zeroth = job("zeroth", ran(step=4))
    assert (await look(Kube(second, zeroth))).resume == FIRST.model_copy(update={"job": "zeroth"})
    (missing,) = (await look(Kube(second))).missing
    assert missing.reason is Reason.JOB_NOT_FOUND
    assert "'zeroth'" in missing.message


@pytest.mark.parametrize("again", ["demo", "first"])
async def test_names_that_go_round_in_a_circle_end_at_the_beginning(again: str) -> None:
    found = await look(Kube(job("first", FinetuneJobStatus(phase=Phase.CANCELLED), again)))
    assert found == Observed(resume=ResumeStatus(job="first", uid=OTHER_UID))


async def test_what_is_stored_holds_when_the_earlier_job_is_gone() -> None:
    found = await look(Kube(), status={"resume": {"job": "first", "uid": OTHER_UID, "persistentVolumeClaim": "first-out"}})
    assert found.missing == ()
    assert found.resume is not None


async def test_an_api_server_that_does_not_answer_is_no_missing_job() -> None:
    kube = Kube()
    kube.silent = True
    with pytest.raises(KubeUnavailableError):
        await look(kube)


def test_the_place_is_stored_with_the_first_attempt_before_anything_is_made() -> None:
    new = make_job(spec={"resumeFrom": "first"})
    plan = decide(new, Observed(resume=FIRST), NOW)
    assert (plan.actions, plan.status.attempt, plan.status.resume) == ((), 1, FIRST)
    stored = new.model_copy(update={"status": plan.status})
    later = decide(stored, Observed(), NOW)
    assert later.actions
    assert later.status.resume == FIRST


def test_after_a_suspension_the_stored_place_holds() -> None:
    status = begun(Phase.SUSPENDED, ray=None, resume=FIRST)
    plan = decide(make_job(spec={"resumeFrom": "first"}, status=status), Observed(resume=FIRST), NOW)
    assert (plan.status.attempt, plan.status.resume) == (2, FIRST)


def test_a_claim_of_its_own_is_mounted_once() -> None:
    spec = {"resumeFrom": "first", "output": {"size": None, "persistentVolumeClaim": {"claimName": "first-out"}}}
    new = make_job(spec=spec, status=FinetuneJobStatus(resume=FIRST))
    volumes, _mounts = build_volumes(new)
    assert [volume["name"] for volume in volumes if volume.get("persistentVolumeClaim", {}).get("claimName") == "first-out"] == [
        "output"
    ]
    assert f"--output_dir /output/demo-{UID} " in build_entrypoint(new, 1)
    assert f"--resume_from /output/{FOLDER} " in build_entrypoint(new, 1)


def test_without_anything_left_nothing_is_mounted_and_the_trainer_is_told_nothing() -> None:
    plain, empty = make_job(), make_job(status=FinetuneJobStatus(resume=ResumeStatus(job="first", uid=OTHER_UID)))
    assert build_volumes(empty) == build_volumes(plain)
    assert build_entrypoint(empty, 1) == build_entrypoint(plain, 1)


def test_a_local_run_says_that_there_is_no_other_job(tmp_path: Path) -> None:
    job = raw_job()
    manifest = {"apiVersion": "llmonray.dev/v1alpha1", "kind": "FinetuneJob", "metadata": {"name": "a"}, "spec": job["spec"]}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(manifest | {"spec": job["spec"] | {"resumeFrom": "first"}}))
    with pytest.raises(ConfigError, match=r"spec.resumeFrom: there are no other jobs here"):
        load_job(str(path))


def test_no_job_begins_from_itself() -> None:
    with pytest.raises(ValidationError, match="no job can begin from itself"):
        make_job(spec={"resumeFrom": "demo"})
