"""What AdminService tells of quotas and their use."""

from __future__ import annotations

from deltaserve.v1 import admin_pb2 as pb
from services.router.admission.gate import Gate
from services.router.admission.quotas import Account


def usage_of(gate: Gate, waiting: int, now: float) -> pb.GetUsageResponse:
    """Returns the use of all keys and models.

    Args:
        gate: has the books.
        waiting: requests that wait in the router.
        now: its time.
    """
    quotas = gate.quotas
    for caller in quotas.book.callers.values():
        quotas.key(caller, now)  # also of keys that nobody used yet
    weights = {caller.name: caller.party.weight for caller in quotas.book.callers.values()}
    if quotas.book.anonymous is not None:
        weights[""] = quotas.book.anonymous.party.weight
    return pb.GetUsageResponse(
        queued=waiting,
        max_queued=gate.limits.total,
        keys=[_entry(name, account, weights.get(name, 0.0), now) for name, account in sorted(quotas.keys.items())],
        models=[_entry(name, account, 0.0, now) for name, account in sorted(quotas.models.items())],
    )


def _entry(name: str, account: Account, weight: float, now: float) -> pb.GetUsageResponse.Usage:
    used = account.used
    return pb.GetUsageResponse.Usage(
        name=name,
        requests=used.requests,
        refused=used.refused,
        tokens=used.tokens,
        running=used.running,
        queued=used.queued,
        weight=weight,
        requests_left=account.left("requests", now),
        requests_per_second=account.limits.requests_per_second,
        tokens_left=account.left("tokens", now),
        tokens_per_second=account.limits.tokens_per_second,
    )
