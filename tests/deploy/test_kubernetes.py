"""Manifests as kustomize builds them, against Kubernetes' own schemas and the services' settings."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser as promql
import pytest
import yaml

from tests.deploy import settings_of
from tests.deploy.expressions import ROOT, expressions, uses

VERSION = "1.37"
OURS = sorted(settings_of.CLASSES)
KUBECTL = Path(sys.executable).parent / "kubectl"


@cache
def built(folder: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Runs kustomize and returns the manifests by kind and name."""
    command = [str(KUBECTL), "kustomize", f"deploy/kubernetes/{folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {(m["kind"], m["metadata"]["name"]): m for m in yaml.safe_load_all(done.stdout)}


def workload(folder: str, service: str) -> dict[str, Any]:
    kind = "Deployment" if service == "router" else "StatefulSet"
    return built(folder)[kind, service]


def environment(folder: str, service: str) -> dict[str, str]:
    """What the container's process would see of ours and of the store's variables."""
    container = workload(folder, service)["spec"]["template"]["spec"]["containers"][0]
    shared = built(folder)["ConfigMap", "store"]["data"]
    return shared | {entry["name"]: entry["value"] for entry in container["env"]}


@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_manifests_are_what_kubernetes_takes(folder: str) -> None:
    assert len(built(folder)) == 13
    for manifest in built(folder).values():
        kubernetes_validate.validate(manifest, VERSION, strict=True)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "deltaserve"


@pytest.mark.parametrize("folder", ["base", "gpu"])
@pytest.mark.parametrize("service", OURS)
def test_services_start_with_their_environment_and_are_probed(folder: str, service: str) -> None:
    pod = workload(folder, service)["spec"]["template"]["spec"]
    settings_of.check(service, environment(folder, service), pod["terminationGracePeriodSeconds"])
    container = pod["containers"][0]
    assert {port["containerPort"] for port in container["ports"]} >= {settings_of.PORTS[service], 9464}
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["grpc"]["port"] == settings_of.PORTS[service]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    claimed = {claim["metadata"]["name"] for claim in workload(folder, service)["spec"].get("volumeClaimTemplates", ())}
    assert mounted == {volume["name"] for volume in pod["volumes"]} | claimed


@pytest.mark.parametrize("service", OURS)
def test_services_and_budgets_choose_their_pods(service: str) -> None:
    labels = workload("base", service)["spec"]["template"]["metadata"]["labels"]
    for kind, chosen in (
        ("Service", lambda m: m["selector"]),
        ("PodDisruptionBudget", lambda m: m["selector"]["matchLabels"]),
    ):
        assert chosen(built("base")[kind, service]["spec"]).items() <= labels.items()


def test_routers_find_what_exists() -> None:
    settings = settings_of.load("router", environment("base", "router"))
    assert settings.workers == ("dns:///worker:50052",)
    assert built("base")["Service", "worker"]["spec"]["clusterIP"] == "None"
    pod, _, name = settings.compressor.partition(":")[0].partition(".")
    assert built("base")["StatefulSet", "compressor"]["spec"]["serviceName"] == name
    assert pod == "compressor-0"


def test_the_cache_fits_its_disk() -> None:
    settings = settings_of.load("worker", environment("base", "worker"))
    claim = workload("base", "worker")["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
    assert claim.endswith("Gi")
    assert settings.cache_bytes < int(claim.removesuffix("Gi")) << 30


def test_the_gpu_overlay_asks_for_a_gpu_and_uses_it() -> None:
    for service in ("worker", "compressor"):
        container = workload("gpu", service)["spec"]["template"]["spec"]["containers"][0]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert container["image"].startswith(f"deltaserve/{service}-gpu:")
        assert settings_of.load(service, environment("gpu", service)).device == "cuda"


def test_scaling_asks_for_metrics_that_exist() -> None:
    (scaled,) = built("keda").values()
    spec = scaled["spec"]
    target = spec["scaleTargetRef"]
    assert (target["kind"], target["name"]) in built("base")
    known = {use.metric for _, text in expressions() for use in uses(promql.parse(text))}  # held against real services
    for trigger in spec["triggers"]:
        named = {use.metric for use in uses(promql.parse(trigger["metadata"]["query"])) if use.metric}
        assert named
        assert named <= known
        assert float(trigger["metadata"]["threshold"]) > 0
