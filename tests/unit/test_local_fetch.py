"""``finetune run --local`` of a job that names its rows by an address."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.file_server import serving_files

from finetune_client.local import run


def test_a_wrong_checksum_ends_a_local_run_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving_files(**{"rows.jsonl": b"{}\n" * 100}) as server:
        manifest = tmp_path / "job.yaml"
        manifest.write_text(f"""
apiVersion: llmonray.dev/v1alpha1
kind: FinetuneJob
metadata: {{name: demo}}
spec:
  config:
    General: {{base_model: gpt2}}
    Dataset: {{train_file: train.jsonl}}
  dataset: {{uri: "{server.address}/rows.jsonl", sha256: "{"0" * 64}"}}
  output: {{size: 1Gi}}
""")
        assert run(str(manifest), {}, tmp_path / "claims") == 1
    said = capsys.readouterr()
    assert "ChecksumMismatch" in said.err
    assert "phase: Failed" in said.out
    assert not list((tmp_path / "claims").rglob("train.jsonl"))
