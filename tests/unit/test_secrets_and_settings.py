"""Master keys, tokens, and what an administrator sets."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.support.builders import OTHER_UID, UID, make_job

from finetune_operator.clients.ray import Dashboard
from finetune_operator.desired.secrets import KeyRing, build_token_secret
from finetune_operator.settings import Settings

OLD, NEW = b"o" * 32, b"n" * 40


def test_a_token_is_the_hmac_of_the_uid() -> None:
    assert KeyRing((OLD,)).token(UID) == hmac.new(OLD, UID.encode(), hashlib.sha256).hexdigest()
    assert KeyRing((OLD,)).token(UID) != KeyRing((OLD,)).token(OTHER_UID)


def test_after_a_rotation_old_clusters_keep_their_token_and_new_ones_get_the_new_key() -> None:
    before, after = KeyRing((OLD,)), KeyRing((NEW, OLD))
    assert after.token_of(UID, before.current_id) == before.token(UID)
    assert after.token_of(UID, after.current_id) == after.token(UID) == KeyRing((NEW,)).token(UID)
    assert after.current_id != before.current_id


@pytest.mark.parametrize("key_id", [None, "", "unknown"])
def test_a_key_that_is_not_in_the_ring_is_replaced_by_no_other(key_id: str | None) -> None:
    assert KeyRing((NEW, OLD)).token_of(UID, key_id) is None


def test_the_secret_names_its_key_and_holds_the_token() -> None:
    keys = KeyRing((NEW, OLD))
    secret = build_token_secret(make_job(), keys)
    assert secret["metadata"]["annotations"] == {"llmonray.dev/token-key": keys.current_id}
    assert base64.b64decode(secret["data"]["auth_token"]).decode() == keys.token(UID)
    assert secret["immutable"] is True


def test_a_changed_key_makes_another_secret_and_leaves_the_one_of_a_live_cluster() -> None:
    before, after = (build_token_secret(make_job(), KeyRing(keys)) for keys in ((OLD,), (NEW, OLD)))
    assert before["metadata"]["name"] != after["metadata"]["name"]


@pytest.mark.parametrize(
    ("content", "keys"),
    [(NEW, (NEW,)), (NEW + b"\n" + OLD + b"\n", (NEW, OLD)), (b"\n  " + NEW + b" \r\n\n" + OLD, (NEW, OLD))],
)
def test_keys_are_read_one_a_line(tmp_path: Path, content: bytes, keys: tuple[bytes, ...]) -> None:
    (tmp_path / "key").write_bytes(content)
    assert KeyRing.read(tmp_path / "key").keys == keys


@pytest.mark.parametrize("content", [b"", b" \n\n", b"short", NEW + b"\nshort"])
def test_a_key_that_is_missing_or_short_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ValueError, match="at least 32 characters") as error:
        KeyRing.read(tmp_path / "key")
    assert "short" not in str(error.value)


def test_a_missing_key_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KeyRing.read(tmp_path / "key")


@pytest.mark.parametrize("value", [KeyRing((NEW, OLD)), Dashboard("http://x", KeyRing((NEW,)).token(UID))])
def test_no_secret_shows_in_what_a_log_would_print(value: Any) -> None:
    for secret in (NEW.decode(), OLD.decode(), KeyRing((NEW,)).token(UID), repr(NEW)):
        assert secret not in f"{value!r} {value}"


def test_a_key_id_does_not_give_the_key_away() -> None:
    assert NEW.hex()[:12] not in KeyRing((NEW,)).current_id
    assert hashlib.sha256(NEW).hexdigest()[:12] != KeyRing((NEW,)).current_id


@pytest.mark.parametrize(("text", "namespaces"), [("", ()), ("a", ("a",)), ("a,b", ("a", "b")), (" a , b,", ("a", "b"))])
def test_namespaces_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, text: str, namespaces: tuple[str, ...]) -> None:
    monkeypatch.setenv("FINETUNE_NAMESPACES", text)
    assert Settings().namespaces == namespaces


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "cpu:1")
    monkeypatch.setenv("FINETUNE_DASHBOARD_ROUTE", "proxy")
    monkeypatch.setenv("FINETUNE_WORKERS", "3")
    monkeypatch.setenv("FINETUNE_CHECK_NODES", "false")
    settings = Settings()
    assert (settings.trainer_image, settings.dashboard_route, settings.workers) == ("cpu:1", "proxy", 3)
    assert settings.check_nodes is False


def test_without_a_word_nodes_are_looked_at_and_remote_code_is_not_allowed() -> None:
    settings = Settings()
    assert settings.check_nodes is True
    assert not settings.policy.remote_code_allowed("team")
    assert settings.policy.image_prefixes("team") == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IMAGE_PULL_POLICY", "Sometimes"),
        ("DASHBOARD_ROUTE", "pigeon"),
        ("CLUSTER_DOMAIN", ""),
        ("CLUSTER_DOMAIN", "cluster.local."),
        ("CLUSTER_DOMAIN", "evil.example/?"),
        ("WORKERS", "0"),
        ("METRICS_PORT", "many"),
        ("CHECK_NODES", "perhaps"),
        ("POLICY", '{"allowRemoteCode": "perhaps"}'),
        ("POLICY", '{"namespaces": ["team"]}'),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"FINETUNE_{name}", value)
    with pytest.raises(ValidationError):
        Settings()


@pytest.mark.parametrize(
    ("device", "gpu_image", "image"),
    [("cpu", "gpu:1", "cpu:1"), ("gpu", "gpu:1", "gpu:1"), ("gpu", None, "cpu:1"), ("gpu", "", "cpu:1")],
)
def test_the_image_fits_the_device(device: str, gpu_image: str | None, image: str) -> None:
    assert Settings(trainer_image="cpu:1", trainer_image_gpu=gpu_image).image_for(device) == image


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().workers = 1
