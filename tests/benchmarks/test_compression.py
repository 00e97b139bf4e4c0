import json
import sys
from pathlib import Path

import pytest

from benchmarks import compression


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["compression", *arguments])
    compression.main()


def test_rows_are_added_and_not_measured_again(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = zoo / "rows.json"
    arguments = ("--zoo", str(zoo), "--json", str(path))
    run(monkeypatch, *arguments, "--rows", "fine-tune;BitDelta, not*")
    rows = json.loads(path.read_text())
    assert [row["method"] for row in rows] == ["fine-tune", "BitDelta, not distilled"]
    assert [row["model"] for row in rows] == ["copy", "copy"]
    assert (rows[0]["kl"], rows[0]["bits_per_parameter"], rows[0]["ratio"]) == (0, 16, 1)
    assert rows[1]["kl"] > 0
    rows[1]["kl"] = 123.0
    path.write_text(json.dumps(rows))
    capsys.readouterr()
    run(monkeypatch, *arguments, "--rows", "BitDelta, not*;base")
    assert "123.00000" in capsys.readouterr().out
    assert [row["method"] for row in json.loads(path.read_text())] == ["fine-tune", "BitDelta, not distilled", "base"]


def test_nothing_is_begun_after_the_time_limit(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = zoo / "rows.json"
    run(monkeypatch, "--zoo", str(zoo), "--json", str(path), "--rows", "fine-tune", "--time-limit", "-1")
    assert "not begun" in capsys.readouterr().out
    assert not path.exists()
