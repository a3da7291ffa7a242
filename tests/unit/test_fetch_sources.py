"""Fetching from the hub and from S3: what is listed, asked with which token, and signed how."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.support import fake_s3
from tests.support.fake_hub import COMMIT, serving

from finetune_trainer.fetch.listing import Names
from finetune_trainer.fetch.report import FetchReport
from finetune_trainer.fetch.s3 import Credentials

pytestmark = pytest.mark.sampled(4)

FILES = {"train.jsonl": b"{}\n" * 100, "data/more.jsonl": b"{}\n", "huge.parquet": b"x" * 1000, "README.md": b"hello"}


def fetch(folder: Path, uri: str, **environment: str) -> FetchReport:
    """The program in a process of its own: the hub's library reads its variables when it is imported."""
    command = [sys.executable, "-m", "finetune_trainer.fetch", "--owner=job", f"--report={folder / 'report'}"]
    command += [f"--dataset={uri}", f"--dataset_dir={folder / 'claim'}", "--train_file=train.jsonl"]
    variables = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home"), **environment}
    subprocess.run(command, env=os.environ | variables, check=False, timeout=120)
    return FetchReport.model_validate_json((folder / "report").read_bytes())


def test_of_a_repository_the_files_that_the_job_names_are_fetched_at_one_commit(tmp_path: Path) -> None:
    with serving("owner/rows", FILES, token="hub-secret") as hub:
        report = fetch(tmp_path, "hf://owner/rows", HF_ENDPOINT=hub.address, FINETUNE_DATASET_TOKEN="hub-secret")
    assert report.dataset is not None, report.failure
    assert (report.dataset.files, report.dataset.origin) == (1, f"commit {COMMIT}")
    (path,) = (tmp_path / "claim").rglob("*.jsonl")
    assert path.read_bytes() == FILES["train.jsonl"]


def test_a_gated_or_missing_repository_is_told(tmp_path: Path) -> None:
    with serving("owner/rows", FILES, token="hub-secret") as hub:
        for uri, reason in (("hf://owner/rows", "DatasetAccessDenied"), ("hf://owner/other", "DatasetNotFound")):
            report = fetch(tmp_path, uri, HF_ENDPOINT=hub.address)
            assert report.failure is not None
            assert (report.failure.reason, report.failure.retryable) == (reason, False)


def test_a_model_is_fetched_without_what_torch_does_not_read() -> None:
    found = ["config.json", "model.safetensors", "pytorch_model.bin", "model.gguf", "onnx/model.onnx", ".gitattributes"]
    assert Names().needed(found) == ["config.json", "model.safetensors"]
    assert Names().needed(["config.json", "pytorch_model.bin"]) == ["config.json", "pytorch_model.bin"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "a//b", ""])
def test_an_origin_cannot_name_a_file_outside_of_the_folder(name: str) -> None:
    with pytest.raises(Exception, match="no path inside"):
        Names("train.jsonl").needed([name])


OBJECTS = {"2026/train.jsonl": b"{}\n" * 50, "2026/a": b"a", "2026/b": b"b", "2025/train.jsonl": b"old"}
KEYS = {"AWS_SECRET_ACCESS_KEY": "other", "FINETUNE_DATASET_AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.mark.parametrize("uri", ["s3://rows/2026/", "s3://rows/2026/train.jsonl"], ids=["folder", "object"])
def test_a_bucket_is_read_with_the_keys_of_the_jobs_own_secret(tmp_path: Path, uri: str) -> None:
    with fake_s3.serving("rows", OBJECTS, "OWN") as store:
        own = {"FINETUNE_DATASET_AWS_ACCESS_KEY_ID": "OWN", "FINETUNE_DATASET_AWS_ENDPOINT_URL": store.address}
        report = fetch(tmp_path, uri, AWS_ACCESS_KEY_ID="OTHER", AWS_ENDPOINT_URL="http://127.0.0.1:9", **KEYS, **own)
    assert report.dataset is not None, report.failure
    (path,) = (tmp_path / "claim").rglob("*.jsonl")
    assert path.read_bytes() == OBJECTS["2026/train.jsonl"]


def test_keys_that_a_bucket_does_not_take_are_told(tmp_path: Path) -> None:
    with fake_s3.serving("rows", OBJECTS, "OWN") as store:
        others = {"AWS_ACCESS_KEY_ID": "OTHER", "AWS_ENDPOINT_URL": store.address, **KEYS}
        report = fetch(tmp_path, "s3://rows/2026/", **others)
    assert report.failure is not None
    assert (report.failure.reason, report.failure.retryable) == ("DatasetAccessDenied", False)


def test_requests_to_s3_are_signed_as_amazon_shows_it() -> None:
    """https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, "GET Bucket (List Objects)"."""
    credentials = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None, "us-east-1")
    address = "https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J"
    headers = credentials.headers(address, datetime(2013, 5, 24, tzinfo=UTC))
    assert headers["Authorization"].endswith("34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7")
