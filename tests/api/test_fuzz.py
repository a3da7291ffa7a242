"""The API server, the offline check and the operator agree on thousands of objects drawn from the schema.

``FUZZ_OBJECTS`` is how many objects of each kind (right, and with one mistake), ``FUZZ_SEED`` chooses them.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import importlib
import inspect
import itertools
import json
import os
import pkgutil
import resource
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.support.api_client import Answer, Api, connected
from tests.support.builders import KEYS, NOW, SETTINGS, finished_progress, make_cluster, make_observed, make_pod, make_progress
from tests.support.generate import Object, draw_job, leaves, nodes, used
from tests.support.kubectl import Kubectl
from tests.support.mutate import mutate
from tests.support.shrink import shrink

from finetune_client.validate import check_object
from finetune_operator import desired
from finetune_operator.api.checks import refusals
from finetune_operator.api.policy import Policy
from finetune_operator.api.schema import crd_schema, violations
from finetune_operator.api.v1alpha1 import FinetuneJob, Reason, dump
from finetune_operator.decide import decide
from finetune_operator.desired import naming
from finetune_operator.observed import Observed

OBJECTS = int(os.environ.get("FUZZ_OBJECTS", "250"))
SEED = os.environ.get("FUZZ_SEED", "1")
MANY = 5000
"""From so many objects on, every field and every rule must have occurred; with fewer it is left to chance."""
BATCH = 50
EXPLAINED = 10
"""How many objects are shown when something is wrong."""
GROWTH_BYTES = 16 << 20
"""By how much the process may be larger at the end than in the middle: what is left unused in the allocator's pages."""

STATM = Path("/proc/self/statm")
FIELDS = leaves(crd_schema()["properties"]["spec"], ".spec")
STATUS = crd_schema()["properties"]["status"]


@dataclass(frozen=True)
class Case:
    """An object to be judged."""

    seed: str
    what: str
    raw: Object

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.what}:\n{json.dumps(self.raw, ensure_ascii=False)[:5000]}"


@dataclass
class Report:
    """What the run has seen; of the objects themselves only those that something is wrong with."""

    verdicts: collections.Counter[tuple[str, bool]] = field(default_factory=collections.Counter)
    """(kind of mistake, whether the API server took it) → how often."""
    split: collections.Counter[str] = field(default_factory=collections.Counter)
    """What was wrong with the objects on which the offline check and the API server disagree."""
    crashes: collections.Counter[str] = field(default_factory=collections.Counter)
    """What the operator stumbles over, in objects that the API server takes."""
    smallest: dict[tuple[str, str], Case] = field(default_factory=dict)
    """The smallest object of each of these two, for each kind of mistake."""
    explanation: str = ""
    """What is said of these, made smaller still."""
    fields: set[str] = field(default_factory=set)
    """Paths that were set in objects that were taken."""
    rules: set[str] = field(default_factory=set)
    """Messages of rules that were given."""
    growth: int = 0
    """Resident bytes at the end, less those in the middle."""

    def keep(self, kind: str, case: Case) -> None:
        """Keep the object if it is the smallest of its kind so far."""
        key = kind, case.what.partition(" ")[0]
        if key not in self.smallest or len(str(case.raw)) < len(str(self.smallest[key].raw)):
            self.smallest[key] = case

    def taken(self, *, right: bool) -> float:
        """Share that the API server took of the objects that are right, or of those with a mistake."""
        chosen = [(taken, count) for (kind, taken), count in self.verdicts.items() if (kind == "drawn") == right]
        return sum(count for taken, count in chosen if taken) / sum(count for _, count in chosen)


def resident_bytes() -> int:
    """Size of this process in memory; 0 where that cannot be read."""
    gc.collect()
    return int(STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize() if STATM.exists() else 0


def rules() -> set[str]:
    """The messages of all rules that can be broken in one object, without an older one."""
    found = [rule for _, node in nodes(crd_schema()) for rule in node.get("x-kubernetes-validations", ())]
    return {rule["message"] for rule in found if "oldSelf" not in rule["rule"]}


RULES = rules()


def draw_cases(number: int) -> Iterator[Case]:
    """One object that is right, and another with a mistake."""
    seed = f"{SEED}:{number}"
    yield Case(seed, "drawn", draw_job(seed))
    yield Case(seed, *mutate(Random(seed), draw_job(f"{seed}:mistake")))


def builders() -> dict[str, Callable[..., Any]]:
    """Every ``build_*`` of the modules that make objects."""
    modules = [importlib.import_module(f"{desired.__name__}.{module.name}") for module in pkgutil.iter_modules(desired.__path__)]
    members = [member for module in modules for member in inspect.getmembers(module, inspect.isfunction)]
    return {name: function for name, function in members if name.startswith("build_")}


BUILDERS = builders()


def build_all(job: FinetuneJob) -> None:
    """Build every object of a job; each must be JSON."""
    known = {"job": job, "attempt": 1, "settings": SETTINGS, "keys": KEYS, "now": NOW}
    known |= {"status": job.status, "metadata": dump(job.metadata)}
    for function in BUILDERS.values():
        built = function(**{name: known[name] for name in inspect.signature(function).parameters})
        json.dumps(built, allow_nan=False)


def operate(stored: Object) -> None:
    """What the operator does with an object that the API server has taken: a whole life, and all that it builds."""
    job = FinetuneJob.model_validate(stored)
    refusals(job, Policy())
    cluster = make_cluster(name=naming.cluster_name(job, 1), owner_uid=job.metadata.uid)
    lost = make_pod(reason=Reason.UNSCHEDULABLE, message="no node")
    life = [
        Observed(),
        Observed(),
        make_observed(cluster=make_cluster(owner_uid=job.metadata.uid, head_ready=False), pods=(lost,)),
        make_observed("Missing", cluster=cluster),
        make_observed("RUNNING", cluster=cluster, progress=make_progress()),
        make_observed("SUCCEEDED", cluster=cluster, progress=make_progress(**finished_progress())),
        Observed(),
    ]
    for observed in life:
        status = decide(job, observed, NOW).status
        assert list(violations(STATUS, dump(status))) == []
        job = job.model_copy(update={"status": status})
        FinetuneJob.model_validate(stored | {"status": dump(status)})
    build_all(job)


def crash(stored: Object) -> tuple[str, str] | None:
    """What the operator stumbles over, if it does, in a line and with the traceback."""
    try:
        operate(stored)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not come out of a reconcile
        return " ".join(repr(error).split())[:150], traceback.format_exc(limit=-4)
    return None


def check(case: Case) -> list[Any]:
    """What the offline check finds; that it does not understand an object must not come out as an error of Python."""
    try:
        return list(check_object(case.raw))
    except Exception as error:
        raise AssertionError(f"the offline check fails on {case}") from error


class Fuzz:
    """One run: draws, asks both sides, and lets the operator work on what was taken."""

    def __init__(self, server: Api) -> None:
        self.server = server
        self.report = Report()

    async def run(self) -> None:
        """All objects, batch by batch, so that none is held longer than its batch."""
        middle = 0
        for first in range(0, OBJECTS, BATCH):
            await self._batch(range(first, min(first + BATCH, OBJECTS)))
            if first <= OBJECTS // 2 < first + BATCH:
                middle = resident_bytes()
        self.report.growth = resident_bytes() - middle

    async def _batch(self, numbers: range) -> None:
        cases = [case for number in numbers for case in draw_cases(number)]
        answers = asyncio.gather(*(self.server.offer(case.raw) for case in cases))
        findings = await asyncio.to_thread(lambda: [check(case) for case in cases])
        for case, found, answer in zip(cases, findings, await answers, strict=True):
            self._judge(case, found, answer)

    def _judge(self, case: Case, findings: list[Any], answer: Answer) -> None:
        report = self.report
        report.verdicts[case.what.partition(" ")[0], answer.taken] += 1
        report.rules |= {rule for rule in RULES - report.rules if rule in answer.message}
        if answer.taken == bool(findings):
            report.split[case.what] += 1
            report.keep("split", case)
        if answer.taken:
            report.fields |= FIELDS.intersection(used(case.raw["spec"], ".spec"))
            if failure := crash(answer.body):
                report.crashes[failure[0]] += 1
                report.keep("crash", case)

    async def explain(self) -> None:
        """Shrink what is wrong, and have all sides heard on it."""
        for (kind, _), case in itertools.islice(self.report.smallest.items(), EXPLAINED):
            first = await self.server.offer(case.raw)
            fixed = {key: case.raw[key] for key in ("apiVersion", "kind") if key in case.raw}
            rest = {key: value for key, value in case.raw.items() if key not in fixed}

            async def fails(part: Object, kind: str = kind, fixed: Object = fixed, taken: bool = first.taken) -> bool:
                answer = await self.server.offer(fixed | part)
                wrong = crash(answer.body) if kind == "crash" else answer.taken == bool(check_object(fixed | part))
                return bool(answer.taken == taken and wrong)

            small = Case(case.seed, case.what, fixed | await shrink(rest, fails))
            answer = await self.server.offer(small.raw)
            failure = crash(answer.body) if answer.taken else None
            says = f"API server: {answer.message or 'takes it'}\noffline check: {check_object(small.raw) or 'takes it'}"
            self.report.explanation += f"\n{small}\n{says}\n{failure[1] if failure else ''}"


@pytest.fixture(scope="module")
def report(api: Kubectl) -> Report:
    """What one run has seen."""

    async def run() -> Report:
        async with connected(api) as server:
            fuzz = Fuzz(server)
            await fuzz.run()
            await fuzz.explain()
            return fuzz.report

    return asyncio.run(run())


def complaint(report: Report, wrong: collections.Counter[str]) -> str:
    return f"{wrong.total()} of {2 * OBJECTS} objects, FUZZ_SEED={SEED}: {wrong.most_common(20)}\n{report.explanation}"


def test_the_offline_check_says_what_the_api_server_says(report: Report) -> None:
    assert not report.split, complaint(report, report.split)


def test_the_operator_works_on_whatever_the_api_server_takes(report: Report) -> None:
    assert not report.crashes, complaint(report, report.crashes)


@pytest.mark.skipif(not STATM.exists(), reason="the size of the process is read from /proc")
def test_memory_does_not_grow_with_the_number_of_objects(report: Report) -> None:
    print(f"{report.growth / 2**20:.1f} MiB more after {OBJECTS} of {2 * OBJECTS} objects")
    assert report.growth < GROWTH_BYTES


def test_the_objects_are_worth_asking_about(report: Report) -> None:
    """Most that should be right are, many mistakes are found, and nothing is left out."""
    missing, silent = FIELDS - report.fields, RULES - report.rules
    print(f"FUZZ_SEED={SEED}: {sorted(report.verdicts.items())}\nfields never set: {missing}\nrules never broken: {silent}")
    assert report.taken(right=True) >= 0.6
    assert report.taken(right=False) <= 0.6
    if OBJECTS >= MANY:
        assert not missing, missing
        assert not silent, silent
