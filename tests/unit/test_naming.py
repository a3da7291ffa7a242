"""Names: valid, short enough, each job's own, and never to change."""

from __future__ import annotations

import random
import re
import string
import uuid

import pytest
from tests.support.builders import KEYS, NOW, UID, begun, make_job, raw_job

from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.desired import events, naming
from finetune_operator.desired.config_map import config_name

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
DNS_1123 = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
SIZE = 10_000


def sample() -> list[FinetuneJob]:
    """Jobs with all kinds of names: short, long, ending in digits, equal but for the UID."""
    source, job, jobs = random.Random(1), make_job(), []
    for number in range(SIZE):
        length = source.choice([1, 2, 5, 39, 40])
        name = "".join(source.choices(string.ascii_lowercase + string.digits + "-", k=length))
        name = "a" + name[1:].rstrip("-") if length > 1 else source.choice(string.ascii_lowercase)
        uid = str(uuid.UUID(int=(number << 108) + source.getrandbits(100)))
        jobs.append(job.model_copy(update={"metadata": job.metadata.model_copy(update={"name": name, "uid": uid})}))
    return jobs


def test_names_of_ten_thousand_jobs_are_valid_and_different() -> None:
    jobs = sample()
    clusters = [naming.cluster_name(job, 1) for job in jobs]
    assert all(DNS_1035.fullmatch(name) and len(name) <= 53 for name in clusters)
    assert all(len(naming.dashboard_service(name)) <= 63 for name in clusters)
    assert len(set(clusters)) == SIZE
    few = 200  # the name of a ConfigMap has a digest of what is in it
    for function, number in (
        (config_name, few),
        (KEYS.secret_name, SIZE),
        (naming.output_claim_name, SIZE),
        (naming.output_path, SIZE),
    ):
        names = [function(job) for job in jobs[:number]]
        assert len(set(names)) == number
        assert all(DNS_1123.fullmatch(name) and len(name) <= 253 for name in names)
    assert len({naming.submission_id(job, attempt) for job in jobs for attempt in (1, 2)}) == 2 * SIZE


def test_label_values_of_ten_thousand_jobs_are_valid() -> None:
    values = {value for job in sample() for value in naming.labels(job, 1).values()}
    assert all(len(value) <= 63 and re.fullmatch(r"[a-zA-Z0-9]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?", value) for value in values)


@pytest.mark.parametrize(
    ("name", "attempt", "cluster"),
    [
        ("demo", 1, "demo-1f0c3-1"),
        ("a", 12, "a-1f0c3-12"),
        ("a23456789-123456789-123456789-123456789x", 9, "a23456789-123456789-123456789-123456789x-1f0c3-9"),
    ],
)
def test_names_never_change_between_releases(name: str, attempt: int, cluster: str) -> None:
    job = make_job(metadata={"name": name})
    assert naming.cluster_name(job, attempt) == cluster
    assert naming.dashboard_service(cluster) == f"{cluster}-head-svc"
    assert naming.submission_id(job, attempt) == f"{UID}-a{attempt}"
    assert naming.output_path(job) == f"{name}-{UID}"
    assert naming.output_claim_name(job) == f"{name}-1f0c3-output"


def test_a_claim_of_the_user_keeps_its_name() -> None:
    assert naming.output_claim_name(make_job("existing_claims")) == "out"


def test_a_second_job_of_the_same_name_shares_nothing_with_the_first() -> None:
    first, second = make_job(), make_job(metadata={"uid": str(uuid.uuid4())})
    for function in (config_name, KEYS.secret_name, naming.output_claim_name, naming.output_path):
        assert function(first) != function(second)


def test_an_event_is_named_by_what_it_tells_so_that_its_repetition_is_refused() -> None:
    metadata = raw_job()["metadata"]
    first = events.build_event(metadata, begun(), NOW)
    assert first["metadata"] == {"name": "demo.1f0c3.1.pending.accepted", "namespace": "team"}
    assert first["involvedObject"]["uid"] == UID
    assert first["type"] == "Normal"
    assert events.build_event(metadata, begun(), NOW.replace(year=2027))["metadata"] == first["metadata"]


def test_a_long_message_fits_into_an_event() -> None:
    assert len(events.build_event(raw_job()["metadata"], begun(message="x" * 4096), NOW)["message"]) == 1024
