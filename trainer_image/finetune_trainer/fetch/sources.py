"""What an address stands for: a version, and the files that it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from finetune_trainer.fetch import s3
from finetune_trainer.fetch.download import RemoteFile, content_range, validator
from finetune_trainer.fetch.errors import FetchError, What, missing
from finetune_trainer.fetch.hub import hub_listing
from finetune_trainer.fetch.listing import Listing, Names
from finetune_trainer.fetch.web import redacted
from finetune_trainer.files import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import httpx2

    from finetune_trainer.fetch.web import Web


@dataclass(frozen=True)
class Wanted:
    """What is to be fetched, as the job says it."""

    what: What
    uri: str
    sha256: str | None = None
    token: str | None = None
    names: Names = field(default_factory=Names)

    def list_files(self, web: Web, owner: str) -> Listing:
        """Ask the origin for the version and the files.

        Args:
            web: the client.
            owner: the job; it has a version of its own where the server tells none.

        Raises:
            Temporary: the origin does not answer now.
            FetchError: there is nothing to fetch.
        """
        match urlsplit(self.uri).scheme:
            case "hf":
                return hub_listing(self.what, self.uri, self.token, self.names)
            case "s3" if self.uri.endswith("/"):
                return s3.list_folder(web, self.what, self.uri, self.names)
            case "s3":
                return self._single(web, s3.object_address(self.what, self.uri), s3.signer(self.what), owner)
            case "http" | "https":
                return self._single(web, self.uri, self._bearer, owner)
            case _:
                raise FetchError("InvalidSpec", f"{redacted(self.uri)}: an address begins with hf://, s3:// or https://")

    def _bearer(self, _: str) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token and self.uri.startswith("https:") else {}

    def _single(self, web: Web, address: str, sign: Callable[[str], Mapping[str, str]], owner: str) -> Listing:
        """One file: what train_file names."""
        name = self.names.single(address)
        # One byte and not HEAD: a signed address is often good for GET alone.
        with web.get(address, {"Range": "bytes=0-0"}, sign) as answer:
            size, version = _size(answer), validator(answer)
        if size == 0:
            raise missing(self.what, f"{redacted(address)}: the file is empty")
        if self.sha256:
            # the content is fixed by its digest, so an ETag would only refuse other servers of the same file
            return Listing(
                f"SHA-256 {self.sha256}",
                self.sha256[:16].lower(),
                (RemoteFile(name, address, size, sha256=self.sha256, sign=sign),),
            )
        origin = version or "a server that tells no version"
        # without a version nobody can tell that the file is the same: each job has its own
        key = digest((version or owner).encode(), str(size).encode())[:16]
        return Listing(origin[:200], key, (RemoteFile(name, address, size, etag=version, sign=sign),))


def _size(answer: httpx2.Response) -> int | None:
    """The size of the whole file, if the answer to a request for its first byte tells it."""
    if answer.status_code != 200:
        return content_range(answer)[1]
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None
