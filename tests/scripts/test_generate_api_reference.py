import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "generate_api_reference.py"
PAGE = (ROOT / "docs" / "api.md").read_text()


def test_the_committed_page_is_that_of_the_protos() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_method_and_field_of_the_protos_is_there() -> None:
    for proto in (ROOT / "protos").rglob("*.proto"):
        for method in re.findall(r"^  rpc (\w+)", proto.read_text(), re.MULTILINE):
            assert re.search(rf"^#### \w+\.{method}$", PAGE, re.MULTILINE), method
        for number, field in re.findall(r"(\w+) = (\d+);", proto.read_text()):
            assert f"`{number}` = {field} |" in PAGE, (proto.name, number)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(#([\w-]+)\)", PAGE))))
def test_types_lead_to_their_sections(target: str) -> None:
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    assert target in {heading.lower().replace(".", "") for heading in headings}
