"""The API key of an HTTP request: a bearer token as programs send it, or what a browser asked its user for."""

from __future__ import annotations

import base64
import binascii

from starlette.requests import Request

BASIC = 'Basic realm="DeltaServe: an admin API key as the password", charset="UTF-8"'
"""What makes a browser ask for a key, and send it with everything that the live page fetches."""

_BASIC = "basic "
_OWN = ("same-origin", "none")


def authorization(request: Request) -> str | None:
    """Returns the `authorization` header, with a key that a browser sends as a password turned into a bearer token.

    Browsers send passwords by themselves, also when another site makes them ask: such a request counts as one without.
    """
    header: str | None = request.headers.get("authorization")
    if header is None or header[: len(_BASIC)].lower() != _BASIC:
        return header
    if request.headers.get("sec-fetch-site", "none") not in _OWN:
        return None
    try:
        decoded = base64.b64decode(header[len(_BASIC) :], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return header  # refused as of no known form
    return f"Bearer {decoded.partition(':')[2]}"
