"""A page as one file, without scripts, that asks nothing of any network."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from deltaserve.report.markup import Html, join, tag

# no script, no request: even if escaping had a hole, nothing in a report could run or call home
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def document(title: str, body: Html) -> str:
    """Returns an HTML document in the look of page.css."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", _css()),
    )
    return f"<!doctype html>\n{tag('html', join([head, tag('body', body)]), lang='en')}\n"


@cache
def _css() -> Html:
    return Html(files(__package__).joinpath("page.css").read_text(encoding="utf-8"))
