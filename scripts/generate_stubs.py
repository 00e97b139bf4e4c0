"""Generates the committed gRPC stubs from protos/; `--check` fails when the committed ones differ."""

import argparse
import filecmp
import sys
import sysconfig
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
OUTPUT = Path("deltaserve/v1")
SCRIPTS = Path(sysconfig.get_path("scripts"))


def generate(target: Path) -> None:
    """Writes the stubs of every proto below `target`, at the path that is their import name."""
    sources = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.rglob("*.proto"))
    include = Path(protoc.__file__).parent / "_proto"
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    # this environment's plugins, whether or not it is on PATH
    plugins = [f"--plugin=protoc-gen-{kind}={SCRIPTS / f'protoc-gen-{kind}'}" for kind in ("mypy", "mypy_grpc")]
    code = protoc.main(["protoc", f"-I{PROTOS}", f"-I{include}", *plugins, *outputs, *sources])
    if code != 0:
        raise SystemExit(f"protoc failed with exit status {code}")


def check() -> int:
    """Compares fresh stubs with the committed ones; returns the process's exit status."""
    with tempfile.TemporaryDirectory() as tmp:
        generate(Path(tmp))
        fresh, committed = Path(tmp) / OUTPUT, ROOT / OUTPUT
        names = sorted(p.name for p in fresh.iterdir())
        stale = {p.name for p in committed.glob("*_pb2*")} - set(names)
        _, different, missing = filecmp.cmpfiles(fresh, committed, names, shallow=False)
    wrong = sorted({*different, *missing, *stale})
    if wrong:
        sys.stderr.write(f"stubs differ from protos/: {', '.join(wrong)}; run `make stubs` and commit\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    if parser.parse_args().check:
        sys.exit(check())
    generate(ROOT)
