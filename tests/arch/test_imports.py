"""What a started process may hold: the router, the SDK and the CLI never import torch, cupy or transformers."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "cupy", "transformers", "safetensors", "numpy")


@pytest.mark.parametrize(
    "module",
    ["services.router.__main__", "services.router.server", "deltaserve.client", "deltaserve.cli.main", "deltaserve.rpc.servers"],
)  # fmt: skip
def test_light_processes_stay_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_kernels_is_no_package() -> None:
    """`transformers` would import a local package of that name in place of its own dependency."""
    done = subprocess.run(
        [sys.executable, "-c", "import importlib.util as u; s = u.find_spec('kernels'); print(s and s.origin)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "None"


def test_stubs_match_the_protos() -> None:
    done = subprocess.run([sys.executable, "scripts/generate_stubs.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
