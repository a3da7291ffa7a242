"""The CRD on a real API server; no operator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import cluster
from tests.support.fixtures import kubectl
from tests.support.kubectl import Kubectl

__all__ = ["kubectl"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def api(kubectl: Kubectl) -> Iterator[Kubectl]:
    """A namespace of a cluster that has the CRD of this checkout."""
    crd = str(cluster.ROOT / "crds" / "finetunejob.yaml")
    kubectl.run("apply", "--server-side", "--force-conflicts", "-f", crd)
    kubectl.run("wait", "--for=condition=Established", "crd/finetunejobs.llmonray.dev", "--timeout=30s")
    namespace = cluster.new_namespace(kubectl, "finetune-api")
    yield namespace
    kubectl.run("delete", "namespace", namespace.namespace, "--wait=false")
