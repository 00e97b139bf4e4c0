"""PromQL of the dashboard and the alert rules, read by a parser of the language."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "deltaserve.json"
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"


@dataclass(frozen=True)
class Used:
    """A metric in an expression, and the labels it is chosen by."""

    metric: str
    labels: frozenset[str]


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def expressions() -> Iterator[tuple[str, str]]:
    """Yields where an expression is, and the expression, with Grafana's variables filled in."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", _filled(target["expr"])
    for variable in dashboard()["templating"]["list"]:
        found = re.fullmatch(r"label_values\((.*), \w+\)", variable.get("definition", ""))
        if found:
            yield f"variable {variable['name']}", found[1]
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]


def uses(node: Any) -> Iterator[Used]:
    """Yields the metrics in a parsed expression."""
    if isinstance(node, promql.VectorSelector):
        yield Used(node.name, frozenset(matcher.name for matcher in node.matchers.matchers))
    elif isinstance(node, promql.MatrixSelector):
        yield from uses(node.vector_selector)
    elif isinstance(node, promql.BinaryExpr):
        yield from uses(node.lhs)
        yield from uses(node.rhs)
    elif isinstance(node, promql.Call):
        for argument in node.args:
            yield from uses(argument)
    elif isinstance(node, promql.AggregateExpr | promql.ParenExpr | promql.UnaryExpr | promql.SubqueryExpr):
        yield from uses(node.expr)
    else:
        assert isinstance(node, promql.NumberLiteral | promql.StringLiteral), type(node)


def _filled(text: str) -> str:
    filled = text.replace("$__rate_interval", "1m").replace("$worker", ".*")
    assert "$" not in filled, f"{text!r} has a variable that is not known here"
    return filled
