"""The parts of the page, each None when the report does not have it."""

from __future__ import annotations

from deltaserve.report import plots, tables
from deltaserve.report.differences import mark
from deltaserve.report.fields import Allocation, Generations, Prompt, Report, Said
from deltaserve.report.markup import Child, Html, join, tag
from deltaserve.report.units import NONE, bits, bytes_text, number, percent, points, times, whole

_COUNTED = {
    "answers": "answers of labelled rows",
    "turns": "what the assistant says in chats",
    "whole": "whole texts",
}
_LIMITS = {
    "max_kl": "KL at most",
    "min_agreement": "top-1 agreement at least",
    "max_accuracy_drop": "points of accuracy lost at most",
    "max_bits_per_param": "bits a parameter at most",
}


def section(key: str, heading: str, *children: Child) -> Html:
    """Returns a part with its heading."""
    return tag("section", tag("h2", heading, id=key), *children, aria_labelledby=key)


def verdict(report: Report) -> Html | None:
    """Returns whether the policy is met, and each limit that is not."""
    if report.gate is None:
        return None
    failures = report.gate.failures
    if failures or not report.gate.passed:
        told = tag("p", tag("strong", "Refused."), " It misses its quality policy.")
        listed = tag("ul", *(tag("li", failure) for failure in failures)) if failures else None
        return tag("div", told, listed, class_="verdict bad", role="status")
    if not report.policy:
        return tag("div", tag("p", "No quality policy was set: nothing was asked of it."), class_="verdict")
    limits = ", ".join(f"{_LIMITS.get(name, name)} {limit:g}" for name, limit in sorted(report.policy.items()))
    told = tag("p", tag("strong", "Passed."), f" It meets its quality policy: {limits}.")
    return tag("div", told, class_="verdict good", role="status")


def tiles(report: Report) -> Html | None:
    """Returns the figures to decide by."""
    found: list[Html] = []
    quality, sizes, accuracy = report.quality, report.sizes, report.accuracy
    if accuracy is not None:
        change = f"{points(accuracy.change)} points from the fine-tune"
        found.append(_tile("Accuracy", percent(accuracy.compressed), change))
    if quality is not None:
        spread = f"median {number(quality.kl_p50, 2)}, p99 {number(quality.kl_p99, 2)}"
        found.append(_tile("KL, nats a token", number(quality.kl), spread if quality.kl_p99 is not None else ""))
        agrees = "same most probable token"
        found.append(_tile("Top-1 agreement", percent(quality.top1_agreement), agrees))
        tuned = f"fine-tune {number(quality.perplexity.fine_tune, 4)}"
        found.append(_tile("Perplexity", number(quality.perplexity.compressed, 4), tuned))
    if sizes is not None:
        told = f"{bytes_text(sizes.checkpoint_bytes)} → {bytes_text(sizes.delta_bytes)}"
        found.append(_tile("Compression ratio", times(sizes.ratio), told))
        found.append(_tile("Bits a parameter", bits(sizes.bits_per_parameter), "everything counted"))
    return tag("dl", *found, class_="tiles") if found else None


def comparison(report: Report) -> Html | None:
    """Returns the three models' figures with what they were measured over."""
    found = tables.models(report)
    if found is None:
        return None
    return section("models", "Three models", found, _measured_over(report))


def spread(report: Report) -> Html | None:
    """Returns the histogram of KL."""
    quality = report.quality
    if quality is None or quality.kl_histogram is None:
        return None
    plot = plots.kl_histogram(quality.kl_histogram, quality.kl_p50, quality.kl_p99)
    lead = "How far the compressed model's next-token distribution is from the fine-tune's, token by token."
    numbers = _numbers(tables.histogram(quality.kl_histogram))
    return section("spread", "Where KL comes from", tag("p", lead), _figure(plot), numbers)


def layers(report: Report) -> Html | None:
    """Returns errors by layer."""
    if not report.layers:
        return None
    lead = "Mean error of each layer's linear outputs relative to the delta's own effect; the tick is its worst tensor."
    plot = plots.layer_errors(report.layers)
    return section("by-layer", "Error by layer", tag("p", lead), _figure(plot), _numbers(tables.layers(report.layers)))


def sizes(report: Report) -> Html | None:
    """Returns bytes by tensor class."""
    if report.sizes is None:
        return None
    legend = tag(
        "p",
        tag("span", class_="swatch checkpoint"), "checkpoint ",
        tag("span", class_="swatch delta"), "delta, with its bits a parameter",
        class_="legend",
    )  # fmt: skip
    plot = plots.class_sizes(report.sizes.by_class) if report.sizes.by_class else None
    drawn = join([legend, _figure(plot)]) if plot is not None else None
    return section("by-class", "Size by tensor class", drawn, _numbers(tables.sizes(report.sizes)))


def allocation(report: Report) -> Html | None:
    """Returns how codecs were chosen, and the attempts at meeting the policy."""
    found = report.allocation
    if found is None:
        return None
    facts = [
        ("preset", found.preset or NONE),
        ("budget", f"{bits(found.budget_bits)} bits" if found.budget_bits is not None else NONE),
        ("predicted KL", number(found.predicted_kl)),
    ]
    told = tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts), class_="facts")
    plot = plots.attempts(found.attempts)
    halves = [part for part in (_choices(found), plot and _figure(plot)) if part is not None]
    grid = tag("div", *(tag("div", part) for part in halves), class_="halves") if halves else None
    tried = tables.attempts(found.attempts) if found.attempts else None
    return section("allocation", "Choice of codecs", told, grid, tried)


def worst(report: Report) -> Html | None:
    """Returns the tensors with the largest errors."""
    if not report.tensors:
        return None
    return section("tensors", "Tensors with the largest errors", tables.tensors(report.tensors))


def generations(report: Report) -> Html | None:
    """Returns continuations side by side, with what differs from the fine-tune marked."""
    found = report.generations
    if found is None:
        return None
    if not found.prompts:
        reason = tag("p", f"Left out: {found.left_out or 'there were no prompts'}.")
        return section("generations", "Side by side", reason)
    cards = [_prompt(prompt) for prompt in found.prompts]
    return section("generations", "Side by side", tag("p", _summary(found)), *cards)


def footer(report: Report) -> Html:
    """Returns what codes were fitted to, and what could not be shown."""
    told: list[Child] = []
    if report.calibration is not None:
        c = report.calibration
        source = "the built-in set" if c.source == "built-in" else c.source or NONE
        told.append(
            tag("p", "Calibrated with ", tag("bdi", source), f": {whole(c.sequences, 'sequence')}, ",
                f"{whole(c.tokens, 'token')}.")
        )  # fmt: skip
    if report.unreadable:
        told.append(tag("p", f"Parts that could not be read: {', '.join(report.unreadable)}."))
    return tag("footer", *told)


def _tile(name: str, value: str, note: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", value, class_="figure"), tag("dd", note, class_="note"))


def _measured_over(report: Report) -> Html | None:
    if report.quality is None or not report.quality.counted:
        return None
    counted = ", ".join(f"{_COUNTED.get(kind, kind)} ({n:,})" for kind, n in sorted(report.quality.counted.items()))
    return tag("p", f"Held-out rows are not calibrated with. Counted are: {counted}.", class_="note")


def _figure(plot: Html) -> Html:
    return tag("figure", plot)


def _numbers(found: Html) -> Html:
    return tag("details", tag("summary", "Numbers"), found)


def _choices(found: Allocation) -> Html | None:
    if not found.choices:
        return None
    rows = [[codec, f"{count:,}"] for codec, count in sorted(found.choices.items(), key=lambda item: -item[1])]
    return tables.table("Tensors by codec", ["codec", ">tensors"], rows)


def _summary(found: Generations) -> str:
    same = sum(one.compressed == one.fine_tune for one in found.prompts)
    told = (
        f"Greedy continuations of held-out prompts: {same} of {len(found.prompts)} are the fine-tune's to the letter."
    )
    return told if same == len(found.prompts) else f"{told} What differs is marked."


def _prompt(prompt: Prompt) -> Html:
    said = [_row("base", prompt.base, None), _row("fine-tune", prompt.fine_tune, None)]
    said.append(_row("compressed", prompt.compressed, prompt.fine_tune))
    if prompt.expected is not None:
        said.insert(0, _row("reference", Said(prompt.expected, ended=True), None))
    same = prompt.compressed == prompt.fine_tune
    badge = tag("span", "same" if same else "differs", class_=f"badge {'good' if same else 'bad'}")
    cut = "…" if prompt.cut else ""
    head = tag("header", tag("pre", cut + prompt.prompt, dir="auto"), badge)
    return tag("article", head, tag("dl", *said), class_="prompt")


def _row(name: str, said: Said | None, reference: Said | None) -> Html | None:
    if said is None:
        return None
    words = mark(said.text, reference.text) if reference is not None else join([said.text])
    if not said.text:
        words = tag("i", "nothing")
    going_on = None if said.ended else tag("span", "…", class_="open", title="cut after 40 tokens")
    return tag("div", tag("dt", name), tag("dd", tag("pre", words, going_on, dir="auto")))
