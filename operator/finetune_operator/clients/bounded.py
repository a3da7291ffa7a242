"""Reads answers of servers that a tenant controls: none can fill the memory, block the loop, or reach another's connection.

What the server says about its answer is not trusted: neither its charset (some of Python's codecs take minutes, or are no
text encodings at all), nor its compression (a kilobyte may stand for a gigabyte), nor its length, nor its cookies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from finetune_operator.errors import RayUnavailableError
from finetune_operator.text import clip_all

ANSWER_LIMIT = 256 * 1024
"""Longest body in bytes. The report of a run with 1,024 ranks has 60 KiB."""


def bounded_session(headers: Mapping[str, str] | None = None, **options: Any) -> aiohttp.ClientSession:
    """A session without cookies and decompression."""
    return aiohttp.ClientSession(
        headers={**(headers or {}), "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        **options,
    )


def is_bounded(session: aiohttp.ClientSession) -> bool:
    """Whether a session was made by the function above."""
    return isinstance(session.cookie_jar, aiohttp.DummyCookieJar) and not session.auto_decompress


async def read_body(answer: aiohttp.ClientResponse) -> str:
    """The body as UTF-8, malformed bytes replaced.

    Raises:
        RayUnavailableError: it is longer than the limit, or encoded although that was not asked for.
        aiohttp.ClientError: it ends too early.
    """
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        answer.close()
        raise RayUnavailableError(f"its answer has the Content-Encoding {encoding[:40]!r}, which was not asked for")
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > ANSWER_LIMIT:
            answer.close()
            raise RayUnavailableError(f"its answer has more than {ANSWER_LIMIT // 1024} KiB")
    return body.decode(errors="replace")


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object, all strings in it limited; {} when the text is none."""
    try:
        value = json.loads(text)
        return clip_all(value) if isinstance(value, dict) else {}
    except (ValueError, RecursionError):
        return {}
