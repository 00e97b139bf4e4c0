"""The command as people call it, against a real server."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deltaserve import errors
from deltaserve.cli.main import main
from deltaserve.v1 import models_pb2

Run = Any


@pytest.fixture
def run(peer: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line against the peer; returns status, standard output and standard error."""
    monkeypatch.setenv("DELTASERVE_SERVER", peer.address)

    def call(*argv: str) -> tuple[int, str, str]:
        status = main(argv)
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_generate_writes_only_the_text_to_standard_output(run: Run, peer: Any) -> None:
    assert run("generate", "french", "a b c", "--max-tokens", "9", "--temperature", "0", "--stop", "x") == (
        0,
        "a b c\n",
        "",
    )
    request = peer.inference.requests[0]
    assert request.stopping.max_tokens == 9
    assert list(request.stopping.stop) == ["x"]
    assert request.sampling.HasField("temperature")
    assert not request.sampling.HasField("top_p")


def test_generate_takes_its_prompt_from_a_pipe(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert run("generate", "french")[1] == "from a pipe\n"


def test_generate_as_chat_with_choices_and_stats(run: Run, peer: Any) -> None:
    status, out, err = run("generate", "french", "hi there", "--chat", "-n", "2", "--stats")
    assert (status, out) == (0, "[0] hi there\n[1] hi there\n")
    assert "2 + 2 tokens" in err
    assert peer.inference.requests[0].chat.messages[0].role == "user"


def test_generate_json_is_frames(run: Run) -> None:
    frames = [json.loads(line) for line in run("generate", "french", "a", "--json")[1].splitlines()]
    assert [next(iter(frame)) for frame in frames] == ["accepted", "progress", "chunk", "finished", "summary"]


def test_errors_are_one_line_and_status_1(run: Run) -> None:
    assert run("generate", "nobody", "a") == (1, "", "error: model 'nobody' is not published\n")
    status, out, err = run("generate", "breaks", "a b")
    assert (status, out) == (1, "a")
    assert err.splitlines()[-1].startswith("error: worker w1 was lost")
    assert run("jobs", "watch", "none") == (1, "", "error: no job 'none'\n")


def test_misuse_is_status_2(run: Run) -> None:
    for argv in (["generate"], ["nonsense"], ["upload", "."], ["alias", "x"], ["models", "--wrong"]):
        status, _, err = run(*argv)
        assert status == 2, argv
        assert "Usage" in err


def test_no_server_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--server", "127.0.0.1:1"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "deltaserve up" in said
    assert "--server" in said


def test_help_and_version(run: Run) -> None:
    assert run("--version")[1].startswith("deltaserve 0.")
    status, out, _ = run("--help")
    assert status == 0
    for command in ("up", "upload", "compress", "jobs", "models", "report", "generate", "chat", "info", "workers"):
        assert f"\n  {command} " in out


def test_models_and_workers(run: Run) -> None:
    out = run("models")[1]
    assert "tiny (base)" in out
    assert "12.5x" in out
    assert "w1:host" in out
    assert "alias fr" in out
    assert json.loads(run("models", "--json")[1])[1]["model"] == "french"
    out = run("workers")[1]
    assert "serving" in out
    assert "french@2:host" in out
    assert json.loads(run("workers", "--json")[1])[0]["worker"] == "w1"


def test_settings(run: Run, peer: Any) -> None:
    assert run("alias", "fr", "french@2") == (0, "fr -> french@2\n", "")
    assert run("alias", "fr", "--remove")[0] == 0
    assert run("pin", "french")[0] == run("pin", "french", "--undo")[0] == 0
    status, _, err = run("delete", "french@1")
    assert status == 1
    assert "--yes" in err
    assert run("delete", "french@1", "--yes") == (0, "french@1 deleted\n", "")
    assert run("delete", "french", "--yes")[0] == 1
    alias, removed, pin, unpin, delete = peer.models.settings
    assert (alias.target, removed.target, pin.pinned, unpin.pinned) == ("french@2", "", True, False)
    assert delete.name == "models/french/revisions/1"
    assert run("drain", "w1")[0] == run("place", "french")[0] == 0
    assert len(peer.admin.orders) == 2


def test_aliases_canaries_and_shadows(run: Run, peer: Any) -> None:
    split = run("alias", "fr", "french@1=3", "french@2=1", "--shadow", "french@3", "--share", "0.2", "--expect", "6")
    assert split == (0, "fr -> french@1 (75.0%), french@2 (25.0%), shadowed by french@3 (20.0%)\n", "")
    assert run("rollback", "fr", "--to", "5")[:2] == (0, "fr -> french@1 (version 5 again, now 8)\n")
    request, rollback = peer.models.settings
    assert {route.target: route.weight for route in request.routes} == {"french@1": 3, "french@2": 1}
    assert (request.shadow.target, request.shadow.share, request.expected_version) == ("french@3", 0.2, 6)
    assert rollback.version == 5
    assert "french@1 (75.0%), french@2 (25.0%)" in run("aliases")[1]
    assert len(json.loads(run("aliases", "fr", "--json")[1])[0]["versions"]) == 2
    out = run("shadows")[1]
    for said in ("99.00%", "75.0%", "12.0 tokens", "5 no room"):
        assert said in out
    assert json.loads(run("shadows", "--json")[1])[0]["primary"] == "french@1"
    assert run("alias", "fr", "french@1=many")[0] == 1
    assert run("delete", "french@1", "--yes", "--force")[0] == 0
    assert peer.models.settings[-1].force


def test_upload_compresses_and_publishes(run: Run, peer: Any, checkpoint: Path, tmp_path: Path) -> None:
    evaluation = tmp_path / "labelled.jsonl"
    evaluation.write_text('{"prompt": "a", "targets": ["b"]}\n')
    progress = models_pb2.JobProgress(stage=models_pb2.JOB_STAGE_COMPRESSING, layers_done=3, layers_total=8)
    peer.models.states = [
        models_pb2.Job(state=models_pb2.JOB_STATE_RUNNING, progress=progress),
        models_pb2.Job(state=models_pb2.JOB_STATE_SUCCEEDED, revision_name="models/french/revisions/7"),
    ]
    status, out, err = run(
        "upload", str(checkpoint), "--model", "french", "--codec", "int2", "--evaluation", str(evaluation),
        "--calibration", str(checkpoint / "train.jsonl"), "--max-kl", "0.5", "--job-id", "j1",
    )  # fmt: skip
    assert status == 0, err
    assert "published french@7" in out
    for said in ("hash files: done", "upload: done", "compress: done", "layer 3 of 8"):
        assert said in err
    spec = peer.models.jobs["j1"].spec
    assert spec.source_uri.startswith("upload:u-")
    assert (spec.compression.codec, spec.policy.max_kl) == ("int2", 0.5)
    assert (spec.calibration_uri, spec.evaluation_uri) == ("train.jsonl", "labelled.jsonl")
    assert {path for _, path in peer.models.stored} >= {"train.jsonl", "labelled.jsonl", "model.safetensors"}


def test_compress_names_the_folder(run: Run, peer: Any, checkpoint: Path) -> None:
    assert run("compress", str(checkpoint), "--model", "french", "--job-id", "j1", "--detach")[0] == 0
    assert peer.models.jobs["j1"].spec.source_uri == str(checkpoint)
    assert not peer.models.stored
    assert run("compress", str(checkpoint), "--model", "No Name")[0] == 1


@pytest.mark.parametrize(
    ("flags", "compression"),
    [
        (["--preset", "faithful", "--lossless"], {"preset": "faithful", "lossless": True}),
        (["--bits", "1.5", "--embedding-codec", "sign1"], {"bits_per_param": 1.5, "embedding_codec": "sign1"}),
        (["--smallest", "--max-kl", "0.1"], {"smallest": True}),
        (["--codec", "sparse24_int4", "--group-size", "0"], {"codec": "sparse24_int4", "group_size": 0}),
        ([], {}),
    ],
)
def test_sizes(run: Run, peer: Any, checkpoint: Path, flags: list[str], compression: dict[str, Any]) -> None:
    assert run("compress", str(checkpoint), "--model", "french", "--job-id", "j1", "--detach", *flags)[0] == 0
    assert peer.models.jobs["j1"].spec.compression == models_pb2.CompressionOptions(**compression)


def test_sizes_that_exclude_each_other_are_told_before_the_upload(run: Run, peer: Any, checkpoint: Path) -> None:
    status, _, err = run("upload", str(checkpoint), "--model", "french", "--preset", "tiny", "--bits", "2")
    assert status == 2
    assert "--preset and --bits exclude each other" in err
    assert not peer.models.stored
    assert run("upload", str(checkpoint), "--model", "french", "--bits", "0")[0] == 2


def test_a_failed_job_tells_why(run: Run, peer: Any, checkpoint: Path) -> None:
    gate = errors.QualityGateError("KL 0.2 exceeds max_kl 0.1; use more bits", kl=0.2)
    failed = models_pb2.Job(state=models_pb2.JOB_STATE_FAILED, error_status=gate.to_status().SerializeToString())
    peer.models.states = [failed]
    status, out, err = run("compress", str(checkpoint), "--model", "french", "--job-id", "j1")
    assert status == 1
    assert err.endswith("error: KL 0.2 exceeds max_kl 0.1; use more bits\n")
    assert "published" not in out
    listed = run("jobs", "list")[1]
    assert "failed" in listed
    assert "use more bits" in listed
    assert run("jobs", "watch", "j1")[0] == 1
    assert "cancelled" in run("jobs", "cancel", "j1")[1]


def test_chat_keeps_the_conversation(run: Run, peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n/model other\nthree\n/reset\nfour\n"))
    status, out, _ = run("chat", "french", "--system", "be brief")
    assert status == 0
    assert out.splitlines()[0] == "be brief one"
    asked = [[m.content for m in request.chat.messages] for request in peer.inference.requests]
    assert asked[0] == ["be brief", "one"]
    assert asked[1][3:] == ["two"]
    assert asked[3] == ["be brief", "four"]
    assert [request.model for request in peer.inference.requests] == ["french", "french", "other", "other"]


def test_interrupting_generate_ends_the_request(peer: Any) -> None:
    peer.inference.delay = 0.05
    # whoever runs the tests in the background of a script has SIGINT ignored, and so have its children
    heed = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    # argv[0] is what the interpreter finds its environment by
    arguments = [sys.executable, "-m", "deltaserve.cli", "generate", "french", "a " * 1000, "--server", peer.address]
    command = [sys.executable, "-c", heed, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == "a"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=40)  # the whole answer would take 50 s
    assert process.returncode == 130
    assert err.split() == ["interrupted"]
    peer.wait_idle()


def test_a_closed_pipe_is_no_error(peer: Any) -> None:
    peer.inference.delay = 0.02
    command = (
        f"{sys.executable} -m deltaserve.cli generate french '{'word ' * 200}' --server {peer.address} | head -c 4"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("word", "")
    time.sleep(0.1)
    peer.wait_idle()


def test_placement_is_shown_with_its_reasons(run: Run) -> None:
    out = run("placement")[1]
    assert "french@2 (pinned)" in out
    assert "42 %" in out
    assert "disk of w1" in out
    assert "> 1 day" in out
    orders = run("placement", "--orders")[1]
    assert "french@2" in orders
    assert "pinned" in orders
    assert json.loads(run("placement", "--json")[1])["digest"] == "d1"
    assert "has not decided anything" in run("placement", "nothing")[1]
