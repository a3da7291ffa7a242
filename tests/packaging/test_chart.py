"""The Helm chart: least rights, restricted pods, and values that are checked."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from tests.support.chart import CHART, helm, namespace_rules, render, rights

from finetune_operator.api.crd import build_crd
from finetune_operator.settings import Settings

NAMESPACE_RIGHTS = {
    ("llmonray.dev", "finetunejobs", "get"),
    ("llmonray.dev", "finetunejobs", "list"),
    ("llmonray.dev", "finetunejobs", "watch"),
    ("llmonray.dev", "finetunejobs/status", "patch"),
    ("ray.io", "rayclusters", "get"),
    ("ray.io", "rayclusters", "list"),
    ("ray.io", "rayclusters", "watch"),
    ("ray.io", "rayclusters", "create"),
    ("ray.io", "rayclusters", "delete"),
    ("", "pods", "list"),
    ("", "pods", "watch"),
    ("", "persistentvolumeclaims", "get"),
    ("", "persistentvolumeclaims", "create"),
    ("", "configmaps", "get"),
    ("", "configmaps", "create"),
    ("", "secrets", "create"),
    ("", "events", "create"),
}
"""What clients and watches use, and nothing more: to make it longer is a decision."""

CLUSTER_RIGHTS = {
    ("apiextensions.k8s.io", "customresourcedefinitions", "list"),
    ("apiextensions.k8s.io", "customresourcedefinitions", "watch"),
    ("", "namespaces", "list"),
    ("", "namespaces", "watch"),
}
"""What kopf needs beyond them to watch a whole cluster."""


def of_kind(rendered: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in rendered if document["kind"] == kind]


def test_the_rights_in_a_namespace_are_exactly_those_that_are_used() -> None:
    granted = list(rights(namespace_rules()))
    assert len(granted) == len(set(granted))
    assert set(granted) == NAMESPACE_RIGHTS


def test_a_cluster_wide_operator_gets_one_cluster_role() -> None:
    rendered = render("--set", "rbac.aggregate=false")
    (role,), (binding,) = of_kind(rendered, "ClusterRole"), of_kind(rendered, "ClusterRoleBinding")
    assert set(rights(role["rules"])) == NAMESPACE_RIGHTS | CLUSTER_RIGHTS
    assert of_kind(rendered, "Role") == []
    (account,) = of_kind(rendered, "ServiceAccount")
    assert [subject["name"] for subject in binding["subjects"]] == [account["metadata"]["name"]]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_an_operator_of_some_namespaces_has_no_right_elsewhere() -> None:
    rendered = render("--set", "watchNamespaces={a,b}", "--set", "rbac.aggregate=false")
    assert of_kind(rendered, "ClusterRole") == of_kind(rendered, "ClusterRoleBinding") == []
    roles = of_kind(rendered, "Role")
    assert [role["metadata"]["namespace"] for role in roles] == ["a", "b"]
    assert all(set(rights(role["rules"])) == NAMESPACE_RIGHTS for role in roles)
    assert [binding["metadata"]["namespace"] for binding in of_kind(rendered, "RoleBinding")] == ["a", "b"]
    assert environment(rendered)["FINETUNE_NAMESPACES"] == "a,b"


def test_users_see_and_edit_jobs_by_the_cluster_roles_they_have() -> None:
    roles = {role["metadata"]["name"]: role for role in of_kind(render(), "ClusterRole")}
    edit = next(role for name, role in roles.items() if name.endswith("-edit"))
    view = next(role for name, role in roles.items() if name.endswith("-view"))
    assert not {verb for _group, _resource, verb in rights(view["rules"])} - {"get", "list", "watch"}
    assert {resource for _group, resource, _verb in rights(edit["rules"])} == {"finetunejobs"}
    assert "rbac.authorization.k8s.io/aggregate-to-view" not in edit["metadata"]["labels"]


def environment(rendered: list[dict[str, Any]]) -> dict[str, str]:
    (deployment,) = of_kind(rendered, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {item["name"]: item["value"] for item in container["env"]}


def test_what_the_chart_sets_is_what_the_operator_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    values = environment(render("--set", "trainer.gpuImage=gpu:1", "--set", "trainer.image=cpu:1"))
    assert set(values) <= {f"FINETUNE_{name.upper()}" for name in Settings.model_fields}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.image_for("cpu"), settings.image_for("gpu")) == ("cpu:1", "gpu:1")
    assert settings.namespaces == ()


def test_the_operators_pod_is_restricted_and_alone() -> None:
    (deployment,) = of_kind(render(), "Deployment")
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]) == (1, {"type": "Recreate"})
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert container["resources"]["limits"]["memory"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


def test_ports_and_the_key_file_are_where_the_operator_looks() -> None:
    (deployment,) = of_kind(render(), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    settings = Settings()
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "probe": settings.probe_port, "metrics": settings.metrics_port,
    }  # fmt: skip
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["keys"] == str(settings.token_key_file.parent)
    (secret,) = of_kind(render(), "Secret")
    assert list(secret["data"]) == [settings.token_key_file.name]
    assert len(base64.b64decode(secret["data"]["key"])) >= 32
    assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_the_crd_comes_with_the_chart_and_stays_without_it() -> None:
    (crd,) = of_kind(render(), "CustomResourceDefinition")
    assert crd == build_crd()
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert of_kind(render("--set", "crds.enabled=false"), "CustomResourceDefinition") == []


@pytest.mark.parametrize(
    "value",
    ["replicas=2", "image.pullPolicy=Sometimes", "watchNamespaces=a", "trainer.image=", "trainer.imagee=x", "resources=no"],
)
def test_a_value_that_makes_no_sense_is_refused(value: str) -> None:
    done = helm("template", "fto", str(CHART), "--kube-version", "1.36.0", "--set", value)
    assert done.returncode != 0
    assert "values don't meet the specifications" in done.stderr


def test_the_chart_passes_helms_own_checks() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


def test_long_and_short_release_names_give_valid_names() -> None:
    for release in ("a", "finetune-operator", "r" * 53):
        done = helm("template", release, str(CHART), "--kube-version", "1.36.0", "--show-only", "templates/deployment.yaml")
        assert done.returncode == 0, done.stderr
        name = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("  name:"))
        assert len(name) <= 63
        assert not name.endswith("-")
