import math
import sys
from pathlib import Path

import pytest

from benchmarks import compression_limit
from benchmarks.compression_limit import limit


def test_equal_tensors_get_equal_bits():
    assert limit({"a": 2.0, "b": 2.0}, {"a": 10, "b": 10}, 1.0) == pytest.approx(4 / 3)


def test_the_limit_is_no_worse_than_any_division():
    noise, weights, bits = {"a": 5.0, "b": 0.1, "c": 1.0}, {"a": 10, "b": 40, "c": 20}, 1.1
    least = limit(noise, weights, bits)
    for a in (0.5, 1.0, 1.5, 2.0, 2.5):
        for c in (0.5, 1.0, 1.5):
            b = (bits * sum(weights.values()) - a * weights["a"] - c * weights["c"]) / weights["b"]
            rates = {"a": a, "b": b, "c": c}
            if b > 0:
                assert least <= sum(noise[n] / (math.pow(4, rates[n]) - 1) for n in noise) * (1 + 1e-6)


def test_tensors_that_cost_nothing_take_no_bits():
    assert limit({"a": 1.0, "b": 0.0}, {"a": 10, "b": 10}, 0.5) == pytest.approx(1 / 3)


def test_the_table_is_printed(zoo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["compression_limit", "--zoo", str(zoo)])
    compression_limit.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["copy", "1.03"], ["copy", "1.93"], ["copy", "3.90"]]
    assert all(float(line.split()[3]) > 0 for line in lines[2:])
