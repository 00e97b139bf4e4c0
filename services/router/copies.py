"""How many workers should hold a delta. Pure."""

from __future__ import annotations

import math

_SLACK = 0.3  # of a copy: a copy goes only when the load is this far below what the others can take


def copies(load: float, held: int, most: int) -> int:
    """Returns the copies wanted: one at least, `most` at most.

    Args:
        load: what is asked of the revision, as a share of what one copy may take.
        held: copies there are now; they stay until the load is well below what fewer could take.
        most: workers.
    """
    wanted = max(1, math.ceil(load))
    if wanted < held:
        wanted = min(held, max(1, math.ceil(load + _SLACK)))
    return min(wanted, most)
