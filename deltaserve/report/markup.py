"""HTML that cannot be injected into: text is escaped when it becomes a child or an attribute, and nowhere else."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_VOID = frozenset({"br", "meta", "wbr"})
# what HTML forbids or what could not be written as UTF-8: controls but tab and newline, lone surrogates
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Html(str):
    """Markup, as opposed to text."""

    __slots__ = ()


Child = str | Html | None
Attribute = str | float | bool | None


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """Returns an element.

    Args:
        name: of the element.
        children: markup is taken as it is, any other string is escaped, None is left out.
        attributes: `class_` is written as `class`, other underscores as hyphens; True is an attribute without value,
            None and False are left out; numbers are rounded to hundredths.
    """
    written = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[Child], separator: str = "") -> Html:
    """Returns children one after the other, text among them escaped."""
    return Html(separator.join(text(child) for child in children if child is not None))


def text(child: str) -> Html:
    """Returns text escaped for HTML; markup as it is."""
    if isinstance(child, Html):
        return child
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", child.replace("\r\n", "\n")), quote=True))


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    shown = f"{round(value, 2):g}" if isinstance(value, int | float) else text(value)
    return f' {name}="{shown}"'
