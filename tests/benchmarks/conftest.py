"""Benchmarks run on the cluster of the end-to-end tests, and only by ``make benchmark``."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.conftest import images, model, release
from tests.support.fixtures import kubectl

__all__ = ["images", "kubectl", "model", "release"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.benchmark)
