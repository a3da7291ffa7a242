"""Objects of S3 and of stores with its API: s3://bucket/key, and s3://bucket/folder/ with all that is in it.

Requests are signed with Signature Version 4 by hand: the locks have no library that does it, and botocore alone is larger than
everything else that the fetch needs. Variables are those of every tool for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL; those that begin with FINETUNE_DATASET_ or FINETUNE_MODEL_ are of one of the two
only. Without a key requests go unsigned, as for public buckets.
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
    def from_environment(cls, what: What) -> Credentials | None:
        """Those of the variables, never of two owners mixed; None: there are none."""
        for prefix in (_prefix(what), ""):
            names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
            key, secret, token = (os.environ.get(f"{prefix}{name}", "") for name in names)
            if key and secret:
                return cls(key, secret, token or None, _region(what))
        return None

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


def signer(what: What) -> Callable[[str], Mapping[str, str]]:
    """Signs requests with the credentials of the environment, each anew: a signature is good for minutes."""
    credentials = Credentials.from_environment(what)
    return lambda address: credentials.headers(address, datetime.now(UTC)) if credentials else {}


def object_address(what: What, uri: str) -> str:
    """The address of an object."""
    bucket, key = _split(uri)
    return f"{_bucket_address(what, bucket)}/{quote(key, safe='/-_.~')}"


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
        page = _read(web, what, f"{_bucket_address(what, bucket)}/?{text}")
        found |= {key.removeprefix(prefix): entry for key, entry in _entries(page) if key != prefix and not key.endswith("/")}
        token = _text(page, "NextContinuationToken")
        if not token:
            break
    else:
        raise FetchError("FetchFailed", f"{uri}: there are more than {PAGES} thousand objects")
    wanted = names.needed(found)
    if not wanted:
        raise missing(what, f"{uri}: there is nothing to fetch" + (f" at {names.train_file}" if names.train_file else ""))
    sign, whole = signer(what), [f"{name} {found[name]}" for name in wanted]
    files = tuple(
        RemoteFile(name, object_address(what, uri + name), found[name][0], found[name][1] or None, sign=sign) for name in wanted
    )
    return Listing(f"{len(files)} objects", digest(*(line.encode() for line in whole))[:16], files)


def _read(web: Web, what: What, address: str) -> ET.Element:
    with web.get(address, {}, signer(what)) as answer:
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


def _prefix(what: What) -> str:
    return f"FINETUNE_{what.upper()}_"


def _setting(what: What, *names: str) -> str:
    """The first of some variables that is set, and that of the dataset or the model before that of all."""
    found = (os.environ.get(f"{prefix}{name}") for prefix in (_prefix(what), "") for name in names)
    return next(filter(None, found), "")


def _region(what: What) -> str:
    return _setting(what, "AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1"


def _bucket_address(what: What, bucket: str) -> str:
    """By path at an endpoint of one's own, which has seldom names for its buckets; else by name."""
    endpoint = _setting(what, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    if endpoint:
        return f"{endpoint.rstrip('/')}/{bucket}"
    host = f"s3.{_region(what)}.amazonaws.com"
    return f"https://{host}/{bucket}" if "." in bucket else f"https://{bucket}.{host}"
