"""``finetune validate`` gives the verdict of ``kubectl create --validate=strict``; what an API server of Kubernetes 1.34
said to each object was taken down here.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.chart import ROOT

from finetune_client import cli, local
from finetune_client.validate import check_object, notes
from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_trainer.errors import ConfigError

pytestmark = pytest.mark.sampled(4)

MINIMAL: dict[str, Any] = {
    "apiVersion": "llmonray.dev/v1alpha1",
    "kind": "FinetuneJob",
    "metadata": {"name": "job"},
    "spec": {
        "config": {"General": {"base_model": "gpt2"}, "Dataset": {"train_file": "rows.jsonl"}},
        "output": {"size": "1Gi"},
    },
}

TRAINING = "spec.config.Training"
OWNER = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}
ANNOTATION_BYTES = 256 * 1024


def with_changes(changes: dict[str, Any]) -> dict[str, Any]:
    """The smallest job with values set: dotted path → value."""
    job = copy.deepcopy(MINIMAL)
    for path, value in changes.items():
        *holders, last = path.split(".")
        node = job
        for key in holders:
            node = node.setdefault(key, {})
        node[last] = value
    return job


def said(changes: dict[str, Any]) -> list[str]:
    return [str(finding) for finding in check_object(with_changes(changes))]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"metadata": {"generateName": "a-"}},
        {"metadata": {"generateName": "a" * 35}},
        {"metadata": {"generateName": "a--"}},
        {"metadata.generateName": "1.-"},
        {"metadata.name": "a" * 40},
        {"metadata.namespace": "team-a"},
        {"metadata.namespace": None},
        {"metadata.resourceVersion": "x"},
        {"metadata.uid": "x", "metadata.selfLink": "x"},
        {"metadata.generation": -3.0},
        {"metadata.generation": 1e16},
        {"metadata.labels": {"a": None, "b": "", "example.com/C_d.e": "F-g"}},
        {"metadata.labels": None},
        {"metadata.annotations": {"Example.COM/a": "anything at all"}},
        {"metadata.annotations": {"\u212a": "the Kelvin sign is k in lower case", "İ": "and this is i to Go"}},
        {"metadata.annotations": {"a": "x" * (ANNOTATION_BYTES - 1)}},
        {"metadata.finalizers": ["example.com/a", "orphan"]},
        {"metadata.ownerReferences": [{**OWNER, "controller": True}] * 2},
        {"metadata.ownerReferences": [{**OWNER, "controller": None, "apiVersion": "apps/v1"}]},
        {"metadata.managedFields": [{"operation": "whatever", "fieldsV1": 5, "time": None}, None]},
        {"metadata.creationTimestamp": None},
        {"metadata.creationTimestamp": "2026-01-31T1:00:00,5+24:60"},
        {"status": 5},
        {"status": {"phase": "nonsense", "conditions": None}},
        {"spec.accelerator": None, "spec.dataset": {"configMap": {"name": "a"}, "persistentVolumeClaim": None}},
        {"spec.output": {"size": None, "persistentVolumeClaim": {"claimName": "a"}}},
        {"spec.head": {"tolerations": [{"key": "a", "operator": "Exists", "value": None, "tolerationSeconds": None}]}},
        {"spec.head": {"nodeSelector": {"a": None}}},
        {f"{TRAINING}.batch_size": 5.0, f"{TRAINING}.learning_rate": 1},
        {f"{TRAINING}.batch_size": None},
        {f"{TRAINING}.device": "gpu", f"{TRAINING}.resources_per_worker": {"GPU": 1}},
        {"spec.config.General.save_strategy": None},
        {"spec.config.General.deltatuner_config": {"a": {"b": [None, {"c": None}]}}},
    ],
)
def test_what_the_api_server_takes_is_valid(changes: dict[str, Any]) -> None:
    assert said(changes) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"apiVersion": "llmonray.dev/v1"}, "apiVersion: must be llmonray.dev/v1alpha1, not the text 'llmonray.dev/v1'"),
        ({"kind": None}, "kind: must be FinetuneJob, not null"),
        ({"items": []}, "items: unknown field"),
        ({"spec": None}, "spec: required, and null is as good as missing"),
        ({"spec": []}, "spec: must be a mapping, not a list"),
        ({"spec.foo": None}, "spec.foo: unknown field"),
        ({"status.foo": None}, "status.foo: unknown field"),
        ({"status": {"phase": {"a": 1}}}, "status.phase.a: unknown field"),
        ({"metadata": None}, "metadata.name: name or generateName is required"),
        ({"metadata": []}, "metadata: must be a mapping, not a list"),
        ({"metadata.name": ""}, "metadata.name: name or generateName is required"),
        ({"metadata.name": "a" * 41}, "metadata.name: metadata.name may have at most 40 characters"),
        ({"metadata.name": "a.b"}, "metadata.name: metadata.name must be a DNS-1035 label"),
        ({"metadata.name": "a_b"}, "metadata.name: the text 'a_b': a name has at most 253 lower-case letters"),
        ({"metadata.name": "a\n"}, "metadata.name: the text 'a\\n'"),
        ({"metadata": {"generateName": "a" * 36}}, "metadata.generateName: metadata.name may have at most 40 characters"),
        ({"metadata": {"generateName": "1"}}, "metadata.generateName: metadata.name must be a DNS-1035 label"),
        ({"metadata": {"generateName": "a.-"}}, "metadata.generateName: the text 'a.-': a name has"),
        ({"metadata": {"generateName": "-"}}, "metadata.generateName: the text '-': a name has"),
        ({"metadata.generateName": "A"}, "metadata.generateName: the text 'A': a name has"),
        ({"metadata.namespace": "a.b"}, "metadata.namespace: the text 'a.b': at most 63 lower-case letters"),
        ({"metadata.namespace": 5}, "metadata.namespace: must be text, not the number 5"),
        ({"metadata.lables": {}}, "metadata.lables: unknown field; did you mean labels?"),
        ({"metadata.Name": "a"}, "metadata.Name: unknown field; did you mean name?"),
        ({"metadata.resourceVersion": 1}, "metadata.resourceVersion: must be text"),
        ({"metadata.generation": 3.5}, "metadata.generation: must be a whole number of 64 bits"),
        ({"metadata.generation": 2**63}, "metadata.generation: must be a whole number of 64 bits"),
        ({"metadata.labels": {"a": 1}}, "metadata.labels.a: must be text, not the number 1; put it into quotes"),
        ({"metadata.labels": {"a": "-"}}, "metadata.labels.a: the text '-': a value is empty, or"),
        ({"metadata.labels": {"a": "x" * 64}}, "a value is empty, or"),
        ({"metadata.labels": {"a/b/c": ""}}, "metadata.labels['a/b/c']: a key is a name"),
        ({"metadata.labels": {"A.b/c": ""}}, "a key is a name"),
        ({"metadata.labels": {"/c": ""}}, "a key is a name"),
        ({"metadata.labels": {"x" * 64: ""}}, "a key is a name"),
        ({"metadata.labels": {"\u212a": ""}}, "a key is a name"),
        ({"metadata.annotations": {"a b": ""}}, "metadata.annotations['a b']: a key is a name"),
        ({"metadata.annotations": {"a": "x" * ANNOTATION_BYTES}}, "metadata.annotations: keys and values have more than 256 KiB"),
        ({"metadata.finalizers": [None]}, "metadata.finalizers[0]: a key is a name"),
        ({"metadata.finalizers": ["orphan", "foregroundDeletion"]}, "cannot be there both"),
        ({"metadata.ownerReferences": [{**OWNER, "uid": None}]}, "metadata.ownerReferences[0].uid: must not be empty"),
        ({"metadata.ownerReferences": [{**OWNER, "apiVersion": "a/b/c"}]}, "metadata.ownerReferences[0].apiVersion: must be"),
        ({"metadata.ownerReferences": [{**OWNER, "apiVersion": "a/"}]}, "metadata.ownerReferences[0].apiVersion: must be"),
        ({"metadata.ownerReferences": [{**OWNER, "kind": "Event"}]}, "an Event cannot be an owner"),
        ({"metadata.ownerReferences": [{**OWNER, "foo": 1}]}, "metadata.ownerReferences[0].foo: unknown field"),
        (
            {"metadata.ownerReferences": [{**OWNER, "controller": True}, {**OWNER, "controller": True, "name": "q"}]},
            "metadata.ownerReferences: only one owner can be the controller",
        ),
        ({"metadata.managedFields": [{"time": "soon"}]}, "metadata.managedFields[0].time: the text 'soon' is no time"),
        ({"metadata.creationTimestamp": "2026-01-31t00:00:00Z"}, "metadata.creationTimestamp: the text"),
        ({"metadata.creationTimestamp": "2026-02-29T00:00:00Z"}, "is no time"),
        ({"metadata.creationTimestamp": "2026-01-31T00:00:00+25:00"}, "is no time"),
        ({"spec.head": {"tolerations": [None]}}, "spec.head.tolerations[0]: null is not allowed"),
        ({"spec.head": {"tolerations": [{"key": None}]}}, "spec.head.tolerations[0]: a toleration without key"),
        ({"spec.output": {}}, "spec.output: output takes exactly one of"),
        ({"spec.accelerator": "xe"}, "spec: accelerator goes with config.Training.device GPU"),
        ({"spec.config.Dataset.train_file": "/a"}, "spec.config.Dataset.train_file: config.Dataset.train_file must be"),
        ({"spec.config.General.save_strategy": 0}, "the number 0 is not allowed; must be one of no, epoch, steps, false"),
        ({f"{TRAINING}.device": "HPU"}, "spec.config.Training.device: device must be CPU or GPU"),
        ({f"{TRAINING}.accelerate_mode": "fſdp"}, "spec.config.Training.accelerate_mode: accelerate_mode must be"),
        ({f"{TRAINING}.resources_per_worker": {"GPU": 1}}, "spec.config.Training: device CPU forbids"),
        ({f"{TRAINING}.resources_per_worker": {"GPU": 0.0}}, "a whole number is written with a decimal point"),
        ({"spec.config.General.deltatuner_config": {"a": [float("inf")]}}, "deltatuner_config.a[0]: NaN, infinity"),
        ({"metadata.annotations": {"a": 10**400}}, "NaN, infinity and numbers of such size are no JSON"),
    ],
)
def test_what_the_api_server_refuses_is_invalid_in_words(changes: dict[str, Any], sentence: str) -> None:
    problems = said(changes)
    assert any(sentence in problem for problem in problems), problems


@pytest.mark.parametrize("key", ["apiVersion", "kind", "metadata", "spec"])
def test_every_part_of_an_object_is_required(key: str) -> None:
    raw = {name: value for name, value in MINIMAL.items() if name != key}
    assert [finding.path[0] for finding in check_object(raw)] == [key]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"spec.config.General.gpt_base_model": True},
            "spec.config.General.gpt_base_model: obsolete and ignored: it chose an old transformers release",
        ),
        ({"spec.config.Dataset.padding": False}, "spec.config.Dataset.padding: no effect in this release"),
        (
            {"spec.head": {"labels": {"a b": "c"}}},
            "spec.head.labels: the API server takes it, but the operator will refuse the job: 'a b' is no qualified name",
        ),
        ({f"{TRAINING}.seed": 5.0000000001}, "the API server takes it, but the operator will refuse the job: Input should be"),
    ],
)
def test_what_the_api_server_takes_in_silence_is_a_note_and_no_error(changes: dict[str, Any], sentence: str) -> None:
    job = with_changes(changes)
    assert check_object(job) == []
    (note,) = notes(job)
    assert sentence in str(note)


def test_null_is_nothing_worth_a_note() -> None:
    assert (
        notes(with_changes({f"{TRAINING}.batch_size": None, "spec.accelerator": None, "spec.config.General.config": None})) == []
    )


MANIFEST = """\
apiVersion: llmonray.dev/v1alpha1
kind: FinetuneJob
metadata:
  name: {name}
spec:
  config:
    General:
      base_model: gpt2
    Dataset:
      train_file: rows.jsonl
    Training:
      mixed_precision: no
      {training}
  output:
    size: 1Gi
"""
CONFIG_MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: rows\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a file into the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write


def test_a_valid_file_is_named_with_its_job(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = write("job.yaml", MANIFEST.format(name="demo", training="learning_rate: 1e-5"))
    assert cli.main(["validate", "-f", file]) == 0
    assert capsys.readouterr() == ("job.yaml: finetunejob demo is valid\n", "")


def test_every_error_is_told_with_its_line_in_order(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = write("job.yaml", MANIFEST.format(name="Demo", training="seeds: 1\n      epochs: no\n      epochs: no"))
    assert cli.main(["validate", "-f", file]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(", ")[0] for line in err.splitlines()] == [
        "job.yaml:4: metadata.name: the text 'Demo': a name has at most 253 lower-case letters",
        "job.yaml:13: spec.config.Training.seeds: unknown field; did you mean seed?",
        "job.yaml:15: the key 'epochs' occurs twice",
        "job.yaml:15: spec.config.Training.epochs: must be a whole number",
    ]


def test_all_files_and_documents_are_checked_and_other_kinds_are_named(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    good = MANIFEST.format(name="good", training="seed: 1")
    several = write("several.yaml", f"{good}---\n{CONFIG_MAP}---\n{MANIFEST.format(name='bad', training='seed: -1')}")
    other = write("other.yaml", MANIFEST.format(name="other", training="epochs: 1"))
    assert cli.main(["validate", "-f", several, "-f", other]) == 2
    out, err = capsys.readouterr()
    assert out == "several.yaml: finetunejob good is valid\nother.yaml: finetunejob other is valid\n"
    assert err == (
        "several.yaml:17: configmap rows: skipped, it is no FinetuneJob\n"
        "several.yaml:34: spec.config.Training.seed: is -1; must be at least 0\n"
    )


def test_a_list_is_looked_into(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    items = [with_changes({}), with_changes({f"{TRAINING}.seed": -1})]
    file = write("list.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=0))
    assert cli.main(["validate", "-f", file]) == 2
    out, err = capsys.readouterr()
    assert out == "list.json: finetunejob job is valid\n"
    assert "items[1].spec.config.Training.seed: is -1; must be at least 0" in err


def test_notes_are_warnings_and_leave_the_verdict_alone(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = write("job.yaml", MANIFEST.format(name="demo", training="hpu_execution_mode: lazy"))
    assert cli.main(["validate", "-f", file]) == 0
    out, err = capsys.readouterr()
    assert out == "job.yaml: finetunejob demo is valid\n"
    assert err == (
        "job.yaml:13: warning: spec.config.Training.hpu_execution_mode: obsolete and ignored: Gaudi is not supported\n"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CONFIG_MAP, "job.yaml: there is no FinetuneJob in it"),
        ("", "job.yaml: there is no FinetuneJob in it"),
        ("- a\n", "job.yaml:1: must be a mapping, not a list"),
        ("just words\n", "job.yaml:1: must be a mapping, not the text 'just words'"),
        ("kind: Finetunejob\napiVersion: llmonray.dev/v1alpha1\n", "job.yaml:1: kind: must be FinetuneJob"),
        ("spec: {}\n", "job.yaml:1: kind: required, but missing: FinetuneJob"),
        ("a: [\n", "job.yaml:1: expected the node content"),
    ],
)
def test_a_file_without_a_finetunejob_is_an_error(write: Any, capsys: pytest.CaptureFixture[str], text: str, words: str) -> None:
    assert cli.main(["validate", "-f", write("job.yaml", text)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


def test_a_missing_file_is_an_error_and_the_others_are_checked(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = write("job.yaml", MANIFEST.format(name="demo", training="seed: 1"))
    assert cli.main(["validate", "-f", "nowhere.yaml", "-f", file]) == 2
    assert capsys.readouterr() == (
        "job.yaml: finetunejob demo is valid\n",
        "nowhere.yaml: cannot read the manifest: No such file or directory\n",
    )


@pytest.mark.parametrize("arguments", [[], ["validate"], ["validate", "job.yaml"], ["validate", "-f"], ["chek"], ["run"]])
def test_wrong_usage_has_exit_code_1(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = cli.main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 1
    err = capsys.readouterr().err
    assert "--help" in err
    assert not arguments or err.count("\n") == 2


def test_standard_input_is_read() -> None:
    text = MANIFEST.format(name="demo", training="seed: 1")
    command = [sys.executable, "-m", "finetune_client.cli", "validate", "-f", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "<stdin>: finetunejob demo is valid\n"), done.stderr


@pytest.mark.parametrize("sample", sorted((ROOT / "config_samples" / "finetunejobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sample_is_valid_and_silent(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", "-f", str(sample)]) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_local_run_reads_a_manifest_as_kubectl_does(write: Any) -> None:
    file = write("job.yaml", CONFIG_MAP + "---\n" + MANIFEST.format(name="demo", training="learning_rate: 1e-5"))
    manifest, job = local.load_job(file)
    assert manifest["metadata"] == {"name": "demo"}
    assert isinstance(job, FinetuneJob)
    assert (job.spec.config.training.mixed_precision, job.spec.config.training.learning_rate) == ("no", 1e-05)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            MANIFEST.format(name="demo", training="device: HPU"),
            "job.yaml:13: spec.config.Training.device: Value error, device must",
        ),
        (MANIFEST.format(name="demo", training="seeds: 1"), "job.yaml:13: spec.config.Training.seeds: unknown field"),
        (MANIFEST.format(name="demo", training="seed: 1\n      seed: 2"), "job.yaml:14: the key 'seed' occurs twice"),
        (
            MANIFEST.format(name="demo", training="seed: 1") + "  dataset: {configMap: {name: rows}}\n",
            "job.yaml:16: spec.dataset.conf",
        ),
        ("---\n".join([MANIFEST.format(name="demo", training="seed: 1")] * 2), "job.yaml: must hold one FinetuneJob, not 2"),
        (CONFIG_MAP, "job.yaml: must hold one FinetuneJob, not 0"),
        ("apiVersion: v1\nkind: FinetuneJob\n", "job.yaml:1: not a FinetuneJob: apiVersion must be llmonray.dev/v1alpha1"),
    ],
)
def test_a_local_run_tells_errors_with_their_lines(write: Any, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        local.load_job(write("job.yaml", text))
    assert sentence in str(error.value)
