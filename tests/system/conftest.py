"""The world of the system tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from tests.system.world import World


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """Servers without an operator yet."""
    async with World.open() as opened:
        yield opened
