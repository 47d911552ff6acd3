"""Whether and when a call is made again. One `Budget` a channel, one `Attempts` a call."""

from __future__ import annotations

import random
import time

from tailorbird.client.errors import CODES, Metadata
from tailorbird.client.exchange import Outcome
from tailorbird.client.options import RetryPolicy

PUSHBACK_KEY = "grpc-retry-pushback-ms"


class Budget:
    """What repeating may still cost a channel: without it, callers of a service in trouble multiply the trouble."""

    __slots__ = ("_policy", "_tokens")

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._tokens = policy.budget

    @property
    def allows(self) -> bool:
        """Whether calls may be repeated now."""
        return self._tokens > self._policy.budget / 2

    def note(self, *, succeeded: bool) -> None:
        """Count an attempt."""
        if succeeded:
            self._tokens = min(self._policy.budget, self._tokens + self._policy.budget_ratio)
        else:
            self._tokens = max(0.0, self._tokens - 1.0)


class Attempts:
    """The attempts of one call."""

    __slots__ = ("_budget", "_deadline_s", "_policy", "_rng", "count")

    def __init__(self, policy: RetryPolicy, budget: Budget, deadline_s: float | None, rng: random.Random) -> None:
        self._policy, self._budget, self._deadline_s, self._rng = policy, budget, deadline_s, rng
        self.count = 1

    def wait_s(self, outcome: Outcome) -> float | None:
        """Return the seconds to wait before the next attempt, or None where there is none. Counts this one."""
        policy = self._policy
        is_retryable = CODES.get(outcome.code) in policy.codes
        if not outcome.is_unprocessed:
            self._budget.note(succeeded=not is_retryable)
        if self.count >= policy.attempts_max or not (outcome.is_unprocessed or is_retryable):
            return None
        if not (outcome.is_unprocessed or self._budget.allows):
            return None
        ceiling_s = min(policy.backoff_max_s, policy.backoff_s * policy.multiplier ** (self.count - 1))
        wait_s = pushback_s(outcome.trailing)
        if wait_s is None:
            # What was not begun may go elsewhere at once, the first time.
            wait_s = 0.0 if outcome.is_unprocessed and self.count == 1 else self._rng.uniform(0.0, ceiling_s)
        if wait_s < 0 or (self._deadline_s is not None and time.monotonic() + wait_s >= self._deadline_s):
            return None
        self.count += 1
        return wait_s


def pushback_s(trailing: Metadata) -> float | None:
    """Return the seconds the service asks to wait, -1 where it asks not to try again, None where it says nothing."""
    for name, value in trailing:
        if name == PUSHBACK_KEY:
            return int(value) / 1_000 if isinstance(value, str) and value.isdecimal() else -1.0
    return None
