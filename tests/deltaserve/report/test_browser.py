"""The page in a real browser: nothing overflows, nothing is fetched, nothing runs."""

import html
import json
import random
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltaserve.report.page import render
from tests.deltaserve.report.conftest import HOSTILE

Make = Callable[..., dict[str, Any]]
Open = Callable[..., tuple[dict[str, Any], str]]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
    "--virtual-time-budget=3000",
)  # fmt: skip

# the page in a frame of a phone's or a desktop's width, and what it is like there with all details opened
WRAPPER = """<!doctype html><body><iframe id="page" width="{width}" height="800" srcdoc="{page}"></iframe>
<pre id="found"></pre><script>
addEventListener("load", () => {{
  const view = document.getElementById("page").contentWindow, page = view.document, root = page.documentElement;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const cut = [...page.querySelectorAll("svg:not(.spark)")].flatMap(svg => [...svg.querySelectorAll("text")]
    .filter(text => {{ const box = text.getBBox(); return box.x < -1 || box.x + box.width > 441 }})
    .map(text => text.textContent));
  document.getElementById("found").textContent = JSON.stringify({{
    width: root.clientWidth, content: root.scrollWidth, cut, title: page.title,
    plots: [...page.querySelectorAll("figure svg")].map(svg => svg.getBoundingClientRect().height),
    fetched: view.performance.getEntriesByType("resource").length,
    foreign: page.querySelectorAll("script, img, iframe, object, a, form, input").length,
    ran: view.ran === true, text: page.body.innerText,
  }});
}});
</script>"""


@pytest.fixture(scope="session")
def browser() -> str:
    """A browser, or a skip that is seen."""
    found = next((path for path in map(shutil.which, BROWSERS) if path and _starts(path)), None)
    if found is None:
        reason = f"none of {', '.join(BROWSERS)} starts here; `make test` installs chromium where it may"
        warnings.warn(f"the quality report's page is NOT tested in a browser: {reason}", stacklevel=1)
        pytest.skip(reason)
    return found


def _starts(path: str) -> bool:
    """Some distributions have a command that only says how to get the browser."""
    return subprocess.run([path, "--version"], capture_output=True, timeout=60, check=False).returncode == 0


@pytest.fixture
def open_page(browser: str, tmp_path: Path) -> Open:
    """Opens a page at a width; returns what it is like there, and what the browser's console said."""

    def open_page(page: str, width: int) -> tuple[dict[str, Any], str]:
        wrapper = tmp_path / "wrapper.html"
        wrapper.write_text(WRAPPER.format(width=width, page=html.escape(page)), encoding="utf-8")
        command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", wrapper.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr
        console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
        return json.loads(html.unescape(found[1])), console

    return open_page


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_is_quiet(make_report: Make, open_page: Open, width: int):
    found, console = open_page(render(make_report(layers=random.choice((2, 32, 80))), "french@3"), width)
    assert found["content"] <= found["width"] <= width
    assert found["cut"] == []
    assert found["title"] == "french@3 · quality report"
    assert len(found["plots"]) == 4
    assert all(height > 100 for height in found["plots"])
    assert "Side by side" in found["text"]
    assert (found["fetched"], found["foreign"], console) == (0, 0, "")


def test_hostile_strings_neither_run_nor_widen_the_page(make_report: Make, open_page: Open):
    long = "w" * 3000
    report = make_report(name=lambda: random.choice([*HOSTILE, long]))
    report["tensors"][0] |= {"name": f"model.{long}", "error": 9.0, "codec": HOSTILE[0]}
    report["gate"]["failures"] = [*HOSTILE, long]
    found, console = open_page(render(report, long + HOSTILE[0]), 390)
    assert found["content"] <= found["width"]
    assert (found["fetched"], found["foreign"], found["ran"], console) == (0, 0, False, "")


def test_a_script_would_not_run_even_in_the_page(make_report: Make, open_page: Open):
    """The page's own policy is the second wall; and the console is really being read here."""
    page = render(make_report(), "french@3")
    found, console = open_page(page.replace("<main>", "<script>ran = true</script><main>"), 390)
    assert not found["ran"]
    assert "Content Security Policy" in console
    without = re.sub(r"<meta http-equiv[^>]*>", "", page)
    assert open_page(without.replace("<main>", "<script>ran = true</script><main>"), 390)[0]["ran"]
