"""Dashboard and alert rules, as far as they can be judged without services; e2e/test_metrics.py does the rest."""

import shutil
import subprocess

import promql_parser as promql
import pytest
import yaml

from tests.deploy.expressions import RULES, dashboard, expressions, uses


@pytest.mark.parametrize(("where", "text"), list(expressions()), ids=lambda text: text[:60])
def test_expressions_parse_and_name_a_metric(where: str, text: str) -> None:
    assert list(uses(promql.parse(text))), where


@pytest.mark.parametrize("text", ["sum(rate(x[5m])", "rate(x)", "histogram_quantile(0.9)", "x{a=}"])
def test_the_parser_refuses_what_prometheus_would(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        promql.parse(text)


def test_alerts_say_what_they_mean() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    names = [rule["alert"] for rule in rules]
    assert len(set(names)) == len(names)
    for rule in rules:
        assert rule["labels"]["severity"] in {"critical", "warning"}, rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description"}, rule["alert"]


def test_panels_have_places_and_units() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["datasource"]["uid"] == "${datasource}"


def test_promtool_agrees() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here (Debian's package prometheus has it); the parser's tests above ran")
    done = subprocess.run([promtool, "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
