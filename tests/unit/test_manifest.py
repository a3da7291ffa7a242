"""Manifests mean what they mean to kubectl; what its own reader (sigs.k8s.io/yaml) makes of each text was taken down here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.chart import ROOT

from finetune_client.manifest import Document, read_documents
from finetune_operator.api.schema import Finding
from finetune_trainer.errors import ConfigError

pytestmark = pytest.mark.sampled(4)


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Read a text as if it were a file's; gives its documents."""

    def read(text: str | bytes) -> list[Document]:
        file = tmp_path / "job.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_documents(str(file))

    return read


def only(documents: list[Document]) -> Any:
    (document,) = documents
    assert document.problems == ()
    return document.value


SCALARS: list[tuple[str, Any]] = [
    *[(word, True) for word in ("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE")],
    *[(word, False) for word in ("n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE")],
    *[(word, None) for word in ("~", "null", "Null", "NULL", "")],
    *[(word, word) for word in ("yEs", "tRue", "nUll", "nan", "inf", "+inf", "0x", "0xg", "0b2", "1.2.3", "1e", "+", ".", "_1")],
    *[
        (word, word)
        for word in ("2001-12-14", "2001-12-14t21:59:43.10-05:00", "12:30:45", "190:20:30", "1e400", ".5e999", "<<", "=")
    ],
    *[
        ("0", 0),
        ("-0", 0),
        ("+1", 1),
        ("007", 7),
        ("010", 8),
        ("-010", -8),
        ("0o17", 15),
        ("0x1F", 31),
        ("-0X1f", -31),
        ("0b101", 5),
    ],
    *[
        ("08", 8),
        ("1_000", 1000),
        ("0x_1", 1),
        ("1_0e1_0", 10**11),
        ("5.", 5),
        (".5", 0.5),
        ("-.5", -0.5),
        ("5.0", 5),
        ("1e2", 100),
    ],
    *[("1e-5", 1e-05), ("1E+5", 100000), ("1e21", 1e21), ("9223372036854775807", 2**63 - 1), ("18446744073709551615", 2**64 - 1)],
    *[("18446744073709551616", 2.0**64), ("-9223372036854775809", -(2.0**63))],
    *[
        ("'no'", "no"),
        ('"5"', "5"),
        ("|\n  5", "5\n"),
        ("|+\n  5", "5\n"),
        (">-\n  a\n  b", "a b"),
        ('"\\x41\\u00e9\\U0001F600"', "Aé😀"),
        ("'it''s'", "it's"),
    ],
    *[("!!str 5", "5"), ("!!str no", "no"), ("!!int '0x10'", 16), ("!!float 5", 5), ("!!bool 'yes'", True), ("!!null ~", None)],
    *[("! 5", "5"), ("!", ""), ("!foo bar", "bar"), ("!!binary aGk=", "hi"), ("!!timestamp 2001-12-14", "2001-12-14")],
    *[
        ("x\ty", "x\ty"),
        ("5\t", 5),
        ("\t5", 5),
        ("5\t# five", 5),
        ("a#b", "a#b"),
        ("a:b", "a:b"),
        ("plain\n  and long", "plain and long"),
    ],
]


@pytest.mark.parametrize(("text", "value"), SCALARS, ids=[text for text, _ in SCALARS])
def test_a_scalar_is_what_kubectl_takes_it_for(read: Any, text: str, value: Any) -> None:
    read_value = only(read(f"a: {text}\n"))["a"]
    assert (type(read_value), read_value) == (type(value), value)


@pytest.mark.parametrize("text", [".inf", "-.INF", "+.inf", ".nan", "!!float .inf"])
def test_what_is_no_json_is_kept_to_be_refused_at_its_place(read: Any, text: str) -> None:
    assert not math.isfinite(only(read(f"a: {text}\n"))["a"])


KEYS = [("yes", "true"), ("Off", "false"), ("010", "8"), ("1.5", "1.5"), ("1.0", "1"), ("1e6", "1e+06"), ("123456.0", "123456")]
KEYS += [
    ("0.1", "0.1"),
    ("0.00001", "1e-05"),
    ("1234567.8", "1.2345678e+06"),
    (".inf", ".inf"),
    ("1e300", ".inf"),
    ("2001-12-14", "2001-12-14"),
]
KEYS += [("'5'", "5"), ("!!str 5", "5"), ("'<<'", "<<")]


@pytest.mark.parametrize(("text", "key"), KEYS)
def test_a_key_becomes_text(read: Any, text: str, key: str) -> None:
    assert only(read(f"{text}: x\n")) == {key: "x"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &x {b: 1, c: 2}\nd: *x\n", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 2}}),
        ("a: &x {b: 1}\nd:\n  <<: *x\n  e: 2\n", {"a": {"b": 1}, "d": {"b": 1, "e": 2}}),
        ("a: &x {b: 1}\nd:\n  <<: *x\n  b: 2\n", {"a": {"b": 1}, "d": {"b": 2}}),
        ("a: &x {b: 1}\nd:\n  b: 2\n  <<: *x\n", {"a": {"b": 1}, "d": {"b": 1}}),  # as kubectl, against the specification
        ("d:\n  <<: [{b: 1, c: 1}, {b: 2, d: 2}]\n", {"d": {"b": 1, "c": 1, "d": 2}}),
        ("'<<': {a: 1}\n", {"<<": {"a": 1}}),
        ("a: &k x\n*k : 1\n", {"a": "x", "x": 1}),
        ('{a: [b, {c: d:e}], "f":1}\n', {"a": ["b", {"c": "d:e"}], "f": 1}),
        ("- a\n-\tb\n", None),
        ("a:\n- b\n-  - c\n   - d\n", {"a": ["b", ["c", "d"]]}),
        ("? a\n: b\n", {"a": "b"}),
        ("a: b\r\nc:\r\n  d: e\r\n", {"a": "b", "c": {"d": "e"}}),
        ("a: b\n...\nc: d\n", {"a": "b"}),
        ("\ufeffa: b\n", {"a": "b"}),
    ],
)  # fmt: skip
def test_a_document_is_what_kubectl_makes_of_it(read: Any, text: str, value: Any) -> None:
    (document,) = read(text)
    if value is None:
        assert document.problems
    else:
        assert (document.value, document.problems) == (value, ())


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "the key 'a' occurs twice"),
        ("a:\n  1: x\n  '1': y\n", 3, "the key '1' occurs twice"),
        ('{"a": 1,\n "a": 2}', 2, "the key 'a' occurs twice"),
        ("a: 1\n  b: 2\n", 2, "mapping values are not allowed here"),
        ("a: [1, 2\nb: 3\n", 2, "expected ',' or ']'"),
        ("a: 1\nb:\n\t- c\n", 3, "cannot start any token"),
        ("a: *x\n", 1, "there is no anchor &x before *x"),
        ("a: &x\n  b: *x\n", 2, "contains itself"),
        ("a: 1\n<<: b\n", 2, "<< takes a mapping"),
        ("a: 1\n~: b\n", 2, "cannot be a key"),
        ("a: 1\n? [b]\n: c\n", 2, "a key must be text"),
        ("a: 1\n18446744073709551615: b\n", 2, "cannot be a key"),
        ("a: 1\nb: !!int 5.5\n", 2, "'5.5' is no int"),
        ("a: !!bool 5\n", 1, "'5' is no bool"),
        ("a: !!null 5\n", 1, "'5' is no null"),
        ("a: !!timestamp soon\n", 1, "'soon' is no timestamp"),
        ("a: !!binary '*'\n", 1, "base64"),
        ('a: "\\ud83d\\ude00"\n', 1, "are no characters"),
        ("a: 1\nb: \x07\n", 2, "a character that YAML does not allow"),
        ("a: 1\n--- b: 1\n", 2, "nothing but a comment may follow ---"),
        ("%YAML 1.2\n---\na: 1\n", 1, "expected '<document start>'"),
        ('{"a": 1}\n{"b": 2}\nc: 3\n', 3, "this is no JSON"),
        ("a: " + "[" * 500 + "]" * 500, 1, "nested too deeply"),
        ("a:\n  " + "[" * 201 + "]" * 201, 2, "nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(read: Any, text: str, line: int, words: str) -> None:
    ((found, sentence),) = [problem for document in read(text) for problem in document.problems]
    assert found == line
    assert words in sentence


def test_lists_may_be_nested_200_deep(read: Any) -> None:
    (document,) = read("[" * 200 + "]" * 200)
    assert document.problems == ()


def test_a_document_that_grows_without_end_by_its_aliases_is_stopped(read: Any) -> None:
    levels = "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12))
    (document,) = read(f"a0: &a0 [x]\n{levels}")
    assert "too many aliases" in document.problems[0][1]


def test_documents_are_cut_at_lines_of_dashes_and_empty_ones_are_left_out(read: Any) -> None:
    documents = read("# head\n---\na: 1\n--- # next\n\n---\nnull\n---\nb:\n  c: 2\n---\n")
    assert [document.value for document in documents] == [{"a": 1}, {"b": {"c": 2}}]
    assert [document.line(()) for document in documents] == [3, 9]
    assert documents[1].line(("b", "c")) == 10


def test_an_error_in_one_document_leaves_the_others_readable(read: Any) -> None:
    first, second = read("a: [\n---\nb: 1\n")
    assert first.problems
    assert (second.value, second.problems) == ({"b": 1}, ())


def test_json_objects_may_follow_each_other_and_may_hold_what_yaml_may_not(read: Any) -> None:
    documents = read('{"a":\t"\\ud83d\\ude00\\/\x7f\u2028",\n\t"b": [1e2, null]}\n{"c": "no"}')
    assert [document.value for document in documents] == [{"a": "😀/\x7f\u2028", "b": [100, None]}, {"c": "no"}]
    assert documents[0].line(("b", 1)) == 2
    assert documents[1].line(("c",)) == 3


LINES = """\
spec:
  config:
    General: &general
      base_model: gpt2
    Dataset: {train_file: a,
      group: true}
  head:
    env:
    - name: A
      value: b
    -
      name: C
  copy: *general
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("spec", "config", "General", "base_model"), 4),
        (("spec", "config", "Dataset", "group"), 6),
        (("spec", "head", "env"), 8),
        (("spec", "head", "env", 0), 9),
        (("spec", "head", "env", 0, "value"), 10),
        (("spec", "head", "env", 1, "name"), 12),
        (("spec", "copy"), 13),
        (("spec", "copy", "base_model"), 4),
        (("spec", "head", "memory"), 7),
        (("spec", "workers", "env", 0), 1),
        (("metadata", "name"), 1),
    ],
)
def test_the_line_of_a_path_is_that_of_its_key_or_of_what_is_there_around_it(
    read: Any, path: tuple[str | int, ...], line: int
) -> None:
    assert read(LINES)[0].line(path) == line


def test_errors_come_in_the_order_of_the_lines(read: Any) -> None:
    (document,) = read("a: 1\nb:\n  c: 2\nb: 3\n")
    told = document.errors([Finding(("b",), "second"), Finding(("a",), "first")])
    assert [line.partition("job.yaml:")[2] for line in told] == ["1: a: first", "4: the key 'b' occurs twice", "4: b: second"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read the manifest: No such file"):
        read_documents(str(tmp_path / "nowhere.yaml"))


def test_a_file_that_is_no_utf_8_is_told_its_line(read: Any) -> None:
    with pytest.raises(ConfigError, match=r"job\.yaml:2: the file is not UTF-8 text"):
        read(b"a: b\nc: \xff\n")


@pytest.mark.parametrize("sample", sorted((ROOT / "config_samples" / "finetunejobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_samples_say_the_same_to_both_versions_of_yaml(sample: Path) -> None:
    from ruamel.yaml import YAML

    assert only(read_documents(str(sample))) == YAML(typ="safe", pure=True).load(sample)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)


@given(value=st.dictionaries(st.text(max_size=20), JSON, max_size=4), compact=st.booleans(), ascii_only=st.booleans())
@example(value={"a": "\ufeff\x85\u2028\x00\t"}, compact=True, ascii_only=False)
@example(value={"": {"<<": {"b": "~"}}}, compact=False, ascii_only=True)
def test_json_comes_out_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, value: Any, *, compact: bool, ascii_only: bool
) -> None:
    file = tmp_path_factory.mktemp("json") / "job.json"
    file.write_text(json.dumps(value, indent=None if compact else "\t", ensure_ascii=ascii_only), encoding="utf-8")
    documents = read_documents(str(file))
    assert only(documents) == value
