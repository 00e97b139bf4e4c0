"""What ListModels tells: the base, every fine-tune, their rates and where they are."""

from __future__ import annotations

from collections.abc import Sequence

from deltaserve.catalog import ModelRecord
from deltaserve.errors import InvalidArgumentError
from deltaserve.v1.inference_pb2 import ListModelsRequest, ListModelsResponse, Model, RequestRates, Residency
from services.router.rates import RateBook, Rates

_DEFAULT_PAGE, _LARGEST_PAGE = 100, 1000


def base_model(name: str, rates: Rates) -> Model:
    """Returns the entry of a base."""
    return Model(name=f"models/{name}", model=name, base=True, rates=_rates(rates))


def tuned_model(record: ModelRecord, rates: Rates, residency: Sequence[Residency]) -> Model:
    """Returns the entry of a fine-tune; `residency` of its newest revision."""
    sizes = record.manifest.sizes
    model = Model(
        name=f"models/{record.name}",
        model=record.name,
        revision=record.latest.revision,
        revisions=record.revisions,
        delta_bytes=sizes.delta_bytes,
        checkpoint_bytes=sizes.checkpoint_bytes,
        aliases=record.aliases,
        rates=_rates(rates),
        residency=residency,
        pinned=record.pinned,
    )
    model.create_time.FromJsonString(record.manifest.created)
    return model


def list_page(
    request: ListModelsRequest,
    bases: Sequence[str],
    records: Sequence[ModelRecord],
    residency: Sequence[Residency],
    rates: RateBook,
    now: float,
) -> ListModelsResponse:
    """Returns one page: bases first, then fine-tunes, each by name.

    Raises:
        InvalidArgumentError: page_token is not one of ours.
    """
    size = min(request.page_size or _DEFAULT_PAGE, _LARGEST_PAGE)
    entries: list[tuple[str, ModelRecord | None]] = [(f"0{name}", None) for name in sorted(bases)]
    entries += [(f"1{record.name}", record) for record in sorted(records, key=lambda r: r.name)]
    token = request.page_token
    if token and token[0] not in "01":
        raise InvalidArgumentError(
            f"page_token is {token[:40]!r}; expected the next_page_token of a former response", field="page_token"
        )
    left = [entry for entry in entries if entry[0] > token]
    models = []
    for key, record in left[:size]:
        known = rates.rates(key[1:], now)
        if record is None:
            models.append(base_model(key[1:], known))
        else:
            models.append(tuned_model(record, known, [r for r in residency if r.revision == str(record.latest)]))
    return ListModelsResponse(models=models, next_page_token=left[size - 1][0] if len(left) > size else "")


def _rates(rates: Rates) -> RequestRates:
    return RequestRates(
        total=rates.total, short_rate=rates.short_rate, long_rate=rates.long_rate, in_flight=rates.in_flight
    )
