"""How long steps take and what makes them long, from their measured times (pure).

A linear fit over the last hundred steps or so, time = rest + a · distinct deltas + b · prompt tokens, tells what one
more delta costs every stream and what a prompt token costs. How many deltas may run at once follows from the former.
"""

from __future__ import annotations

SMOOTHING = 0.1  # weight of the newest step in the mean step time
ADAPT_STEPS = 16  # steps between two changes of the number of deltas

_WEIGHT = 0.02  # of the newest step in the fit
_DELTA_RIDGE = 0.05  # deltas²: below such a variance the fit does not believe in what it sees
_TOKEN_RIDGE = 1.0  # tokens²


class Pace:
    """Watches steps.

    Attributes:
        step_seconds: mean time of a step lately.
        deltas: distinct deltas that may run now.
    """

    def __init__(self, goal_seconds: float, most_deltas: int) -> None:
        """Prepares only.

        Args:
            goal_seconds: deltas may stretch a step to so long, or to twice what it would take without; 0: any time.
            most_deltas: what `deltas` is at most, and at first.
        """
        self.step_seconds = 0.0
        self.deltas = most_deltas
        self._goal = goal_seconds
        self._most = most_deltas
        self._begun: tuple[float, int, int] | None = None  # the last step, if it computed something
        self._steps = 0
        self._means = (0.0, 0.0, 0.0)  # deltas, tokens, seconds
        self._deltas_deltas = self._deltas_tokens = self._tokens_tokens = 0.0  # variances and covariances
        self._deltas_seconds = self._tokens_seconds = 0.0

    def step(self, now: float, deltas: int, tokens: int, *, computed: bool) -> None:
        """Notes a step that began at `now`, after which the next begins at once.

        Args:
            now: seconds.
            deltas: distinct deltas in it.
            tokens: of prompts in it.
            computed: False: there was nothing to do, and the next step may be far off.
        """
        if self._begun is not None:
            before, *size = self._begun
            self._learn(size[0], size[1], now - before)
        self._begun = (now, deltas, tokens) if computed else None

    def slopes(self) -> tuple[float, float]:
        """Returns the seconds that a delta and that a prompt token add to a step, zero for what is not known."""
        dd, tt = self._deltas_deltas + _DELTA_RIDGE, self._tokens_tokens + _TOKEN_RIDGE
        dt, ds, ts = self._deltas_tokens, self._deltas_seconds, self._tokens_seconds
        determinant = dd * tt - dt * dt
        return max(0.0, (ds * tt - ts * dt) / determinant), max(0.0, (ts * dd - ds * dt) / determinant)

    def _learn(self, deltas: float, tokens: float, seconds: float) -> None:
        if seconds <= 0:  # of the warm-up, which no clock times
            return
        self.step_seconds += (seconds - self.step_seconds) * (SMOOTHING if self._steps else 1)
        mean_deltas, mean_tokens, mean_seconds = self._means if self._steps else (deltas, tokens, seconds)
        d, t, s = deltas - mean_deltas, tokens - mean_tokens, seconds - mean_seconds
        self._means = (mean_deltas + _WEIGHT * d, mean_tokens + _WEIGHT * t, mean_seconds + _WEIGHT * s)
        keep = 1 - _WEIGHT
        self._deltas_deltas = keep * (self._deltas_deltas + _WEIGHT * d * d)
        self._deltas_tokens = keep * (self._deltas_tokens + _WEIGHT * d * t)
        self._tokens_tokens = keep * (self._tokens_tokens + _WEIGHT * t * t)
        self._deltas_seconds = keep * (self._deltas_seconds + _WEIGHT * d * s)
        self._tokens_seconds = keep * (self._tokens_seconds + _WEIGHT * t * s)
        self._steps += 1
        if self._goal and self._steps % ADAPT_STEPS == 0:
            self._adapt()

    def _adapt(self) -> None:
        """Moves the number of deltas by one towards what the fit says: a wrong fit is corrected by what follows."""
        wanted = self._wanted()
        if wanted > self.deltas:
            self.deltas += 1
        elif wanted < self.deltas:
            self.deltas -= 1

    def _wanted(self) -> int:
        a_delta, a_token = self.slopes()
        deltas, tokens, seconds = self._means
        rest = max(0.0, seconds - a_delta * deltas - a_token * tokens)
        room = max(self._goal - rest, rest)
        if a_delta * self._most <= room:
            return self._most
        return max(1, int(room / a_delta))
