"""What the operator writes comes back from the API server as it was written.

``ROUND_TRIP_OBJECTS`` is how many jobs are written, ``FUZZ_SEED`` chooses them.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from tests.support.api_client import Api, connected
from tests.support.builders import load_yaml, merge
from tests.support.cluster import ROOT
from tests.support.generate import Object, draw_spec, draw_status
from tests.support.kubectl import Kubectl

from finetune_operator.api.v1alpha1 import FinetuneJobSpec, FinetuneJobStatus, dump
from finetune_operator.clients.kube import FINETUNE_JOBS
from finetune_operator.status import status_patch

OBJECTS = int(os.environ.get("ROUND_TRIP_OBJECTS", "250"))
SEED = os.environ.get("FUZZ_SEED", "1")
SAMPLES = sorted((ROOT / "config_samples" / "finetunejobs").glob("*.yaml"))


async def read(api: Api, name: str) -> Object:
    found = await api.kube.get(FINETUNE_JOBS, api.namespace, name)
    assert found is not None
    return found


async def round_trip(api: Api, number: int) -> list[str]:
    """Write a spec, a status and a later status over it; which of them came back changed."""
    seed, name = f"{SEED}:round trip:{number}", f"trip-{number}"
    spec = FinetuneJobSpec.model_validate(draw_spec(seed))
    job = {"apiVersion": "llmonray.dev/v1alpha1", "kind": "FinetuneJob", "metadata": {"name": name}, "spec": dump(spec)}
    created = await api.create(job)
    if not created.taken:
        return [f"{seed}: {created.message}"]
    differences, stored, before, written = [], created.body, FinetuneJobStatus(), {}
    if stored["spec"] != dump(spec) or dump(FinetuneJobSpec.model_validate(stored["spec"])) != dump(spec):
        differences.append(f"{seed}: {dump(spec)} came back as {stored['spec']}")
    for part in ("first", "second"):
        status = FinetuneJobStatus.model_validate(draw_status(f"{seed}:{part}"))
        patch = status_patch(dump(before), status) or {}
        await api.kube.patch_status(api.namespace, name, stored["metadata"]["resourceVersion"], patch)
        stored, before, written = await read(api, name), status, merge(written, patch)
        if stored["status"] != written or FinetuneJobStatus.model_validate(stored["status"]) != status:
            differences.append(f"{seed}: {part} status {written} came back as {stored['status']}")
    await api.kube.delete(FINETUNE_JOBS, api.namespace, name, stored["metadata"]["uid"])
    return differences


def test_every_spec_and_status_comes_back_as_it_was_written(api: Kubectl) -> None:
    async def run() -> list[str]:
        async with connected(api) as client:
            slots = asyncio.Semaphore(8)

            async def one(number: int) -> list[str]:
                async with slots:
                    return await round_trip(client, number)

            return [line for lines in await asyncio.gather(*map(one, range(OBJECTS))) for line in lines]

    differences = asyncio.run(run())
    assert not differences, f"{len(differences)}; FUZZ_SEED={SEED}; {min(differences, key=len)}"


@pytest.mark.parametrize(
    "value", [1e-05, 0.1 + 0.2, 5e-324, 1e22, 123456789012345680.0, 1.7976931348623157e308, 3.0, -0.0, 2.0**53 + 2], ids=repr
)
def test_a_float_comes_back_to_the_last_bit(api: Kubectl, value: float) -> None:
    """The API server writes 1e-05 as 0.00001 and 3.0 as 3."""

    async def run() -> Any:
        async with connected(api) as client:
            job = {"apiVersion": "llmonray.dev/v1alpha1", "kind": "FinetuneJob", "metadata": {"name": "float"}}
            stored = (await client.create(job | {"spec": draw_spec("float")})).body
            status: Any = {"result": {"trainLoss": value}}
            version = stored["metadata"]["resourceVersion"]
            patched = await client.kube.patch_status(client.namespace, "float", version, status)
            await client.kube.delete(FINETUNE_JOBS, client.namespace, "float", stored["metadata"]["uid"])
            return patched["status"]["result"]["trainLoss"] if patched else None

    assert asyncio.run(run()) == value


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_applying_a_sample_again_changes_nothing(api: Kubectl, sample: Any) -> None:
    name = load_yaml(sample)["metadata"]["name"]
    apply = ("apply", "--server-side", "--field-manager=tests", "-f", str(sample))
    versions = []
    for _ in range(2):
        api.run(*apply)
        metadata = (api.get("finetunejob", name) or {})["metadata"]
        versions.append((metadata["resourceVersion"], metadata["generation"]))
    api.run("delete", "finetunejob", name)
    assert versions[0] == versions[1]


def test_there_are_samples() -> None:
    assert SAMPLES
