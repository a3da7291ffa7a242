"""Names of a hundred thousand Ray clusters: valid, short enough, no two alike, and the same in every release."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import string
from collections.abc import Sequence
from random import Random
from typing import TypeVar

import pytest
from tests.support.builders import DATA, make_job

from finetune_operator.constants import MAX_JOB_NAME
from finetune_operator.desired import naming

pytestmark = pytest.mark.sampled(4)

GOLDEN = DATA / "golden_names.json"
COUNT = 100_000
EXAMPLES = 20
JOB_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
UIDS = ("1f0c3a7e-5d1b-4c7e-9a35-2b6f8d9e0c11", "1f0c4a7e-5d1b-4c7e-9a35-2b6f8d9e0c11", "00001000-0000-4000-8000-000000000000")
ATTEMPTS = (1, 1, 2, 9, 10, 11, 99, 100, 999_999)

T = TypeVar("T")
Key = tuple[str, str, int]
"""Name and UID of a job, and the attempt."""


def pick(random: Random, options: Sequence[T]) -> T:
    """One of the options; of all that `Random` has, only ``random()`` is promised to stay as it is."""
    return options[int(random.random() * len(options))]


def draw_name(random: Random) -> str:
    """A name as a job may have it, often one that looks like the name of another job's cluster."""
    length = pick(random, (1, 2, 3, 5, 10, 39, 40, pick(random, range(1, MAX_JOB_NAME + 1))))
    body = "".join(pick(random, "abcdef012--") for _ in range(length))
    ending = pick(random, ("", "", "-1", "-11", "-1f0c3-1", "-1f0c3", "--b", "-b", "-00001-1", "-1f0c3-1-1f0c3-1"))
    return ("a" + body + ending)[-MAX_JOB_NAME:].lstrip(string.digits + "-").rstrip("-") or "a"


@functools.cache
def keys() -> list[Key]:
    """Different jobs and attempts; half of the jobs share one of three UIDs, which no real jobs do."""
    random, found = Random(20261124), dict[Key, None]()
    while len(found) < COUNT:
        digits = "".join(pick(random, "0123456789abcdef") for _ in range(32))
        own = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
        found[draw_name(random), pick(random, (own, pick(random, UIDS))), pick(random, ATTEMPTS)] = None
    return list(found)


@functools.cache
def cluster_names() -> list[str]:
    job, names = make_job(), []
    for name, uid, attempt in keys():
        metadata = job.metadata.model_copy(update={"name": name, "uid": uid})
        names.append(naming.cluster_name(job.model_copy(update={"metadata": metadata}), attempt))
    return names


@pytest.mark.slow
def test_the_names_drawn_are_names_that_jobs_may_have() -> None:
    names = [name for name, _, _ in keys()]
    assert all(JOB_NAME.fullmatch(name) and len(name) <= MAX_JOB_NAME for name in names)
    assert {len(name) for name in names} == set(range(1, MAX_JOB_NAME + 1))


@pytest.mark.slow
def test_every_cluster_name_is_valid_and_short_enough_for_kuberay() -> None:
    assert all(DNS_1035.fullmatch(name) and len(name) <= 53 for name in cluster_names())


@pytest.mark.slow
def test_a_cluster_name_tells_its_job_and_attempt() -> None:
    """So no two are alike: what can be taken apart again was put together in one way only."""
    for (name, uid, attempt), cluster in zip(keys(), cluster_names(), strict=True):
        assert cluster.rsplit("-", 2) == [name, uid.replace("-", "")[:5], str(attempt)]
    different = {(name, naming.short_uid(uid), attempt) for name, uid, attempt in keys()}
    assert len(set(cluster_names())) == len(different)


def test_cluster_names_are_those_of_the_first_release() -> None:
    """A running job finds its cluster by this name only; ``UPDATE_GOLDEN=1`` writes the file anew."""
    text = "\n".join(cluster_names())
    step = COUNT // EXAMPLES
    examples = [
        {"name": name, "uid": uid, "attempt": attempt, "cluster": cluster}
        for (name, uid, attempt), cluster in zip(keys()[::step], cluster_names()[::step], strict=True)
    ]
    found = {"count": COUNT, "sha256": hashlib.sha256(text.encode()).hexdigest(), "examples": examples}
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    assert found == json.loads(GOLDEN.read_text(encoding="utf-8"))
