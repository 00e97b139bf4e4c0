"""Token buckets. Pure: time is an argument, in seconds of any clock that does not go back."""

from __future__ import annotations


class Bucket:
    """Fills at `rate` units a second up to `burst` units; what is taken may be corrected once the real amount is known.

    An amount above the burst passes when the bucket is full and leaves a debt, since it could never pass otherwise.

    Attributes:
        rate: units a second.
        burst: most units that gather.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._at = now

    def level(self, now: float) -> float:
        """Returns the units there are; negative when more was used than was there."""
        if now > self._at:
            self._level = min(self.burst, self._level + (now - self._at) * self.rate)
            self._at = now
        return self._level

    def wait(self, now: float, amount: float) -> float:
        """Returns the seconds until `amount` may be taken; 0 for now."""
        return max(0.0, (min(amount, self.burst) - self.level(now)) / self.rate)

    def take(self, now: float, amount: float) -> None:
        """Takes `amount`; negative to give back. Whether it is there was asked before, by `wait`."""
        self._level = min(self.burst, self.level(now) - amount)

    def changed(self, rate: float, burst: float, now: float) -> None:
        """Changes rate and burst; what was used stays used."""
        used = self.burst - self.level(now)
        self.rate, self.burst, self._level = rate, burst, burst - used
