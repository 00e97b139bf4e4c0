"""Where one continuation says something else than another."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from deltaserve.report.markup import Html, join, tag

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_MOST_WORDS = 2000  # comparing takes quadratic time, and anybody may have written a report


def mark(said: str, reference: str) -> Html:
    """Returns `said` with the words marked that are not in `reference` at their place.

    Words that are missing at a place are marked there with a caret.
    """
    ours, theirs = _WORDS.findall(said), _WORDS.findall(reference)
    if ours == theirs:
        return join([said])
    if len(ours) > _MOST_WORDS or len(theirs) > _MOST_WORDS:
        return tag("mark", said)
    parts: list[str | Html] = []
    for kind, begin, end, other, until in SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        words = "".join(ours[other:until])
        if kind == "equal":
            parts.append(words)
        elif words:
            parts.append(tag("mark", words))
        else:
            missing = "".join(theirs[begin:end]).strip() or "a blank"
            parts.append(tag("mark", "‸", class_="missing", title=f"missing here: {missing}"))
    return join(parts)
