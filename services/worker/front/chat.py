"""Chat templates: the model's own Jinja template, rendered as `transformers` renders it, out of this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltaserve.errors import FormatError, InvalidArgumentError
from services.worker.front.template_messages import CPU_SECONDS, MEMORY_BYTES, Render, Rendered
from services.worker.front.template_process import TemplateLimitError, TemplateProcess

_process = TemplateProcess()  # of all models: it keeps nothing of a rendering but compiled templates


class ChatTemplate:
    """A template with the special tokens it may name (`bos_token`, `eos_token` ...). Calls block for a moment."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compiles; raises FormatError when `source` is not a template, or takes too much to compile."""
        self._source = source
        self._special_tokens = dict(special_tokens)
        self._hopeless = ""
        found = self._ask(None, add_generation_prompt=False)
        if found.malformed or self._hopeless:
            raise FormatError(
                f"the model's chat template is malformed: {found.malformed or self._hopeless}", field="chat_template"
            )

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """Returns the conversation as text.

        Raises:
            InvalidArgumentError: the template refuses it, or takes too much time or memory; one that did is not run
                again, since the others would wait for it.
        """
        if not self._hopeless:
            found = self._ask([dict(message) for message in messages], add_generation_prompt=add_generation_prompt)
            if not found.refused and not self._hopeless:
                return found.text
        raise InvalidArgumentError(
            f"the model's chat template refuses the conversation: {self._hopeless or found.refused}",
            field="prompt.chat.messages",
        )

    def _ask(self, messages: list[dict[str, str]] | None, *, add_generation_prompt: bool) -> Rendered:
        request = Render(
            source=self._source,
            special_tokens=self._special_tokens,
            messages=messages,
            add_generation_prompt=add_generation_prompt,
        )
        try:
            return _process.render(request)
        except TemplateLimitError:
            self._hopeless = (
                f"it takes more than {CPU_SECONDS:g} CPU seconds or {MEMORY_BYTES >> 20} MiB; expected a template "
                "that goes through its messages once"
            )
            return Rendered()
