"""What the cache keeps, and what it lets go."""

from __future__ import annotations

from typing import Any

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


def test_a_new_object_of_the_same_name_replaces_the_old_one_whatever_its_version() -> None:
    cache = Cache()
    cache.put("pods", obj(10))
    assert cache.put("pods", obj(5, uid="new"))
    cache.drop("pods", obj(11))
    assert cache.get("pods", KEY) is not None, "the deletion was about the old object"
    cache.drop("pods", obj(12, uid="new"))
    assert cache.get("pods", KEY) is None
    assert names(cache) == []


def test_deleting_what_is_not_known_is_no_error() -> None:
    cache = Cache()
    cache.drop("pods", obj())
    assert cache.keys("pods") == set()


def test_a_list_takes_away_what_had_gone_before_it_and_nothing_that_came_after() -> None:
    cache = Cache()
    cache.put("pods", obj(1, name="gone"))
    cache.put("pods", obj(1, name="kept"))
    known = cache.keys("pods")
    cache.put("pods", obj(5, name="came-meanwhile"))
    cache.prune("pods", [obj(3, name="kept"), obj(2, name="new")], known)
    assert names(cache) == ["came-meanwhile", "kept", "new"]
    kept = cache.get("pods", (NAMESPACE, "kept"))
    assert kept is not None
    assert kept["metadata"]["resourceVersion"] == "3"


def test_a_list_does_not_set_back_what_an_event_has_brought() -> None:
    cache = Cache()
    cache.put("pods", obj(7))
    cache.prune("pods", [obj(6)], cache.keys("pods"))
    found = cache.get("pods", KEY)
    assert found is not None
    assert found["spec"] == {"v": 7}


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
