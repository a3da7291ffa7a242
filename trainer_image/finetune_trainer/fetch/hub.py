"""Repositories of the Hugging Face hub: hf://owner/name, with @revision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import httpx2

from finetune_trainer.fetch.download import RemoteFile
from finetune_trainer.fetch.errors import FetchError, Temporary, What, denied, missing
from finetune_trainer.fetch.listing import Listing, Names
from finetune_trainer.files import digest

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoSibling

_URI = re.compile(r"hf://(?:datasets/|models/)?([^/@]+/[^/@]+)(?:@(.+))?")

_COMMIT = re.compile(r"[0-9a-f]{40}")

ANSWER_SECONDS = 60.0
"""How long the hub may take to list a repository."""


def hub_listing(what: What, uri: str, token: str | None, names: Names) -> Listing:
    """The files of a repository at the commit that its revision is now.

    Raises:
        Temporary: the hub does not answer now.
        FetchError: there is no such repository, revision or file, or it may not be read.
    """
    found = _URI.fullmatch(uri)
    if found is None:
        raise FetchError("InvalidSpec", f"{uri}: an address of the hub is hf://owner/name or hf://owner/name@revision")
    info = _ask(what, uri, found, token)
    commit = info.sha or ""
    if not _COMMIT.fullmatch(commit):
        raise FetchError("FetchFailed", f"{uri}: the hub names no commit")
    siblings = {item.rfilename: item for item in info.siblings or ()}
    wanted = names.needed(siblings)
    if not wanted:
        raise missing(what, f"{uri}: {_nothing(names)}")
    files = tuple(_remote(siblings[path], found[1], what, commit, token) for path in wanted)
    return Listing(f"commit {commit}", digest(commit.encode())[:16], files)


def _ask(what: What, uri: str, found: re.Match[str], token: str | None) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return HfApi(token=token or False).repo_info(
            found[1], revision=found[2] or "main", repo_type=what, files_metadata=True, timeout=ANSWER_SECONDS
        )
    except HFValidationError as error:
        raise FetchError("InvalidSpec", f"{uri}: {error}") from error
    except HfHubHTTPError as error:
        raise _refusal(what, uri, error) from error
    except (httpx2.TransportError, OSError) as error:
        raise Temporary(f"{uri}: the hub does not answer: {str(error)[:300] or type(error).__name__}") from error


def _remote(item: RepoSibling, repository: str, what: What, commit: str, token: str | None) -> RemoteFile:
    """A file at a commit. The hub knows a digest of each: of large files SHA-256, of small ones that of Git."""
    from huggingface_hub import hf_hub_url

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return RemoteFile(
        item.rfilename,
        hf_hub_url(repository, item.rfilename, repo_type=what, revision=commit),
        item.size,
        sha256=item.lfs.sha256 if item.lfs else None,
        git_sha1=None if item.lfs else item.blob_id,
        sign=lambda _: headers,
    )


def _nothing(names: Names) -> str:
    if names.train_file is None:
        return "the repository has no file of a model"
    return f"the repository has no file {names.train_file} (config.Dataset.train_file)"


def _refusal(what: What, uri: str, error: HfHubHTTPError) -> Exception:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return denied(what, f"{uri}: it is gated: accept its licence on its page, and give a token of that account in "
                            f"spec.{what}.tokenSecretRef")  # fmt: skip
    if isinstance(error, RevisionNotFoundError):
        return missing(what, f"{uri}: the repository has no such revision")
    if isinstance(error, RepositoryNotFoundError):
        return missing(what, f"{uri}: there is no such repository, or it is private: give a token in spec.{what}.tokenSecretRef")
    if status in {401, 403}:
        return denied(what, f"{uri}: HTTP {status}: the token in spec.{what}.tokenSecretRef is not valid, or may not read it")
    if status in {408, 425, 429} or status >= 500:
        return Temporary(f"{uri}: the hub answers HTTP {status}")
    return FetchError("FetchFailed", f"{uri}: the hub answers HTTP {status}")
