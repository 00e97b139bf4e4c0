"""How many tokens a request will take, before it is known. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT = 0.1  # of one more request in a mean
_FIRST_OUTPUT = 128.0  # tokens of an answer before any was seen
_FIRST_RATIO = 0.25  # tokens a character of a prompt
_MOST_MODELS = 10_000


@dataclass(frozen=True, slots=True)
class Size:
    """What is known of a request.

    Attributes:
        ids: tokens of a prompt that came as tokens, else 0.
        characters: of a prompt that came as text, else 0.
        most_output: max_tokens; None when it was not given.
        choices: n.
    """

    ids: int
    characters: int
    most_output: int | None
    choices: int


class Estimates:
    """Expects of a model what its requests took lately."""

    def __init__(self) -> None:
        self._outputs: dict[str, float] = {}  # tokens a choice
        self._ratios: dict[str, float] = {}  # tokens a character

    def tokens(self, model: str, size: Size) -> float:
        """Returns tokens of prompt and answers."""
        output = self._outputs.get(model, _FIRST_OUTPUT)
        if size.most_output is not None:
            output = min(output, size.most_output)
        return max(1.0, self.prompt_tokens(model, size) + output * size.choices)

    def prompt_tokens(self, model: str, size: Size) -> float:
        """Returns tokens of the prompt."""
        return size.ids + size.characters * self._ratios.get(model, _FIRST_RATIO)

    def learn(self, model: str, size: Size, prompt_tokens: int, completion_tokens: int) -> None:
        """Takes what a request that ended by itself used."""
        if len(self._outputs) >= _MOST_MODELS and model not in self._outputs:
            return
        known = self._outputs.get(model, _FIRST_OUTPUT)
        self._outputs[model] = known + _WEIGHT * (completion_tokens / size.choices - known)
        if size.characters:
            ratio = self._ratios.get(model, _FIRST_RATIO)
            self._ratios[model] = ratio + _WEIGHT * (prompt_tokens / size.characters - ratio)
