"""Conditions, the merge patch of a reconcile, and what is held back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.builders import NOW, begun, make_progress, merge

from finetune_operator.api.v1alpha1 import ConditionType, FinetuneJobStatus, Phase, Reason, dump
from finetune_operator.status import condition_is_true, progress_status, set_condition, status_patch, throttle_progress
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
    patch = status_patch(old, new)
    stored: Any = merge(dump(old), patch or {})
    assert FinetuneJobStatus.model_validate(stored) == new
    assert {key: value for key, value in stored.items() if value != {}} == {
        key: value for key, value in dump(new).items() if value != {}
    }


@given(statuses)
def test_equal_statuses_need_no_patch(status: FinetuneJobStatus) -> None:
    assert status_patch(status, status.model_copy()) is None


def test_the_patch_names_only_what_changes() -> None:
    old = begun()
    new = old.model_copy(update={"phase": Phase.RUNNING, "output": None})
    assert status_patch(old, new) == {"phase": "Running", "output": None}


def test_times_are_written_in_utc_with_seconds() -> None:
    assert dump(begun(start_time=NOW.replace(microsecond=987654)))["startTime"] == "2026-01-02T03:04:05Z"


def test_progress_shows_four_digits_and_a_percentage() -> None:
    shown = dump(progress_status(make_progress(epoch=1.23456789)))
    assert (shown["display"], shown["loss"], shown["epoch"]) == ("50%", 2.346, 1.235)
    assert (shown["hosts"], shown["backend"]) == (["pod-a", "pod-b"], "gloo")


def reported(seconds: float, percent: int) -> FinetuneJobStatus:
    time = (NOW + timedelta(seconds=seconds)).isoformat()
    return begun(Phase.RUNNING, progress=progress_status(make_progress(lastReportTime=time, percent=percent, step=int(seconds))))


@pytest.mark.parametrize(
    ("seconds", "percent", "written"),
    [(4, 51, False), (5, 51, True), (29, 50, False), (30, 50, True), (4, 60, False)],
)
def test_progress_alone_is_written_each_5_s_with_a_percent_and_each_30_s_without(
    seconds: int, percent: int, written: bool
) -> None:
    old, new = reported(0, 50), reported(seconds, percent)
    assert throttle_progress(old, new) == (new if written else old)


def test_progress_goes_along_with_any_other_change_at_once() -> None:
    old = reported(0, 50)
    new = reported(1, 50).model_copy(update={"message": "other"})
    assert throttle_progress(old, new) == new


def test_the_first_progress_is_written_at_once() -> None:
    new = reported(0, 1)
    assert throttle_progress(begun(Phase.RUNNING), new) == new
