"""Fixtures that more than one folder of tests uses: import them in its conftest."""

from __future__ import annotations

import os

import pytest
from tests.support import cluster
from tests.support.kubectl import Kubectl


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    """A cluster with KubeRay."""
    if (reason := cluster.why_not()) is not None:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return cluster.connect()
