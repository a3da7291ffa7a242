"""Objects of S3 and of stores with its API: s3://bucket/key, and s3://bucket/folder/ with all that is in it.

Requests are signed with Signature Version 4 by hand: the locks have no library that does it, and botocore alone is larger than
everything else that the fetch needs. Variables are those of every tool for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL; without a key requests go unsigned, as for public buckets.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlsplit
from xml.etree import ElementTree as ET

from finetune_trainer.fetch.download import RemoteFile
from finetune_trainer.fetch.errors import FetchError, What, missing
from finetune_trainer.fetch.listing import Listing, Names
from finetune_trainer.files import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from finetune_trainer.fetch.web import Web

EMPTY = hashlib.sha256(b"").hexdigest()
"""Digest of the body of a GET."""

LISTING_LIMIT = 8 * 2**20
"""Longest answer to a request for a list, in bytes: a thousand objects have some 500 KB."""

PAGES = 100
"""Pages of a thousand objects that are read."""


@dataclass(frozen=True)
class Credentials:
    """Who signs."""

    key: str
    secret: str
    token: str | None
    region: str

    @classmethod
    def from_environment(cls) -> Credentials | None:
        """Those of the variables; None: there are none."""
        key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
        if not key or not secret:
            return None
        return cls(key, secret, os.environ.get("AWS_SESSION_TOKEN") or None, _region())

    def headers(self, address: str, now: datetime, method: str = "GET", payload: str = EMPTY) -> dict[str, str]:
        """The headers that sign a request (https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html)."""
        parts, stamp = urlsplit(address), now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        signed = {"host": parts.netloc, "x-amz-content-sha256": payload, "x-amz-date": stamp}
        if self.token:
            signed["x-amz-security-token"] = self.token
        names = ";".join(sorted(signed))
        query = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(parse_qsl(parts.query, True)))
        lines = [method, parts.path or "/", query, *(f"{name}:{signed[name]}" for name in sorted(signed)), "", names, payload]
        scope = f"{stamp[:8]}/{self.region}/s3/aws4_request"
        request = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{request}"
        key = f"AWS4{self.secret}".encode()
        for part in (stamp[:8], self.region, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        authorization = f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders={names}, Signature={signature}"
        return {name: value for name, value in signed.items() if name != "host"} | {"Authorization": authorization}


def signer() -> Callable[[str], Mapping[str, str]]:
    """Signs requests with the credentials of the environment, each anew: a signature is good for minutes."""
    credentials = Credentials.from_environment()
    return lambda address: credentials.headers(address, datetime.now(UTC)) if credentials else {}


def object_address(uri: str) -> str:
    """The address of an object."""
    bucket, key = _split(uri)
    return f"{_bucket_address(bucket)}/{quote(key, safe='/-_.~')}"


def list_folder(web: Web, what: What, uri: str, names: Names) -> Listing:
    """All objects below a prefix.

    Raises:
        Temporary: the store does not answer now.
        FetchError: there are none, or they may not be listed.
    """
    bucket, prefix = _split(uri)
    found: dict[str, tuple[int, str]] = {}
    token = ""
    for _ in range(PAGES):
        query = {"list-type": "2", "prefix": prefix} | ({"continuation-token": token} if token else {})
        text = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
        page = _read(web, f"{_bucket_address(bucket)}/?{text}")
        found |= {key.removeprefix(prefix): entry for key, entry in _entries(page) if key != prefix and not key.endswith("/")}
        token = _text(page, "NextContinuationToken")
        if not token:
            break
    else:
        raise FetchError("FetchFailed", f"{uri}: there are more than {PAGES} thousand objects")
    wanted = names.needed(found)
    if not wanted:
        raise missing(what, f"{uri}: there is nothing to fetch" + (f" at {names.train_file}" if names.train_file else ""))
    sign, whole = signer(), [f"{name} {found[name]}" for name in wanted]
    files = tuple(
        RemoteFile(name, object_address(uri + name), found[name][0], found[name][1] or None, sign=sign) for name in wanted
    )
    return Listing(f"{len(files)} objects", digest(*(line.encode() for line in whole))[:16], files)


def _read(web: Web, address: str) -> ET.Element:
    with web.get(address, {}, signer()) as answer:
        body = bytearray()
        for chunk in answer.iter_raw():
            body += chunk
            if len(body) > LISTING_LIMIT:
                raise FetchError("FetchFailed", f"{address.partition('?')[0]}: the list of objects is too long")
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise FetchError("FetchFailed", f"{address.partition('?')[0]}: the answer is no list of objects")
    try:
        return ET.fromstring(bytes(body))  # noqa: S314 - bounded, and without entities
    except ET.ParseError as error:
        raise FetchError("FetchFailed", f"{address.partition('?')[0]}: the answer is no list of objects: {error}") from error


def _entries(page: ET.Element) -> list[tuple[str, tuple[int, str]]]:
    found = []
    for item in page.iter():
        if item.tag.rpartition("}")[2] == "Contents":
            size = _text(item, "Size")
            found.append((_text(item, "Key"), (int(size) if size.isdigit() else 0, _text(item, "ETag"))))
    return found


def _text(element: ET.Element, name: str) -> str:
    return next((child.text or "" for child in element if child.tag.rpartition("}")[2] == name), "")


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _bucket_address(bucket: str) -> str:
    """By path at an endpoint of one's own, which has seldom names for its buckets; else by name."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        return f"{endpoint.rstrip('/')}/{bucket}"
    host = f"s3.{_region()}.amazonaws.com"
    return f"https://{host}/{bucket}" if "." in bucket else f"https://{bucket}.{host}"
