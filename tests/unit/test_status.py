"""Conditions, the merge patch of a reconcile, and what is held back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.builders import NOW, begun, make_progress, merge

from finetune_operator.api.schema import crd_schema, violations
from finetune_operator.api.v1alpha1 import ConditionType, FinetuneJobStatus, Phase, Reason, dump
from finetune_operator.status import (
    checkpoint_status,
    condition_is_true,
    progress_status,
    set_condition,
    status_patch,
    throttle,
    with_api_trouble,
    without_api_trouble,
)
from finetune_operator.text import clip

LATER = NOW + timedelta(minutes=5)
READY = ConditionType.CLUSTER_READY


def test_a_condition_keeps_its_transition_time_while_its_status_stays() -> None:
    first = set_condition(FinetuneJobStatus(), READY, False, Reason.CLUSTER_STARTING, "0/2", NOW)
    same = set_condition(first, READY, False, Reason.UNSCHEDULABLE, "no node", LATER)
    assert [item.last_transition_time for item in same.conditions] == [NOW]
    assert (same.conditions[0].reason, same.conditions[0].message) == ("Unschedulable", "no node")


@pytest.mark.parametrize(("value", "text"), [(True, "True"), (None, "Unknown")])
def test_a_condition_moves_its_transition_time_with_its_status(value: bool | None, text: str) -> None:
    first = set_condition(FinetuneJobStatus(), READY, False, Reason.CLUSTER_STARTING, "", NOW)
    second = set_condition(first, READY, value, Reason.CLUSTER_READY, "", LATER)
    assert [(item.status, item.last_transition_time) for item in second.conditions] == [(text, LATER)]
    assert first.conditions[0].status == "False", "the old status is not touched"


def test_a_condition_is_there_once_and_beside_the_others() -> None:
    status = FinetuneJobStatus(observed_generation=3)
    for type_ in (READY, ConditionType.VALIDATED, READY):
        status = set_condition(status, type_, True, Reason.ACCEPTED, "", NOW)
    assert sorted(item.type for item in status.conditions) == ["ClusterReady", "Validated"]
    assert {item.observed_generation for item in status.conditions} == {3}
    assert condition_is_true(status, READY)
    assert not condition_is_true(status, ConditionType.FAILED)


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("short", 10, "short"),
        ("0123456789", 10, "0123456789"),
        ("0123456789a", 10, "…23456789a"),
        (" a\x00\x1b[31mb\n\tc ", 20, "a[31mb\n\tc"),
    ],
)
def test_clip_keeps_the_end_and_drops_control_characters(text: str, limit: int, expected: str) -> None:
    assert clip(text, limit) == expected


@given(st.text(max_size=200), st.integers(2, 50))
def test_clip_holds_any_text_to_its_limit(text: str, limit: int) -> None:
    assert len(clip(text, limit)) <= limit


def test_a_long_message_fits_into_the_status() -> None:
    status = set_condition(FinetuneJobStatus(), READY, False, Reason.TRAINING_FAILED, "x" * 100_000 + "end", NOW)
    assert len(status.conditions[0].message) == 4096
    assert status.conditions[0].message.endswith("end")


conditions = st.lists(
    st.builds(
        lambda type_, status, message: {
            "type": type_, "status": status, "reason": "R", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z",
        },
        st.sampled_from(["Validated", "Failed"]), st.sampled_from(["True", "False", "Unknown"]), st.text(max_size=5),
    ),
    max_size=3,
)  # fmt: skip
statuses = st.fixed_dictionaries(
    {},
    optional={
        "observedGeneration": st.integers(1, 9),
        "phase": st.sampled_from(["Pending", "Running", "Failed"]),
        "message": st.text(max_size=9),
        "conditions": conditions,
        "startTime": st.just("2026-01-01T00:00:00Z"),
        "ray": st.fixed_dictionaries({"cluster": st.text(max_size=3), "submissionId": st.text(max_size=3)}),
        "progress": st.fixed_dictionaries(
            {"lastReportTime": st.just("2026-01-01T00:00:00Z")},
            optional={"loss": st.floats(0, 9), "evalLoss": st.floats(0, 9), "hosts": st.lists(st.text(max_size=2), max_size=2)},
        ),
        "result": st.fixed_dictionaries({}, optional={"trainLoss": st.floats(0, 9)}),
    },
).map(FinetuneJobStatus.model_validate)


@given(statuses, statuses)
def test_the_patch_turns_the_old_status_into_the_new(old: FinetuneJobStatus, new: FinetuneJobStatus) -> None:
    patch = status_patch(dump(old), new)
    stored: Any = merge(dump(old), patch or {})
    assert FinetuneJobStatus.model_validate(stored) == new
    assert {key: value for key, value in stored.items() if value != {}} == {
        key: value for key, value in dump(new).items() if value != {}
    }


@given(statuses)
def test_equal_statuses_need_no_patch(status: FinetuneJobStatus) -> None:
    assert status_patch(dump(status), status) is None


def test_the_patch_names_only_what_changes() -> None:
    old = begun()
    new = old.model_copy(update={"phase": Phase.RUNNING, "output": None})
    assert status_patch(dump(old), new) == {"phase": "Running", "output": None}


def test_times_are_written_in_utc_with_seconds() -> None:
    assert dump(begun(start_time=NOW.replace(microsecond=987654)))["startTime"] == "2026-01-02T03:04:05Z"


def test_progress_shows_four_digits_and_a_percentage() -> None:
    shown = dump(progress_status(make_progress(epoch=1.23456789), None, NOW))
    assert (shown["display"], shown["loss"], shown["epoch"]) == ("50%", 2.346, 1.235)
    assert (shown["hosts"], shown["backend"]) == (["pod-a", "pod-b"], "gloo")


def reported(step: int, percent: int, **changes: Any) -> FinetuneJobStatus:
    progress = progress_status(make_progress(percent=percent, step=step), None, NOW)
    return begun(Phase.RUNNING, progress=progress).model_copy(update=changes)


@pytest.mark.parametrize(
    ("seconds", "percent", "written"),
    [(4, 51, False), (5, 51, True), (29, 50, False), (30, 50, True), (4, 60, False), (None, 50, True)],
)
def test_progress_alone_is_written_each_5_s_with_a_percent_and_each_30_s_without(
    seconds: float | None, percent: int, written: bool
) -> None:
    old, new = reported(1, 50), reported(2, percent)
    assert throttle(old, new, seconds) == (new if written else old)


def test_times_and_checkpoints_of_a_trainer_that_leaps_do_not_make_more_writes() -> None:
    far = make_progress(step=9, lastReportTime="2036-01-01T00:00:00Z")
    leaping = progress_status(far, None, NOW)
    new = reported(1, 50, progress=leaping, message="other", reason=Reason.TRAINING_RUNNING)
    assert throttle(reported(1, 50), new, 4) == reported(1, 50)


@pytest.mark.parametrize(
    "change", [{"phase": Phase.SUCCEEDED}, {"reason": Reason.STALLED}, {"attempt": 2}, {"observed_generation": 9}]
)
def test_what_the_user_has_to_see_is_written_at_once(change: dict[str, Any]) -> None:
    new = reported(2, 50, **change)
    assert throttle(reported(1, 50), new, 0) == new


def test_a_step_is_dated_by_the_clock_that_first_saw_it() -> None:
    later = NOW + timedelta(seconds=40)
    first = progress_status(make_progress(step=3, lastReportTime="2036-01-01T00:00:00Z"), None, NOW)
    assert progress_status(make_progress(step=3), first, later).step_time == NOW
    assert progress_status(make_progress(step=4), first, later).step_time == later


def test_every_report_that_the_operator_takes_fits_into_the_status() -> None:
    """By construction: each text of the report at its greatest length."""
    checkpoint = {"step": 2**53 - 1, "path": "p" * 4096, "time": "2026-01-01T00:00:00Z"}
    world = {"size": 1024, "hosts": ["h" * 512] * 1024, "devices": ["d" * 512] * 1024, "backend": "b" * 512}
    report = make_progress(checkpoint=checkpoint, world=world, step=2**53 - 1, etaSeconds=2**53 - 1, percent=100)
    status = reported(1, 1, progress=progress_status(report, None, NOW), checkpoint=checkpoint_status(report.checkpoint))
    assert list(violations(crd_schema()["properties"]["status"], dump(status), ("status",))) == []
    assert FinetuneJobStatus.model_validate(dump(status)) == status


def test_a_failing_call_is_in_the_message_until_it_succeeds() -> None:
    status = reported(1, 1, message="2 workers")
    shown = with_api_trouble(status, "rayclusters is forbidden")
    assert shown.message == "2 workers; a call of the Kubernetes API fails: rayclusters is forbidden"
    assert without_api_trouble(shown) == status
    assert without_api_trouble(status) == status
