"""Compose files and Dockerfile, as far as they can be judged without an engine; deploy/check_compose.sh runs them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import settings_of
from tests.deploy.expressions import ROOT

FILES = [(), ("compose.gpu.yaml",), ("compose.s3.yaml",)]
OURS = sorted(settings_of.CLASSES)


def merged(*files: str) -> dict[str, Any]:
    """Reads compose files as Compose merges ours: maps by key, the rest replaced; variables at their defaults."""
    whole: dict[str, Any] = {}
    for file in ("compose.yaml", *files):
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / file).read_text())
        _merge(whole, yaml.safe_load(text))
    return whole


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


@pytest.mark.parametrize("files", FILES, ids=str)
@pytest.mark.parametrize("service", OURS)
def test_every_service_starts_with_its_environment_and_has_time_to_drain(service: str, files: tuple[str, ...]) -> None:
    found = merged(*files)["services"][service]
    assert found["stop_grace_period"].endswith("s")
    settings_of.check(service, found["environment"], float(found["stop_grace_period"].removesuffix("s")))
    assert found["healthcheck"]["test"][-1] == f"127.0.0.1:{settings_of.PORTS[service]}"
    assert found["build"]["target"] == service


def test_stores_are_one() -> None:
    for files in FILES:
        services = merged(*files)["services"]
        stores = {services[s]["environment"][f"DELTASERVE_{s.upper()}_STORE"] for s in OURS}
        assert len(stores) == 1
        assert ("s3://" in stores.pop()) == ("compose.s3.yaml" in files)


@pytest.mark.parametrize("files", FILES, ids=str)
def test_images_are_pinned_ports_are_local_and_volumes_exist(files: tuple[str, ...]) -> None:
    whole = merged(*files)
    for name, service in whole["services"].items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            known = (ROOT / source).exists() if source.startswith(".") else source in whole["volumes"]
            assert known, f"{name}: {volume}"


def test_prometheus_scrapes_every_service_and_loads_the_rules() -> None:
    found = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yaml").read_text())
    scraped = {
        (name, config["port"])
        for job in found["scrape_configs"]
        for config in job["dns_sd_configs"]
        for name in config["names"]
    }
    assert scraped == {(service, settings_of.METRICS_PORT) for service in OURS}
    patterns = [Path(pattern).name for pattern in found["rule_files"]]
    assert any(list((ROOT / "deploy" / "prometheus").glob(pattern)) for pattern in patterns)


def test_grafana_finds_dashboard_and_data() -> None:
    grafana = ROOT / "deploy" / "grafana" / "provisioning"
    sources = yaml.safe_load((grafana / "datasources" / "datasources.yaml").read_text())["datasources"]
    services = merged()["services"]
    for source in sources:
        assert re.fullmatch(r"http://(\w+):\d+", source["url"])[1] in services
    provider = yaml.safe_load((grafana / "dashboards" / "dashboards.yaml").read_text())["providers"][0]
    folder = provider["options"]["path"]
    assert any(volume.split(":")[1] == folder for volume in services["grafana"]["volumes"])


@pytest.mark.parametrize("files", FILES, ids=str)
def test_compose_itself_takes_the_files_and_merges_them_as_these_tests_do(files: tuple[str, ...]) -> None:
    flags = [flag for file in ("compose.yaml", *files) for flag in ("-f", file)]
    found = yaml.safe_load(_run("docker-compose", *flags, "config"))
    for name, service in merged(*files)["services"].items():
        assert found["services"][name].get("environment", {}) == service.get("environment", {})
        assert found["services"][name]["image"] == service["image"]


def test_hadolint_has_nothing_to_say() -> None:
    assert _run("hadolint", "Dockerfile") == ""


def _run(tool: str, *words: str) -> str:
    command = [str(Path(sys.executable).parent / tool), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_images_run_as_nobody_special_and_the_router_without_torch() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    by_name = {re.match(r"(\S+) AS (\w+)", stage)[2]: stage for stage in stages}
    for service in OURS:
        assert "USER 10001" in by_name[service]
        copied = set(re.findall(r"COPY services/(\w+)", by_name[service]))
        assert copied == {service}
    assert by_name["router"].startswith("common")
    assert "torch" not in _commands(by_name["router"] + by_name["common"])


def _commands(stage: str) -> str:
    return "".join(line for line in stage.splitlines(keepends=True) if not line.startswith("#"))
