"""What a job needs is looked for by name, and no more often or widely than allowed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support import virtual_time
from tests.support.builders import SETTINGS, make_job
from tests.support.http_server import a_moment

from finetune_operator.api.reasons import Problem
from finetune_operator.api.v1alpha1 import FinetuneJob, Reason
from finetune_operator.clients.kube import Kind
from finetune_operator.errors import KubeError, KubeUnavailableError
from finetune_operator.preflight import LONGEST_PAUSE_SECONDS, Preflight
from finetune_operator.shared_reads import NODES_SECONDS, READS_AT_ONCE, SharedReads

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

    async def names(self, kind: Kind, namespace: str) -> frozenset[str]:
        self.asked.append(f"all {kind.plural} of {namespace}")
        if error := self.refuses.get(f"list {kind.plural}"):
            raise error
        return frozenset(name for plural, name in self.there if plural == kind.plural)

    async def list(self, kind: Kind) -> list[Object]:
        self.asked.append(kind.plural)
        await a_moment()
        if error := self.refuses.get(kind.plural):
            raise error
        return self.nodes


def node(**gpus: str) -> Object:
    return {"status": {"allocatable": {"cpu": "4", **{f"gpu.intel.com/{name}": count for name, count in gpus.items()}}}}


def preflight(kube: Kube, **settings: Any) -> Preflight:
    return Preflight(SharedReads(kube), SETTINGS.model_copy(update=settings))  # type: ignore[arg-type]


async def missing_of(looks: Preflight, job: FinetuneJob) -> tuple[Problem, ...]:
    return (await looks.observe(job)).missing


async def test_everything_that_is_missing_is_named_at_once_with_its_key() -> None:
    spec = {
        "dataset": {"configMap": {"name": "rows"}, "persistentVolumeClaim": None},
        "model": {"cache": {"persistentVolumeClaim": {"claimName": "hub"}}},
        "output": {"size": None, "persistentVolumeClaim": {"claimName": "out"}},
        "head": {"priorityClassName": "low"},
        "workers": {"priorityClassName": "high"},
    }
    found = await missing_of(preflight(Kube()), make_job(spec=spec))
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
    assert await missing_of(preflight(kube), make_job(spec=spec)) == ()


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
    (missing,) = await missing_of(preflight(kube), make_job("gpu_i915"))
    assert missing.reason is Reason.NO_SUCH_RESOURCE
    assert says in missing.message


async def test_more_gpus_than_any_node_has_are_told_with_the_most_that_one_has() -> None:
    kube = Kube()
    kube.nodes = [node(i915="1"), node(i915="2")]
    (missing,) = await missing_of(preflight(kube), make_job("gpu_i915", spec=gpus(4)))
    assert "the most that one has is 2" in missing.message
    assert await missing_of(preflight(kube), make_job("gpu_i915", spec=gpus(2))) == ()


def gpus(count: int) -> Object:
    return {"config": {"Training": {"resources_per_worker": {"GPU": count}}}}


async def test_many_waiting_jobs_make_one_list_of_nodes_in_a_while() -> None:
    kube, time = Kube(), [0.0]
    kube.nodes = [node()]
    looks = Preflight(SharedReads(kube, clock=lambda: time[0]), SETTINGS)  # type: ignore[arg-type]
    for _ in range(100):
        await missing_of(looks, make_job("gpu_i915"))
    assert kube.asked.count("nodes") == 1
    kube.nodes = [node(i915="4")]
    time[0] = NODES_SECONDS
    assert await missing_of(looks, make_job("gpu_i915")) == ()


async def test_jobs_that_come_at_once_share_one_list_of_nodes() -> None:
    kube = Kube()
    kube.nodes = [node(i915="1")]
    looks = preflight(kube)
    assert set(await asyncio.gather(*(missing_of(looks, make_job("gpu_i915")) for _ in range(20)))) == {()}
    assert kube.asked == ["nodes"]


async def test_a_list_of_nodes_that_got_no_answer_is_asked_for_again() -> None:
    kube = Kube()
    looks = preflight(kube)
    kube.refuses = {"nodes": KubeUnavailableError(503, "overloaded")}
    with pytest.raises(KubeUnavailableError):
        await missing_of(looks, make_job("gpu_i915"))
    kube.refuses.clear()
    kube.nodes = [node()]
    assert await missing_of(looks, make_job("gpu_i915"))


async def test_a_job_on_cpus_looks_at_no_node() -> None:
    kube = Kube()
    await missing_of(preflight(kube), make_job())
    assert kube.asked == []


@pytest.mark.parametrize("settings", [{"namespaces": ("team",)}, {"check_nodes": False}], ids=["some namespaces", "switched off"])
async def test_nodes_are_not_looked_at_where_that_is_not_wanted(settings: Object) -> None:
    kube = Kube()
    assert await missing_of(preflight(kube, **settings), make_job("gpu_i915")) == ()
    assert "nodes" not in kube.asked


async def test_an_install_of_some_namespaces_looks_at_nothing_of_the_whole_cluster() -> None:
    kube = Kube()
    job = make_job(spec={"workers": {"priorityClassName": "high"}})
    assert await missing_of(preflight(kube, namespaces=("team",)), job) == ()
    assert kube.asked == []


async def test_what_may_not_be_looked_at_is_taken_to_be_there() -> None:
    kube = Kube()
    kube.refuses = {plural: KubeError(403, "forbidden") for plural in ("nodes", "priorityclasses")}
    assert await missing_of(preflight(kube), make_job("gpu_i915", spec={"workers": {"priorityClassName": "high"}})) == ()


async def test_an_api_server_that_does_not_answer_is_no_verdict() -> None:
    kube = Kube()
    kube.refuses = {"priorityclasses": KubeUnavailableError(503, "overloaded")}
    with pytest.raises(KubeUnavailableError):
        await missing_of(preflight(kube), make_job(spec={"workers": {"priorityClassName": "high"}}))


async def test_a_refusal_of_another_kind_is_no_verdict_either() -> None:
    kube = Kube()
    kube.refuses = {"nodes": KubeError(400, "bad request")}
    with pytest.raises(KubeError, match="bad request"):
        await missing_of(preflight(kube), make_job("gpu_i915"))


async def test_a_cluster_that_has_no_node_yet_may_get_some() -> None:
    assert await missing_of(preflight(Kube()), make_job("gpu_i915")) == ()


def waiting_for_claim(name: str, number: int = 0) -> FinetuneJob:
    spec = {"output": {"size": None, "persistentVolumeClaim": {"claimName": name}}}
    return make_job(metadata={"name": f"job-{number}"}, spec=spec)


async def test_jobs_that_wait_for_claims_of_a_namespace_share_one_list_of_their_names() -> None:
    kube = Kube()
    looks = preflight(kube)
    for number in range(100):
        assert await missing_of(looks, waiting_for_claim(f"claim-{number}", number))
    assert kube.asked == ["all persistentvolumeclaims of team"]


async def test_claims_that_may_not_be_listed_are_looked_for_by_name() -> None:
    kube = Kube()
    kube.refuses = {"list persistentvolumeclaims": KubeError(403, "forbidden")}
    kube.there = {("persistentvolumeclaims", "out")}
    assert await missing_of(preflight(kube), waiting_for_claim("out")) == ()
    assert await missing_of(preflight(kube), waiting_for_claim("other"))


async def test_a_job_that_waits_is_looked_at_less_and_less_until_something_changes() -> None:
    looks = preflight(Kube())
    pauses = [(await looks.observe(waiting_for_claim("out"))).look_again for _ in range(8)]
    for number, pause in enumerate(pauses):
        assert pause == pytest.approx(min(5 * 2**number, LONGEST_PAUSE_SECONDS), rel=0.25)
    assert len(set(pauses)) == len(pauses), "jobs that began together do not come together"
    assert (await looks.observe(waiting_for_claim("another"))).look_again == pytest.approx(5, rel=0.25)


@pytest.mark.slow
async def test_a_thousand_jobs_that_each_wait_for_something_else_make_few_requests_at_any_time() -> None:
    kube, time = Kube(), [0.0]
    looks = Preflight(SharedReads(kube, clock=lambda: time[0]), SETTINGS)  # type: ignore[arg-type]
    jobs = [
        make_job(metadata={"name": f"job-{number}"}, spec={"dataset": {"configMap": {"name": f"rows-{number}"}, **NO_CLAIM}})
        for number in range(1000)
    ]
    for job in jobs:
        await looks.observe(job)
    asked = []
    while time[0] < 400:
        time[0] += 4
        kube.asked.clear()
        for job in jobs:
            await looks.observe(job)
        asked += kube.asked
        assert len(kube.asked) <= READS_AT_ONCE
    assert len(set(asked)) == 1000, "each is looked at again"


NO_CLAIM: Object = {"persistentVolumeClaim": None}


def test_a_claim_that_appears_wakes_its_job_within_ten_seconds_however_long_it_has_waited() -> None:
    woken: list[tuple[str, str]] = []

    async def scenario() -> None:
        kube = Kube()
        looks = Preflight(SharedReads(kube, clock=virtual_time.now), SETTINGS, clock=virtual_time.now)  # type: ignore[arg-type]
        lookout = asyncio.create_task(looks.look_out(woken.append))
        for number in range(100):
            await looks.observe(waiting_for_claim(f"claim-{number}", number))
        await virtual_time.pass_time(100)
        assert woken == []
        kube.there = {("persistentvolumeclaims", "claim-7")}
        await virtual_time.pass_time(10)
        assert set(woken) == {("team", "job-7")}
        await looks.observe(waiting_for_claim("claim-7", 7))
        woken.clear()
        await virtual_time.pass_time(60)
        assert woken == [], "it waits no longer"
        lookout.cancel()

    virtual_time.run(scenario())
