"""The Helm chart: least rights, restricted pods, and values that are checked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support.chart import CHART, helm, namespace_rules, render, rights

from finetune_operator.api.crd import build_crd
from finetune_operator.api.policy import SYSTEM_PRIORITY_CLASSES, SYSTEM_TAINTS, Policy
from finetune_operator.settings import Settings

pytestmark = pytest.mark.sampled(4)

NAMESPACE_RIGHTS = {
    ("llmonray.dev", "finetunejobs", "get"),
    ("llmonray.dev", "finetunejobs", "list"),
    ("llmonray.dev", "finetunejobs", "watch"),
    ("llmonray.dev", "finetunejobs", "delete"),
    ("llmonray.dev", "finetunejobs/status", "patch"),
    ("ray.io", "rayclusters", "get"),
    ("ray.io", "rayclusters", "list"),
    ("ray.io", "rayclusters", "watch"),
    ("ray.io", "rayclusters", "create"),
    ("ray.io", "rayclusters", "delete"),
    ("ray.io", "rayclusters", "patch"),
    ("kueue.x-k8s.io", "workloads", "list"),
    ("", "pods", "get"),
    ("", "pods", "list"),
    ("", "pods", "watch"),
    ("", "pods", "create"),
    ("", "pods", "delete"),
    ("", "persistentvolumeclaims", "get"),
    ("", "persistentvolumeclaims", "list"),
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
    ("", "nodes", "list"),
    ("scheduling.k8s.io", "priorityclasses", "get"),
}
"""What kopf needs beyond them to watch a whole cluster, and what is looked for before a job begins."""


def of_kind(rendered: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in rendered if document["kind"] == kind]


def test_the_rights_in_a_namespace_are_exactly_those_that_are_used() -> None:
    granted = list(rights(namespace_rules()))
    assert len(granted) == len(set(granted))
    assert set(granted) == NAMESPACE_RIGHTS


def test_a_cluster_wide_operator_gets_one_cluster_role() -> None:
    rendered = render("--set", "rbac.aggregate=false", "--set", "tokenKey.existingSecret=keys")
    (role,), (binding,) = of_kind(rendered, "ClusterRole"), of_kind(rendered, "ClusterRoleBinding")
    assert set(rights(role["rules"])) == NAMESPACE_RIGHTS | CLUSTER_RIGHTS
    assert of_kind(rendered, "Role") == []
    (account,) = of_kind(rendered, "ServiceAccount")
    assert [subject["name"] for subject in binding["subjects"]] == [account["metadata"]["name"]]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_nodes_are_listed_only_where_they_are_looked_at() -> None:
    rendered = render("--set", "preflight.nodes=false", "--set", "rbac.aggregate=false")
    (role,) = of_kind(rendered, "ClusterRole")
    assert set(rights(role["rules"])) == (NAMESPACE_RIGHTS | CLUSTER_RIGHTS) - {("", "nodes", "list")}
    assert environment(rendered)["FINETUNE_CHECK_NODES"] == "false"
    assert environment(render())["FINETUNE_CHECK_NODES"] == "true"


def test_an_operator_of_some_namespaces_has_no_right_elsewhere() -> None:
    rendered = render("--set", "watchNamespaces={a,b}", "--set", "rbac.aggregate=false", "--set", "tokenKey.existingSecret=keys")
    assert of_kind(rendered, "ClusterRole") == of_kind(rendered, "ClusterRoleBinding") == []
    roles = of_kind(rendered, "Role")
    assert [role["metadata"]["namespace"] for role in roles] == ["a", "b"]
    assert all(set(rights(role["rules"])) == NAMESPACE_RIGHTS for role in roles)
    assert [binding["metadata"]["namespace"] for binding in of_kind(rendered, "RoleBinding")] == ["a", "b"]
    assert environment(rendered)["FINETUNE_NAMESPACES"] == "a,b"
    assert environment(rendered)["FINETUNE_CHECK_NODES"] == "false"


def test_the_domain_of_the_cluster_is_a_value() -> None:
    assert environment(render())["FINETUNE_CLUSTER_DOMAIN"] == "cluster.local"
    assert environment(render("--set", "clusterDomain=k8s.example"))["FINETUNE_CLUSTER_DOMAIN"] == "k8s.example"


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


LIMITS: dict[str, Any] = {
    "allowedImagePrefixes": ["registry.example/a/"],
    "allowedAnnotations": ["prometheus.io/*"],
    "maxGPUs": 16,
    "namespaces": {
        "team-a": {"allowRemoteCode": True, "allowedImagePrefixes": [], "maxGPUs": "unlimited"},
        "team-b": {"maxWorkers": 8, "maxGPUs": 0},
        "team-c": {"allowedVariables": ["*"]},
    },
}


def test_the_operator_is_told_the_limits_that_it_holds_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the API server is not: a job may be older than a limit."""
    values = environment(render("--set", "policy.enabled=false", "--set-json", f"policy={json.dumps(LIMITS)}"))
    told = json.loads(values["FINETUNE_POLICY"])
    assert not {"enabled", "maxWorkers", "maxGPUs"} & told.keys()
    assert told["namespaces"] == {
        "team-a": {"allowRemoteCode": True, "allowedImagePrefixes": []},
        "team-c": {"allowedVariables": ["*"]},
    }
    monkeypatch.setenv("FINETUNE_POLICY", values["FINETUNE_POLICY"])
    policy = Settings().policy
    assert [policy.of(namespace).allow_remote_code for namespace in ("team-a", "team-b")] == [True, False]
    assert [policy.of(namespace).allowed_image_prefixes for namespace in ("team-a", "team-b")] == [(), ("registry.example/a/",)]
    assert policy.of("team-c").allowed_variables == ("*",)
    assert policy.of("team-c").allowed_annotations == ("prometheus.io/*",)


def test_the_limits_of_the_chart_are_those_of_an_operator_that_is_told_none() -> None:
    told = Policy.model_validate_json(environment(render())["FINETUNE_POLICY"])
    assert told == Policy()
    assert told.model_fields_set == set(Policy.model_fields), "the operator is told all that it holds"


def test_the_variables_of_all_pods_reach_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"SSL_CERT_FILE": "/certs/ca.pem", "HF_ENDPOINT": "https://hub.example"}
    values = environment(render("--set-json", f"trainer.defaults.env={json.dumps(given)}"))
    monkeypatch.setenv("FINETUNE_TRAINER_ENV", values["FINETUNE_TRAINER_ENV"])
    assert Settings().trainer_env == given


def admission(*options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The admission policy and its binding."""
    policy, binding = render("--show-only", "templates/admission_policy.yaml", *options)
    return policy, binding


def test_limits_are_held_at_admission_with_values_of_single_namespaces() -> None:
    policy, _binding = admission("--set-json", f"policy={json.dumps(LIMITS)}")
    variables = {item["name"]: item["expression"] for item in policy["spec"]["variables"]}
    assert variables["prefixes"] == '{"team-a":[]}[?request.namespace].orValue(["registry.example/a/"])'
    assert variables["remoteCode"] == '{"team-a":true}[?request.namespace].orValue(false)'
    assert variables["maxWorkers"] == '{"team-b":8}[?request.namespace].orValue(256)'
    assert variables["maxGPUs"] == '{"team-a":-1,"team-b":0}[?request.namespace].orValue(16)'
    assert variables["allowedAnnotations"] == '["prometheus.io/*"]'
    assert variables["allowedVariables"].startswith('{"team-c":["*"]}[?request.namespace].orValue(["HF_*"')
    assert all("messageExpression" in validation for validation in policy["spec"]["validations"])


def test_admission_holds_every_limit_of_pods_for_head_and_workers_with_the_operators_words_for_the_system() -> None:
    policy, _binding = admission()
    variables = {item["name"]: item["expression"] for item in policy["spec"]["variables"]}
    held = {validation["expression"] for validation in policy["spec"]["validations"]}
    for key in ("allowedVariables", "allowedPriorityClasses", "allowedTolerations", "allowedAnnotations"):
        for pods in ("head", "workers"):
            assert f"size(variables.{pods}_{key}) == 0" in held
            assert f"variables.{pods}Options" in variables[f"{pods}_{key}"]
    for pods in ("head", "workers"):
        assert all(f'!name.startsWith("{prefix}")' in variables[f"{pods}_allowedTolerations"] for prefix in SYSTEM_TAINTS)
        assert all(
            f'!name.startsWith("{prefix}")' in variables[f"{pods}_allowedPriorityClasses"] for prefix in SYSTEM_PRIORITY_CLASSES
        )
    (asks,) = policy["spec"]["matchConditions"]
    for field in ("?image", "?model", "?head", "?workers"):
        assert f"object.spec.{field} != oldObject.spec.{field}" in asks["expression"]


def test_the_admission_policy_fails_closed_and_leaves_status_and_deletion_alone() -> None:
    policy, binding = admission()
    assert policy["spec"]["failurePolicy"] == "Fail"
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    assert (rule["resources"], rule["operations"]) == (["finetunejobs"], ["CREATE", "UPDATE"])
    assert binding["spec"] == {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}


def test_the_admission_policy_reaches_no_further_than_the_operator() -> None:
    _policy, binding = admission("--set", "watchNamespaces={a,b}")
    selector = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}
    assert binding["spec"]["matchResources"] == {"namespaceSelector": {"matchExpressions": [selector]}}


def test_the_admission_policy_can_be_left_out_and_is_named_after_its_release() -> None:
    assert of_kind(render("--set", "policy.enabled=false"), "ValidatingAdmissionPolicy") == []
    names = {document["metadata"]["name"] for document in (*admission(), *admission("--namespace", "other"))}
    assert names == {"fto-finetune-operator.finetune-system", "fto-finetune-operator.other"}


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
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


def test_ports_are_where_the_operator_listens() -> None:
    (deployment,) = of_kind(render(), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    settings = Settings()
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "probe": settings.probe_port, "metrics": settings.metrics_port,
    }  # fmt: skip


KEYS_NAME = "fto-finetune-operator-keys"


def test_two_renders_are_equal_byte_for_byte() -> None:
    """As `helm template` and Argo CD make them, without a look at the cluster."""
    command = ("template", "fto", str(CHART), "--namespace", "finetune-system", "--kube-version", "1.36.0")
    first, second = helm(*command), helm(*command)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert of_kind(render(), "Secret") == []


def test_the_operator_makes_its_key_where_the_earlier_chart_kept_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier chart made this Secret, and told helm to keep it: an upgrade finds the old key."""
    rendered = render()
    monkeypatch.setenv("FINETUNE_TOKEN_KEY_SECRET", environment(rendered)["FINETUNE_TOKEN_KEY_SECRET"])
    assert Settings().token_key_secret == f"finetune-system/{KEYS_NAME}"
    (role,) = of_kind(rendered, "Role")
    assert role["metadata"].get("namespace") is None, "it is of the release's own namespace"
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [KEYS_NAME], "verbs": ["get"]},
    ]
    (binding,) = of_kind(rendered, "RoleBinding")
    (account,) = of_kind(rendered, "ServiceAccount")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == [account["metadata"]["name"]]


def test_a_secret_that_exists_is_mounted_and_the_operator_gets_no_right_to_secrets_for_it() -> None:
    rendered = render("--set", "tokenKey.existingSecret=our-keys")
    assert of_kind(rendered, "Role") == of_kind(rendered, "RoleBinding") == []
    assert "FINETUNE_TOKEN_KEY_SECRET" not in environment(rendered)
    (deployment,) = of_kind(rendered, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["keys"]["secret"]["secretName"] == "our-keys"
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["keys"] == str(Settings().token_key_file.parent)


def test_the_crd_comes_with_the_chart_and_stays_without_it() -> None:
    (crd,) = of_kind(render(), "CustomResourceDefinition")
    assert crd == build_crd()
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert of_kind(render("--set", "crds.enabled=false"), "CustomResourceDefinition") == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "value",
    [
        "replicas=2",
        "image.pullPolicy=Sometimes",
        "watchNamespaces=a",
        "trainer.image=",
        "trainer.imagee=x",
        "resources=no",
        "policy.allowedImagePrefixes={registry.example/a}",
        "policy.maxWorkers=0",
        "policy.maxWorkers=null",
        "policy.maxGPUs=-1",
        "policy.maxGPUs=none",
        "policy.namespaces.Team.maxGPUs=1",
        "policy.namespaces.team.maxGPU=1",
        "policy.namespaces.team.allowedImagePrefixes={registry.example/a}",
        "policy.allowedVariables={A B}",
        "policy.allowedVariables={*_PATH}",
        "policy.allowedTolerations=everything",
        "policy.allowedAnnotations={a*b}",
        "policy.namespaces.team.allowedTokenSecrets=any",
        "policy.namespaces.team.allowedSecrets={hf}",
        "trainer.defaults.env.A-B=x",
        "tokenKey.existingSecret=Keys",
        "tokenKey.key=x",
        "preflight.nodes=maybe",
    ],
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
