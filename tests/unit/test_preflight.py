"""What a job needs is looked for by name, and no more often or widely than allowed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.builders import SETTINGS, make_job
from tests.support.http_server import a_moment

from finetune_operator.api.v1alpha1 import Reason
from finetune_operator.clients.kube import Kind
from finetune_operator.errors import KubeError, KubeUnavailableError
from finetune_operator.preflight import NODES_SECONDS, Preflight

Object = dict[str, Any]
I915 = "gpu.intel.com/i915"


class Kube:
    """The API server as far as a look needs it."""

    def __init__(self) -> None:
        self.there: set[tuple[str, str]] = set()
        """(plural, name)."""
        self.nodes: list[Object] = []
        self.asked: list[str] = []
        self.refuses: dict[str, KubeError] = {}

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        self.asked.append(f"{kind.plural} {namespace}/{name}")
        if error := self.refuses.get(kind.plural):
            raise error
        return {} if (kind.plural, name) in self.there else None

    async def list(self, kind: Kind) -> list[Object]:
        self.asked.append(kind.plural)
        await a_moment()
        if error := self.refuses.get(kind.plural):
            raise error
        return self.nodes


def node(**gpus: str) -> Object:
    return {"status": {"allocatable": {"cpu": "4", **{f"gpu.intel.com/{name}": count for name, count in gpus.items()}}}}


def preflight(kube: Kube, **settings: Any) -> Preflight:
    return Preflight(kube, SETTINGS.model_copy(update=settings))  # type: ignore[arg-type]


async def test_everything_that_is_missing_is_named_at_once_with_its_key() -> None:
    spec = {
        "dataset": {"configMap": {"name": "rows"}, "persistentVolumeClaim": None},
        "model": {"cache": {"persistentVolumeClaim": {"claimName": "hub"}}},
        "output": {"size": None, "persistentVolumeClaim": {"claimName": "out"}},
        "head": {"priorityClassName": "low"},
        "workers": {"priorityClassName": "high"},
    }
    found = await preflight(Kube()).missing(make_job(spec=spec))
    assert [missing.message for missing in found] == [
        "PersistentVolumeClaim 'out' (spec.output.persistentVolumeClaim) does not exist in namespace 'team'",
        "PersistentVolumeClaim 'hub' (spec.model.cache.persistentVolumeClaim) does not exist in namespace 'team'",
        "ConfigMap 'rows' (spec.dataset.configMap) does not exist in namespace 'team'",
        "PriorityClass 'low' (spec.head.priorityClassName) does not exist",
        "PriorityClass 'high' (spec.workers.priorityClassName) does not exist",
    ]
    assert {missing.reason for missing in found} == {
        Reason.CLAIM_NOT_FOUND, Reason.CONFIG_MAP_NOT_FOUND, Reason.PRIORITY_CLASS_NOT_FOUND,
    }  # fmt: skip


async def test_nothing_is_said_about_what_is_there() -> None:
    kube = Kube()
    kube.there = {("persistentvolumeclaims", "out"), ("priorityclasses", "high")}
    spec = {"output": {"size": None, "persistentVolumeClaim": {"claimName": "out"}}, "workers": {"priorityClassName": "high"}}
    assert await preflight(kube).missing(make_job(spec=spec)) == ()


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([node(), node()], f"no node offers {I915}: 1 for a worker"),
        ([node(i915="0")], "none has any"),
        ([node(xe="4")], "none has any"),
    ],
    ids=["no GPUs", "none allocatable", "another driver"],
)
async def test_a_gpu_that_no_node_offers_is_named(nodes: list[Object], says: str) -> None:
    kube = Kube()
    kube.nodes = nodes
    (missing,) = await preflight(kube).missing(make_job("gpu_i915"))
    assert missing.reason is Reason.NO_SUCH_RESOURCE
    assert says in missing.message


async def test_more_gpus_than_any_node_has_are_told_with_the_most_that_one_has() -> None:
    kube = Kube()
    kube.nodes = [node(i915="1"), node(i915="2")]
    (missing,) = await preflight(kube).missing(make_job("gpu_i915", spec=gpus(4)))
    assert "the most that one has is 2" in missing.message
    assert await preflight(kube).missing(make_job("gpu_i915", spec=gpus(2))) == ()


def gpus(count: int) -> Object:
    return {"config": {"Training": {"resources_per_worker": {"GPU": count}}}}


async def test_many_waiting_jobs_make_one_list_of_nodes_in_a_while() -> None:
    kube, time = Kube(), [0.0]
    kube.nodes = [node()]
    looks = Preflight(kube, SETTINGS, clock=lambda: time[0])  # type: ignore[arg-type]
    for _ in range(100):
        await looks.missing(make_job("gpu_i915"))
    assert kube.asked.count("nodes") == 1
    kube.nodes = [node(i915="4")]
    time[0] = NODES_SECONDS
    assert await looks.missing(make_job("gpu_i915")) == ()


async def test_jobs_that_come_at_once_share_one_list_of_nodes() -> None:
    kube = Kube()
    kube.nodes = [node(i915="1")]
    looks = preflight(kube)
    assert set(await asyncio.gather(*(looks.missing(make_job("gpu_i915")) for _ in range(20)))) == {()}
    assert kube.asked == ["nodes"]


async def test_a_list_of_nodes_that_got_no_answer_is_asked_for_again() -> None:
    kube = Kube()
    looks = preflight(kube)
    kube.refuses = {"nodes": KubeUnavailableError(503, "overloaded")}
    with pytest.raises(KubeUnavailableError):
        await looks.missing(make_job("gpu_i915"))
    kube.refuses.clear()
    kube.nodes = [node()]
    assert await looks.missing(make_job("gpu_i915"))


async def test_a_job_on_cpus_looks_at_no_node() -> None:
    kube = Kube()
    await preflight(kube).missing(make_job())
    assert kube.asked == []


@pytest.mark.parametrize("settings", [{"namespaces": ("team",)}, {"check_nodes": False}], ids=["some namespaces", "switched off"])
async def test_nodes_are_not_looked_at_where_that_is_not_wanted(settings: Object) -> None:
    kube = Kube()
    assert await preflight(kube, **settings).missing(make_job("gpu_i915")) == ()
    assert "nodes" not in kube.asked


async def test_an_install_of_some_namespaces_looks_at_nothing_of_the_whole_cluster() -> None:
    kube = Kube()
    job = make_job(spec={"workers": {"priorityClassName": "high"}})
    assert await preflight(kube, namespaces=("team",)).missing(job) == ()
    assert kube.asked == []


async def test_what_may_not_be_looked_at_is_taken_to_be_there() -> None:
    kube = Kube()
    kube.refuses = {plural: KubeError(403, "forbidden") for plural in ("nodes", "priorityclasses")}
    assert await preflight(kube).missing(make_job("gpu_i915", spec={"workers": {"priorityClassName": "high"}})) == ()


async def test_an_api_server_that_does_not_answer_is_no_verdict() -> None:
    kube = Kube()
    kube.refuses = {"priorityclasses": KubeUnavailableError(503, "overloaded")}
    with pytest.raises(KubeUnavailableError):
        await preflight(kube).missing(make_job(spec={"workers": {"priorityClassName": "high"}}))


async def test_a_refusal_of_another_kind_is_no_verdict_either() -> None:
    kube = Kube()
    kube.refuses = {"nodes": KubeError(400, "bad request")}
    with pytest.raises(KubeError, match="bad request"):
        await preflight(kube).missing(make_job("gpu_i915"))


async def test_a_cluster_that_has_no_node_yet_may_get_some() -> None:
    assert await preflight(Kube()).missing(make_job("gpu_i915")) == ()
