"""The operator on a real cluster, installed by Helm as a user would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.support import cluster, lanes
from tests.support.fixtures import kubectl
from tests.support.jobs import SMALL_MODEL, SMALL_SIZES
from tests.support.kubectl import Kubectl
from tests.support.trainer import make_model, make_tokenizer

__all__ = ["kubectl"]

SAMPLE_ROWS = cluster.ROOT / "examples" / "data" / "sample_finetune_data.jsonl"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.cluster)


@dataclass(frozen=True)
class Release:
    """The installed operator."""

    kubectl: Kubectl
    """In the operator's namespace."""
    trainer_image: str


@pytest.fixture(scope="session")
def images(kubectl: Kubectl) -> tuple[str, str]:
    """The operator's and the trainer's image, built from this checkout and loaded into the nodes."""
    operator, trainer = [line for line in cluster.harness("images") if line][-2:]
    return operator, trainer


@pytest.fixture(scope="session")
def release(kubectl: Kubectl, images: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """``helm install``; ``helm uninstall`` at the end, which leaves the CRD. All workers of a run share it."""
    operator, trainer = images
    system = replace(kubectl, namespace="finetune-system")

    def install() -> None:
        cluster.new_namespace(kubectl, system.namespace)
        repository, _, tag = operator.rpartition(":")
        values = {"image.repository": repository, "image.tag": tag, "trainer.image": trainer}
        values["policy.namespaces.finetune-policy-more.allowRemoteCode"] = "true"  # of the tests of the policy itself
        options = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        chart = str(cluster.ROOT / "charts" / "finetune-operator")
        system.helm("install", "finetune-operator", chart, "--wait", "--timeout", "120s", "--take-ownership", *options)

    def uninstall() -> None:
        sys.stderr.write(system.run("logs", "deployment/finetune-operator", "--tail=200", check=False).stdout)
        system.helm("uninstall", "finetune-operator", "--wait", "--timeout", "60s")

    with lanes.shared(lanes.common_folder(tmp_path_factory) / "release.lock", install, uninstall):
        yield Release(system, trainer)


@pytest.fixture(scope="session")
def model() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder."""
    script = cluster.ROOT / "examples" / "fetch_smollm2.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with random weights that most jobs train, as a Hugging Face folder."""
    tokenizer = make_tokenizer(texts=SAMPLE_ROWS.read_text(encoding="utf-8").splitlines(), vocabulary=2000)
    return make_model("llama", tokenizer, tmp_path_factory.mktemp("models") / SMALL_MODEL, **SMALL_SIZES)


@pytest.fixture(scope="session")
def jobs(kubectl: Kubectl, release: Release, small_model: Path) -> Kubectl:
    """This worker's namespace, with a small model and data sets on claims, one of them with a broken row."""
    namespace = cluster.new_namespace(kubectl, f"finetune-e2e-{lanes.worker()}".rstrip("-"))
    rows = SAMPLE_ROWS.read_text(encoding="utf-8")
    lines = rows.splitlines()
    broken = "\n".join([*lines[:16], '{"instruction": "no response"}', *lines[16:]])
    cluster.fill(namespace, release.trainer_image, small_model, {"rows.jsonl": rows, "broken.jsonl": broken})
    return namespace


@pytest.fixture(scope="session")
def jobs_with_words(jobs: Kubectl, release: Release, model: Path) -> Kubectl:
    """The namespace, with SmolLM2 as well: see `WITH_WORDS`."""
    cluster.fill(jobs, release.trainer_image, model, {})
    return jobs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that is marked as `exclusive` has the cluster for itself, with its fixtures."""
    folder = lanes.common_folder(item.config._tmp_path_factory)
    with lanes.turn(folder, alone=item.get_closest_marker("exclusive") is not None):
        return (yield)
