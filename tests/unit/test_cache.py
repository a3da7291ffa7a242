"""What the cache keeps, and what it lets go."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from tests.support.builders import NAMESPACE

from finetune_operator.clients.cache import DELETED_KEPT, Cache, job_of

KEY = (NAMESPACE, "p")


def obj(version: int | str = 1, *, name: str = "p", uid: str = "u", job: str | None = "demo", **metadata: Any) -> dict[str, Any]:
    labels = {"llmonray.dev/finetunejob": job} if job else {}
    known = {"namespace": NAMESPACE, "name": name, "uid": uid, "resourceVersion": str(version), "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": known | metadata, "spec": {"v": version}, "status": {}}


def names(cache: Cache, job: str = "demo") -> list[str]:
    return [found["metadata"]["name"] for found in cache.of_job("pods", (NAMESPACE, job))]


def test_an_object_is_found_by_name_and_by_job() -> None:
    cache = Cache()
    assert cache.put("pods", obj())
    assert cache.put("pods", obj(name="a"))
    assert cache.put("pods", obj(name="x", job=None))
    found = cache.get("pods", KEY)
    assert found is not None
    assert found["spec"] == {"v": 1}
    assert names(cache) == ["a", "p"]
    assert cache.of_job("pods", ("other", "demo")) == []
    assert cache.keys("pods") == {(NAMESPACE, "a"), KEY, (NAMESPACE, "x")}
    assert cache.get("rayclusters", KEY) is None


def test_nothing_older_or_equal_replaces_what_is_kept() -> None:
    cache = Cache()
    assert cache.put("pods", obj(10))
    assert not cache.put("pods", obj(10))
    assert not cache.put("pods", obj(9))
    assert cache.put("pods", obj(11))
    assert not cache.put("pods", obj(10))


def test_versions_are_numbers_and_not_words() -> None:
    cache = Cache()
    cache.put("pods", obj(9))
    assert cache.put("pods", obj(10))


def test_a_newer_object_of_the_same_name_replaces_the_old_one() -> None:
    cache = Cache()
    cache.put("pods", obj(10))
    assert cache.put("pods", obj(13, uid="new"))
    cache.drop("pods", obj(12))
    assert cache.get("pods", KEY) is not None, "the deletion was about the old object"
    cache.drop("pods", obj(14, uid="new"))
    assert cache.get("pods", KEY) is None
    assert names(cache) == []


def test_deleting_what_is_not_known_is_no_error() -> None:
    cache = Cache()
    cache.drop("pods", obj())
    assert cache.keys("pods") == set()


def apply_list(cache: Cache, version: int, *objects: dict[str, Any], namespace: str | None = None) -> None:
    """A LIST of one page, and its end."""
    for raw in objects:
        cache.put("pods", raw)
    cache.prune("pods", {raw["metadata"]["uid"] for raw in objects}, version, namespace)


def test_a_list_takes_away_what_had_gone_before_it_and_nothing_that_came_after() -> None:
    cache = Cache()
    cache.put("pods", obj(1, name="gone", uid="g"))
    cache.put("pods", obj(1, name="kept", uid="k"))
    cache.put("pods", obj(5, name="came-meanwhile", uid="c"))
    apply_list(cache, 4, obj(3, name="kept", uid="k"), obj(2, name="new", uid="n"))
    assert names(cache) == ["came-meanwhile", "kept", "new"]
    kept = cache.get("pods", (NAMESPACE, "kept"))
    assert kept is not None
    assert kept["metadata"]["resourceVersion"] == "3"


def test_a_list_of_one_namespace_says_nothing_about_another() -> None:
    cache = Cache()
    cache.put("pods", obj(1))
    cache.put("pods", obj(1, uid="o", namespace="other"))
    apply_list(cache, 9, namespace="other")
    assert cache.keys("pods") == {KEY}


def test_a_list_does_not_set_back_what_an_event_has_brought() -> None:
    cache = Cache()
    cache.put("pods", obj(7))
    apply_list(cache, 8, obj(6))
    found = cache.get("pods", KEY)
    assert found is not None
    assert found["spec"] == {"v": 7}


LISTED = 10
"""Version of the LIST. The pod "p" was there at version 3 and was changed at 8; what comes later is as each case says."""
HISTORIES: dict[str, tuple[list[tuple[str, dict[str, Any]]], str | None]] = {
    "changed": ([("put", obj(12))], "u"),
    "deleted": ([("drop", obj(12))], None),
    "changed and deleted": ([("put", obj(12)), ("drop", obj(13))], None),
    "made anew": ([("drop", obj(12)), ("put", obj(13, uid="new"))], "new"),
    "made anew and changed": ([("drop", obj(12)), ("put", obj(13, uid="new")), ("put", obj(14, uid="new"))], "new"),
    "made anew and deleted again": ([("drop", obj(12)), ("put", obj(13, uid="new")), ("drop", obj(14, uid="new"))], None),
    "label taken away and put back": ([("drop", obj(12)), ("put", obj(13))], "u"),
}
"""What happens to the pod after the LIST was read, as events; and the UID that is right in the end."""


@pytest.mark.parametrize("history", HISTORIES)
def test_whatever_the_order_of_events_and_list_the_end_is_what_is_true(history: str) -> None:
    """The events are in any order, too: answers of writes and of reads come beside those of the watch."""
    events, expected = HISTORIES[history]
    steps = [*events, ("put", obj(8)), ("end", {})]
    for order in itertools.permutations(steps):
        if order.index(("end", {})) < order.index(("put", obj(8))):
            continue  # a LIST ends after its pages
        cache = Cache()
        cache.put("pods", obj(3))
        for what, raw in order:
            if what == "put":
                cache.put("pods", raw)
            elif what == "drop":
                cache.drop("pods", raw)
            else:
                cache.prune("pods", {"u"}, LISTED)
        found = cache.get("pods", KEY)
        assert (found and found["metadata"]["uid"]) == expected, f"{history}: {order}"
        assert names(cache) == ["p"] * (expected is not None)


def test_an_object_that_went_before_the_list_is_gone_whatever_late_event_tells_of_it() -> None:
    cache = Cache()
    cache.put("pods", obj(3))
    apply_list(cache, LISTED)
    assert not cache.put("pods", obj(8))
    assert cache.keys("pods") == set()


def ended(**spec: Any) -> dict[str, Any]:
    raw = obj(name="demo", job=None, generation=2)
    return raw | {"spec": spec, "status": {"completionTime": "2026-01-01T00:00:00Z", "observedGeneration": 2}}


def test_an_ended_job_rests_unless_time_or_a_cluster_has_something_to_do_with_it() -> None:
    job = (NAMESPACE, "demo")
    cache = Cache()
    cache.put("finetunejobs", ended())
    assert cache.is_at_rest("finetunejobs", job)
    assert (cache.get("finetunejobs", job) or {})["status"]["observedGeneration"] == 2
    cache.put("rayclusters", obj(name="c", uid="c"))
    assert not cache.is_at_rest("finetunejobs", job)
    cache.drop("rayclusters", obj(2, name="c", uid="c"))
    assert cache.is_at_rest("finetunejobs", job)


@pytest.mark.parametrize(
    "raw",
    [ended(ttlSecondsAfterFinished=60), ended() | {"status": {}}, ended() | {"status": {"completionTime": "x"}}],
    ids=["time to live", "not ended", "spec changed since"],
)
def test_a_job_with_something_to_come_does_not_rest(raw: dict[str, Any]) -> None:
    cache = Cache()
    cache.put("finetunejobs", raw)
    assert not cache.is_at_rest("finetunejobs", (NAMESPACE, "demo"))


def test_an_object_that_changes_hands_leaves_its_former_job() -> None:
    cache = Cache()
    cache.put("pods", obj(1, job="one"))
    cache.put("pods", obj(2, job="two"))
    assert names(cache, "two") == ["p"]
    assert names(cache, "one") == []


def test_an_object_that_changed_hands_and_went_leaves_no_trace() -> None:
    cache = Cache()
    cache.put("pods", obj(1, job="one"))
    cache.put("pods", obj(2, job="two"))
    cache.drop("pods", obj(3, job="two"))
    assert names(cache, "two") == []
    assert names(cache, "one") == []


def test_bulky_parts_are_not_kept_and_the_object_given_is_not_touched() -> None:
    cache = Cache()
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": "x" * 1000, "a": "b"}
    raw = obj(managedFields=[{"manager": "kubectl"}], annotations=annotations)
    cache.put("pods", raw)
    kept = cache.get("pods", KEY)
    assert kept is not None
    assert "managedFields" not in kept["metadata"]
    assert kept["metadata"]["annotations"] == {"a": "b"}
    assert "managedFields" in raw["metadata"]
    assert len(raw["metadata"]["annotations"]) == 2


def test_only_a_label_says_which_job_an_object_belongs_to() -> None:
    assert job_of(obj(job="demo")) == (NAMESPACE, "demo")
    assert job_of(obj(job=None)) is None
    raw = obj()
    del raw["metadata"]["labels"]
    assert job_of(raw) is None


def test_deleted_pods_are_remembered_as_they_last_were_and_the_oldest_are_forgotten() -> None:
    cache = Cache()
    for number in range(DELETED_KEPT + 2):
        pod = obj(number + 1, name=f"pod-{number}", uid=f"uid-{number}")
        cache.put("pods", pod)
        cache.drop("pods", pod | {"status": {"phase": "Failed"}})
    kept = cache.deleted_pods((NAMESPACE, "demo"))
    assert [pod["metadata"]["name"] for pod in kept][:2] == ["pod-2", "pod-3"]
    assert len(kept) == DELETED_KEPT
    assert {pod["status"]["phase"] for pod in kept} == {"Failed"}
    assert names(cache) == []
    assert cache.deleted_pods((NAMESPACE, "other")) == []
