"""What became of each request, and when."""

from __future__ import annotations

import msgspec

OK, CANCELLED = "OK", "CANCELLED"


class Record(msgspec.Struct):
    """One request. Times are seconds from the start of the run, as this machine's monotonic clock tells them.

    Attributes:
        model: whom it asked.
        due: when it was planned to be sent; latencies count from here, so that a late send is not hidden.
        sent: when it was sent.
        ended: when its last frame had been read, or it failed or was left.
        status: `OK`, `CANCELLED` (left as planned), or why it failed: a gRPC code's name, `HTTP 503`, `TIMEOUT`, ...
        prompt_tokens, output_tokens: as the server counts them; as far as they came where it did not tell.
        frames: times at which tokens came, as native doubles; a frame may hold several tokens.
        tier: where the server had the delta when the request reached the worker; empty for the base or if not told.
        load: seconds that the request waited for its delta, as the server tells.
    """

    model: str
    due: float
    sent: float = 0.0
    ended: float = 0.0
    status: str = OK
    prompt_tokens: int = 0
    output_tokens: int = 0
    frames: bytes = b""
    tier: str = ""
    load: float = 0.0

    @property
    def times(self) -> memoryview[float]:
        """Times of `frames`."""
        return memoryview(self.frames).cast("d")

    @property
    def ttft(self) -> float | None:
        """Seconds from when it was due to its first token."""
        return self.times[0] - self.due if self.frames else None

    @property
    def e2e(self) -> float:
        """Seconds from when it was due to its end."""
        return self.ended - self.due

    @property
    def per_token(self) -> float | None:
        """Mean seconds a token after the first; None with fewer than two."""
        if self.output_tokens < 2 or not self.frames:
            return None
        times = self.times
        return (times[-1] - times[0]) / (self.output_tokens - 1)
