"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("bounded", max_examples=200, deadline=None, derandomize=bool(os.environ.get("CI")), database=None)
settings.load_profile("bounded")
