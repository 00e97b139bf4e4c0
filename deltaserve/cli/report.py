"""The quality report of a compression, as a person decides by it."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console


def show_report(console: Console, report_json: str) -> None:
    """Prints a report as a job or revision carries it."""
    show_report_fields(console, json.loads(report_json))


def show_report_fields(console: Console, report: dict[str, Any]) -> None:
    """Prints a parsed report."""
    console.print_json(data=report)
