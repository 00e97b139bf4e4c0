"""A killed pipeline goes on where it was, and ends with the same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from services.compressor.pipeline.spec import Spec
from tests.services.compressor.pipeline.conftest import lines, make_pair, make_spec

ROOT = Path(__file__).resolve().parents[4]


def start(spec: Spec) -> subprocess.Popen[str]:
    path = spec.work / "spec.json"
    path.write_bytes(msgspec.json.encode(spec, enc_hook=str))
    command = [sys.executable, "-m", "services.compressor.pipeline", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def finish(spec: Spec) -> list[dict[str, object]]:
    process = start(spec)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


def result(spec: Spec) -> dict[str, bytes]:
    """All files of the result; the manifest without the time of its making."""
    files = {path.name: path.read_bytes() for path in spec.out.iterdir()}
    manifest = json.loads(files["manifest.json"])
    assert manifest.pop("created").endswith("Z")
    return files | {"manifest.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize("codec", ["int2", "sign1"])
def test_killed_after_every_layer_and_still_bit_identical(tmp_path: Path, codec: str):
    pair = make_pair(tmp_path, tie_word_embeddings=False)
    calibration = lines(tmp_path / "c.jsonl", [{"text": f"line {i} of some text " * 3} for i in range(12)])
    whole, killed = (
        make_spec(pair, tmp_path / name, codec=codec, threads=1, calibration=calibration)
        for name in ("whole", "killed")
    )
    lines_of_whole = finish(whole)
    for layers in (1, 2):  # kill as soon as this many layers are done
        process = start(killed)
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["layers_done"] == layers:
                break
        process.kill()
        process.communicate()
        assert not (killed.out / "manifest.json").exists()
    written = {path: path.stat().st_mtime_ns for path in (killed.work / "parts").glob("*.part.safetensors")}
    assert len(written) >= 3
    lines_of_killed = finish(killed)
    assert result(killed) == result(whole)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())  # nothing was coded twice
    assert lines_of_killed[-1]["layers_done"] == lines_of_whole[-1]["layers_done"] == 3
    assert lines_of_killed[-1]["bytes_out"] == lines_of_whole[-1]["bytes_out"]


def test_other_options_begin_anew(tmp_path: Path):
    pair = make_pair(tmp_path)
    for codec in ("int4", "sign1"):
        spec = make_spec(pair, tmp_path / "work", codec=codec, threads=1)
        finish(spec)
        manifest = json.loads((spec.out / "manifest.json").read_bytes())
        assert {t["codec"] for t in manifest["tensors"] if t["kind"] == "linear"} == {codec}
