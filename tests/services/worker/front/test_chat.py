"""Chat templates render as `transformers` renders them, in a sandbox."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from deltaserve.errors import FormatError, InvalidArgumentError
from services.worker.front.chat import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "Hi 😀"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
TEMPLATES = [
    (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|task|>{{ m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|answer|>{% endif %}"
    ),
    (
        "{{ bos_token }}{%- for message in messages %}\n    <|{{ message.role }}|> {{ message.content | trim }}"
        "{{ eos_token }}\n"
        "{%- endfor %}\n"
    ),
    "{% if tools is none %}{{ messages | tojson }}{% endif %}",
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% endif %}{% endfor %}"
    ),
]


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_same_text_as_transformers(source: str, prompt: bool) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    expected, _ = render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=prompt, **special)
    assert ChatTemplate(source, special).render(MESSAGES, prompt) == expected[0]


def test_a_template_may_refuse() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(InvalidArgumentError, match="roles must alternate") as refused:
        template.render(MESSAGES, True)
    assert refused.value.field == "prompt.chat.messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ 1 / 0 }}",
        "{{ range(10**9) | list }}",
    ],
)
def test_a_template_is_confined(source: str) -> None:
    with pytest.raises(InvalidArgumentError):
        ChatTemplate(source, {}).render(MESSAGES, True)


def test_a_malformed_template_says_so() -> None:
    with pytest.raises(FormatError, match="chat template is malformed"):
        ChatTemplate("{% for m in messages %}", {})


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ '%1000000000000d' | format(1) }}",
        "{{ 'a' * 10**11 }}",
        "{% set n = 10**11 %}{{ 'a' * n }}",
        "{{ '\\ud800' }}",
    ],
)
def test_a_template_that_never_ends_or_takes_all_memory_is_stopped(source: str) -> None:
    with pytest.raises(InvalidArgumentError):
        ChatTemplate(source, {}).render(MESSAGES, True)
    assert ChatTemplate("{{ messages[1].content }}", {}).render(MESSAGES, True) == "Hi 😀"
