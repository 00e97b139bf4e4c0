import json
from pathlib import Path

import pytest
import torch

from benchmarks.measured_process import Clock, contents, kill_at, run
from benchmarks.random_pair import config_of, generate


def line(stage: str, done: int) -> str:
    return json.dumps({"stage": stage, "layers_done": done, "layers_total": 3})


def test_phases_and_steps_are_told_apart():
    clock = Clock()
    clock.log("INFO profiling over 10 tokens")
    for done in range(3):
        for _ in range(5):  # the end of what came before, then four steps
            clock.line(line("compressing", done))
    clock.line(line("compressing", 3))
    clock.line(line("evaluating", 3))
    clock.log("INFO attempt 1: 2.0 bits")
    clock.enter("")
    assert list(clock.phases) == [
        "prepare", "profile", "embedding, first layer", "other layers", "head", "evaluate", "side by side, delivery",
    ]  # fmt: skip
    assert list(clock.steps) == ["q, k, v", "o", "gate, up", "down", "rest of the layer"]
    assert len(clock.layers) == 2
    assert sum(clock.steps.values()) == pytest.approx(sum(clock.layers))


def test_a_run_is_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    generate(tmp_path / "base", tmp_path / "tuned", config_of("tiny"), torch.device("cpu"))
    options = {"preset": "balanced", "calibration_samples": 8, "calibration_tokens": 32}
    paths = {"base": str(tmp_path / "base"), "tuned": str(tmp_path / "tuned"), "work": str(tmp_path / "work")}
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({**paths, "threads": 1, "options": options}))
    seconds, peaks, clock = run(spec, None)
    assert sum(clock.phases.values()) == pytest.approx(seconds, rel=0.1)
    assert 0 < peaks.private < peaks.host
    assert (tmp_path / "work" / "out" / "report.json").is_file()
    spec.write_text("{}")
    with pytest.raises(RuntimeError, match="status 3"):
        run(spec, None)
    assert "refused" in capfd.readouterr().err


def test_a_killed_run_leaves_no_result_and_comes_to_the_same_one(tmp_path: Path):
    generate(tmp_path / "base", tmp_path / "tuned", config_of("tiny", 3), torch.device("cpu"))
    options = {"preset": "tiny", "calibration_samples": 8, "calibration_tokens": 32}
    specs = []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        specs.append(tmp_path / name / "spec.json")
        paths = {"base": str(tmp_path / "base"), "tuned": str(tmp_path / "tuned"), "work": str(tmp_path / name)}
        specs[-1].write_text(json.dumps({**paths, "threads": 1, "options": options}))
    assert 1 <= kill_at(specs[1], 1) < 3
    assert not (tmp_path / "killed" / "out" / "manifest.json").exists()
    for spec in specs:
        run(spec, None)
    whole, resumed = (contents(tmp_path / name / "out") for name in ("whole", "killed"))
    assert "delta.safetensors" in whole
    assert whole == resumed
