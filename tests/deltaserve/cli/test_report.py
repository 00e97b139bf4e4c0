"""What a person reads of a quality report."""

import io
import json
from typing import Any

from rich.console import Console

from deltaserve.cli.report import show_report

REPORT: dict[str, Any] = {
    "version": 1,
    "quality": {
        "kl": 0.01234,
        "top1_agreement": 0.987,
        "perplexity": {"base": None, "fine_tune": 1.8212, "compressed": 1.8301},
        "sequences": 3,
        "tokens": 640,
    },
    "accuracy": {"base": 0.0, "fine_tune": 0.935, "compressed": 0.93, "rows": 200, "skipped": 2},
    "sizes": {
        "parameters": 100,
        "checkpoint_bytes": 14_700_000,
        "delta_bytes": 3_800_000,
        "bits_per_parameter": 4.15,
        "ratio": 3.87,
        "by_class": {"linear": {"tensors": 1, "ratio": 3.9, "bits_per_parameter": 4.12}},
    },
    "calibration": {},
    "tensors": [{"name": f"t{i}", "codec": "int4", "bytes": 1, "error": i / 1000} for i in range(5)],
    "policy": {"max_kl": 0.01},
    "gate": {"passed": False, "failures": ["KL is 0.01234 nats a token; the policy allows 0.01"]},
}


def shown(report: dict[str, Any]) -> list[str]:
    console = Console(file=io.StringIO(), width=120, markup=False, highlight=False)
    show_report(console, json.dumps(report))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_report_in_a_few_lines() -> None:
    lines = [" ".join(line.split()) for line in shown(REPORT)]
    assert lines == [
        "quality base fine-tune compressed",
        "accuracy on your rows 0.0 % 93.5 % 93.0 % 200 rows, 2 left out, -0.5 points",
        "perplexity - 1.821 1.83 640 tokens held out",
        "KL to the fine-tune 0.0123 nats a token",
        "top-1 agreement 98.7 %",
        "size 14.7 MB -> 3.8 MB: 3.9x (linears 3.9x at 4.12 bits), 4.15 bits a parameter, everything counted",
        "largest relative output errors: t4 0.0040 (int4), t3 0.0030 (int4), t2 0.0020 (int4)",
        "missed: KL is 0.01234 nats a token; the policy allows 0.01",
    ]


def test_without_labelled_rows() -> None:
    assert not [line for line in shown(REPORT | {"accuracy": None}) if "accuracy" in line]


def test_another_version_is_shown_as_it_is() -> None:
    assert json.loads("\n".join(shown({"version": 9, "verdict": "fine"})))["verdict"] == "fine"
