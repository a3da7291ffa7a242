"""Kueue's own manifests, changed for a Kueue that runs as a process of the host: ``kueue_objects.py MANIFESTS CA URL``.

Without Deployment, Services and APIServices; webhooks and conversions are called by URL; of the webhooks only Kueue's own
and those of RayClusters stay, and the latter see a RayCluster with a queue's name only: all others are none of its business.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

LEFT_OUT = {"Deployment", "Service", "APIService"}
OWN = {"clusterqueue", "resourceflavor", "workload", "cohort"}
BY_QUEUE_NAME = {"matchExpressions": [{"key": "kueue.x-k8s.io/queue-name", "operator": "Exists"}]}


def change(manifest: dict[str, Any], bundle: str, url: str) -> None:
    """Point one manifest at the process."""
    conversion = manifest.get("spec", {}).get("conversion") if manifest["kind"] == "CustomResourceDefinition" else None
    if conversion:
        conversion["webhook"]["clientConfig"] = {"url": f"{url}/convert", "caBundle": bundle}
    if not manifest["kind"].endswith("WebhookConfiguration"):
        return
    kept = [hook for hook in manifest["webhooks"] if hook["name"][1:].removesuffix(".kb.io") in {*OWN, "raycluster"}]
    for hook in kept:
        hook["clientConfig"] = {"url": url + hook["clientConfig"]["service"]["path"], "caBundle": bundle}
        if "raycluster" in hook["name"]:
            hook["objectSelector"] = BY_QUEUE_NAME
    manifest["webhooks"] = kept


def main(manifests: str, certificate: str, url: str) -> None:
    """Print the changed manifests."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    bundle = base64.b64encode(Path(certificate).read_bytes()).decode()
    kept = [item for item in yaml.load_all(Path(manifests)) if item and item["kind"] not in LEFT_OUT]
    for item in kept:
        change(item, bundle, url)
    yaml.dump_all(kept, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
