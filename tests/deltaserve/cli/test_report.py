"""What a person reads of a quality report."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deltaserve.cli.main import main
from deltaserve.cli.report import show_report
from deltaserve.v1 import models_pb2

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


def test_what_version_2_adds() -> None:
    said = {"text": "a b", "ended": True}
    added = {
        "quality": REPORT["quality"] | {"kl": None, "kl_p99": 0.25},
        "allocation": {"preset": "small", "budget_bits": 2, "choices": {"sign1": 3, "int2": 1}, "attempts": []},
        "generations": {
            "prompts": [
                {"prompt": "p", "fine_tune": said, "compressed": said},
                {"prompt": "q", "fine_tune": said, "compressed": said | {"ended": False}},
            ]
        },
    }
    lines = [" ".join(line.split()) for line in shown(REPORT | added)]
    assert "KL to the fine-tune - nats a token, 99 % of them up to 0.2500" in lines
    assert "codecs of preset small: int2 x 1, sign1 x 3, budget 2.00 bits" in lines
    assert "side by side: 1 of 2 greedy continuations equal the fine-tune's" in lines
    none = {"generations": {"prompts": [], "left_out": "it is too large"}}
    assert "side by side: left out, it is too large" in shown(REPORT | none)


@pytest.fixture
def server(peer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DELTASERVE_SERVER", peer.address)
    peer.models.report_json = json.dumps(REPORT)
    return peer.models


def test_report_of_a_revision(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "french@2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("french@2\n")
    assert "top-1 agreement" in out
    assert main(["report", "french@2", "--json", "--html", str(tmp_path / "page.html")]) == 0
    assert json.loads(capsys.readouterr().out) == REPORT
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "<title>french@2 · quality report</title>" in page


def test_report_of_a_job_that_the_policy_refused(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = models_pb2.JobSpec(model="french")
    server.jobs["j1"] = models_pb2.Job(
        job_id="j1", spec=spec, state=models_pb2.JOB_STATE_FAILED, report_json=json.dumps(REPORT)
    )
    assert main(["report", "--job", "j1"]) == 0
    assert "missed: KL is 0.01234" in capsys.readouterr().out
    assert main(["report", "--job", "j1", "--html", str(tmp_path / "page.html")]) == 0
    assert "Refused." in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_there_is_no_report(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.report_json = ""
    server.jobs["j2"] = models_pb2.Job(job_id="j2")
    assert main(["report", "french@2"]) == main(["report", "--job", "j2"]) == 1
    err = capsys.readouterr().err
    assert "french@2 has no quality report" in err
    assert "job j2 has no quality report" in err
    assert main(["report"]) == main(["report", "french", "--job", "j2"]) == 2
    server.report_json = "[1]"
    assert main(["report", "french"]) == 1
    assert "JSON list" in capsys.readouterr().err
