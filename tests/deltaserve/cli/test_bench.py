"""`deltaserve bench` against a real gRPC server that echoes the words of a prompt."""

import json
from pathlib import Path
from typing import Any

import pytest

from deltaserve.bench.traces import read_trace
from deltaserve.cli.main import main

Run = Any
QUICK = ("--rate", "100", "--duration", "0.3", "--prompt-tokens", "3", "--output-tokens", "5")


@pytest.fixture
def run(peer: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DELTASERVE_SERVER", peer.address)

    def call(*argv: str) -> tuple[int, str, str]:
        status = main(["bench", *argv])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_all_served_models_are_asked_unless_some_are_named(run: Run, peer: Any) -> None:
    status, out, _ = run(*QUICK, "--json")
    assert status == 0
    found = json.loads(out)
    assert found["models"].keys() == {"tiny", "french"} == {request.model for request in peer.inference.requests}
    assert found["total"]["requests"] == len(peer.inference.requests) == found["total"]["ok"]
    assert found["settings"]["rate"] == 100.0
    assert run("a", "b@3", *QUICK, "--json")[0] == 0
    assert {request.model for request in peer.inference.requests} == {"tiny", "french", "a", "b@3"}


def test_tables_name_what_failed(run: Run) -> None:
    status, out, _ = run("french", "nobody", "breaks", *QUICK, "--slo-ttft", "100", "--slo-e2e", "100")
    assert status == 0
    assert "NOT_FOUND" in out
    assert "UNAVAILABLE" in out
    assert "all of them" in out
    assert "The generator" in out
    assert run("french", "breaks", *QUICK, "--warm-up", "9")[0] == 1


def test_files_hold_what_was_sent_and_what_came(run: Run, peer: Any, tmp_path: Path) -> None:
    paths = {name: str(tmp_path / name) for name in ("t.jsonl", "r.jsonl", "p.html")}
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one two three", "other": 1}\n{"prompt": "four"}\n')
    status, out, _ = run(
        "french", "nobody", *QUICK, "--prompts", str(prompts), "--save-trace", paths["t.jsonl"],
        "--records", paths["r.jsonl"], "--html", paths["p.html"], "--json", "--processes", "2",
    )  # fmt: skip
    assert status == 0
    total = json.loads(out)["total"]
    records = [json.loads(line) for line in Path(paths["r.jsonl"]).read_text().splitlines()]
    planned = read_trace(Path(paths["t.jsonl"]))
    assert [(r["due"], r["model"]) for r in records] == [(p.at, p.model) for p in planned]
    assert {p.prompt for p in planned} <= {"one two three", "four"}
    assert total["output_tokens"] == sum(len(r["frames"]) for r in records if r["status"] == "OK")
    assert total["errors"]["NOT_FOUND"] == sum(r["status"] == "NOT_FOUND" for r in records)
    assert Path(paths["p.html"]).read_text().startswith("<!doctype html>")

    before = len(peer.inference.requests)
    assert run("--trace", paths["t.jsonl"], "--speed", "3", "--requests", "7")[0] == 0
    sent = [(request.text, request.model) for request in peer.inference.requests[before:]]
    assert sorted(sent) == sorted((p.prompt, p.model) for p in planned[:7])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--prompt-tokens", "many"), "--prompt-tokens is 'many'"),
        (("--token-ids", "9-3"), "expected LOW-HIGH"),
        (("--server", "127.0.0.1:9"), "127.0.0.1:9"),
        (("--http", "127.0.0.1:9"), "http://HOST:PORT"),
        (("--http", "http://127.0.0.1:9", "m"), "111"),
        (("--duration", "1e-9"), "raise one of them"),
    ],
)
def test_mistakes_are_told_in_a_line(run: Run, flags: tuple[str, ...], told: str) -> None:
    status, out, err = run(*QUICK, *flags)
    assert (status, out) == (1, "")
    assert told in err
    assert len(err.strip().splitlines()) == 1


def test_misuse_is_2(run: Run) -> None:
    assert run("--cancel", "1.5")[0] == 2
    assert run("--rate", "0")[0] == 2
