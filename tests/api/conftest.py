"""The CRD on a real API server; no operator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import cluster
from tests.support.fixtures import kubectl
from tests.support.kubectl import Kubectl, wait_until

__all__ = ["kubectl"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.cluster)


def is_established(kubectl: Kubectl) -> bool:
    """A CRD has no status at all for its first moments, of which `kubectl wait` makes an error."""
    crd = kubectl.get("crd", "finetunejobs.llmonray.dev") or {}
    conditions = crd.get("status", {}).get("conditions") or []
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


@pytest.fixture(scope="session")
def api(kubectl: Kubectl) -> Iterator[Kubectl]:
    """A namespace of a cluster that has the CRD of this checkout."""
    crd = str(cluster.ROOT / "crds" / "finetunejob.yaml")
    kubectl.run("apply", "--server-side", "--force-conflicts", "-f", crd)
    wait_until("the CRD is served", lambda: is_established(kubectl), timeout=30)
    namespace = cluster.new_namespace(kubectl, "finetune-api")
    yield namespace
    kubectl.run("delete", "namespace", namespace.namespace, "--wait=false")
