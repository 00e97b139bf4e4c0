"""The client without asyncio."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from deltaserve import errors
from deltaserve.client import Client, UploadProgress
from deltaserve.v1 import models_pb2


def test_generate_streams(peer: Any) -> None:
    with Client(peer.address) as client, client.generate("french", "a b c") as stream:
        assert list(stream.text()) == ["a", " b", " c"]
        assert stream.accepted is not None
        assert stream.summary is not None
        assert stream.progress is not None
    with pytest.raises(RuntimeError, match="closed"):
        client.models()
    client.close()


def test_leaving_the_block_cancels_upstream(peer: Any) -> None:
    peer.inference.delay = 0.05
    with Client(peer.address) as client:
        with client.generate("french", "a " * 1000) as stream:
            for _ in stream.text():
                break
        peer.wait_idle()


def test_errors_and_completion(peer: Any) -> None:
    with Client(peer.address) as client:
        assert client.complete("french", "a b", max_tokens=5).text == "a b"
        with client.generate("french", "a b") as stream:
            assert stream.completion().text == "a b"
        with pytest.raises(errors.NotFoundError):
            client.complete("nobody", "a")


def test_upload_and_job(peer: Any, checkpoint: Path) -> None:
    seen: list[UploadProgress] = []
    peer.models.states = [models_pb2.Job(state=models_pb2.JOB_STATE_SUCCEEDED)]
    with Client(peer.address) as client:
        uri = client.upload(checkpoint, progress=seen.append)
        job = client.create_job("french", uri, codec="int2")
        assert client.wait_for_job(job.job_id).state == models_pb2.JOB_STATE_SUCCEEDED
        assert client.job(job.job_id).spec.source_uri == uri
        assert len(client.jobs()) == 1
        client.set_alias("fr", "french")
        client.pin("french", False)
        assert [m.model for m in client.models()] == ["tiny", "french"]
        assert [w.worker for w in client.workers()] == ["w1"]
    assert seen[-1].stage == "verifying"


def test_threads_share_a_client(peer: Any) -> None:
    texts: list[str] = []
    with Client(peer.address) as client:
        threads = [threading.Thread(target=lambda: texts.append(client.complete("m", "a b").text)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == ["a b"] * 8


def test_a_process_that_forgets_to_close_ends(peer: Any) -> None:
    code = f"from deltaserve.client import Client; print(Client('{peer.address}').complete('m', 'a b').text)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.strip(), done.stderr) == ("a b", "")
