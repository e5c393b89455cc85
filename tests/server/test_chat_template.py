"""Prompts of chat templates equal those of transformers, byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from serving import MODEL
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models

from capstan_engine.errors import ModelError, RequestError
from capstan_engine.text import ChatTemplate, Message, Tokenizer
from capstan_engine.text import chat_template as module

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

HEADERS = """{{- bos_token }}
{%- set system = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

ALTERNATING = """{{ bos_token }}{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ '[INST] ' + message['content'] + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{ ' ' + message['content'] + ' ' + eos_token }}
    {% endif %}
{% endfor %}"""

TOOL_CALLS = """{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<tool_response>' + message.content + '</tool_response>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}"""

NAMESPACES = """{%- set ns = namespace(turns=0, last='') -%}
{%- macro shout(text) -%}*{{ text | upper }}*{%- endmacro -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- continue -%}{%- endif -%}
    {%- set ns.turns = ns.turns + 1 -%}
    {%- if ns.turns > 3 -%}{%- break -%}{%- endif -%}
    {%- set ns.last = message.content -%}
    {{ ns.turns }}:{{ shout(message.content) }};
{% endfor -%}
last={{ ns.last | length }} thinking={{ enable_thinking is defined and enable_thinking }}"""

GENERATION = """{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{% generation %}{{ message.content }}{{ eos_token }}
{% endgeneration %}
{%- else -%}
<{{ message.role }}>{{ message.content }}
{%- endif -%}
{%- endfor -%}"""

PARTS = """{%- for message in messages -%}
<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{% for part in message.content -%}
    {%- if part.type == 'text' -%}{{ part.text | trim }}{%- endif -%}
{%- endfor -%}
<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}<start_of_turn>model
{% endif -%}"""

ESCAPES = """{%- for message in messages -%}
{{ {'text': message.content, 'html': '<b>&é'} | tojson }} {{ [1, 2] | tojson(indent=2) }}
{% endfor -%}"""

TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "alternating": ALTERNATING,
    "tool_calls": TOOL_CALLS,
    "namespaces": NAMESPACES,
    "generation": GENERATION,
    "escapes": ESCAPES,
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TURNS: list[Message] = [
    {"role": "user", "content": "  What is <b>1 & 2</b>? é 日 "},
    {"role": "assistant", "content": "Three.\n"},
    {"role": "user", "content": "Sure?"},
]
CONVERSATIONS: dict[str, list[Message]] = {
    "one": TURNS[:1],
    "turns": TURNS,
    "system": [{"role": "system", "content": " Be brief. "}, *TURNS],
    "nulls": [{"role": "user", "content": "x", "name": None}],
    "tool": [
        TURNS[0],
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": "é<"}}}],
        },
        {"role": "tool", "content": "4"},
    ],
}


def reference(source: str) -> Any:
    raw = RawTokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "x": 2}, unk_token="x"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIAL)
    tokenizer.chat_template = source
    return tokenizer


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generation", [True, False])
def test_prompt_equals_transformers(name: str, conversation: str, generation: bool) -> None:
    source, messages = TEMPLATES[name], CONVERSATIONS[conversation]
    template = ChatTemplate(source, SPECIAL)

    def expected() -> str:
        rendered: str = reference(source).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation, enable_thinking=True
        )
        return rendered

    try:
        wanted = expected()
    except Exception:  # whatever transformers cannot render must be our clear error
        with pytest.raises(RequestError):
            template.render(messages, add_generation_prompt=generation)
        return
    assert template.render(messages, add_generation_prompt=generation, variables={"enable_thinking": True}) == wanted


@pytest.mark.parametrize("name", ["chatml", "headers", "alternating"])
def test_continued_prompt_equals_transformers(name: str) -> None:
    messages = [TURNS[0], {"role": "assistant", "content": "The answer is "}]
    expected = reference(TEMPLATES[name]).apply_chat_template(messages, tokenize=False, continue_final_message=True)
    template = ChatTemplate(TEMPLATES[name], SPECIAL)
    assert template.render(messages, add_generation_prompt=False, continue_final_message=True) == expected


def test_shipped_template_equals_transformers() -> None:
    tokenizer = Tokenizer.load(MODEL)
    assert tokenizer.chat_template is not None
    expected = transformers.AutoTokenizer.from_pretrained(MODEL).apply_chat_template(
        TURNS, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.chat_template.render(TURNS) == expected


def test_template_that_reads_parts_is_recognised() -> None:
    assert ChatTemplate(PARTS, SPECIAL).wants_parts
    assert not any(ChatTemplate(source, SPECIAL).wants_parts for source in TEMPLATES.values())


def test_the_template_s_own_objection_reaches_the_client() -> None:
    with pytest.raises(RequestError, match="Roles must alternate"):
        ChatTemplate(ALTERNATING, SPECIAL).render(TURNS[1:])


def test_request_variables_cannot_replace_the_messages() -> None:
    template = ChatTemplate(CHATML, SPECIAL)
    assert template.render(TURNS, variables={"messages": [], "bos_token": "!"}) == template.render(TURNS)


@pytest.mark.parametrize(
    "payload",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['__builtins__'] }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ '{0.__class__}'.format(messages).__len__.__self__ }}",
    ],
)
def test_templates_cannot_leave_the_sandbox(payload: str) -> None:
    try:
        rendered = ChatTemplate(payload, SPECIAL).render(TURNS)
    except RequestError:
        return
    assert "class" not in rendered
    assert "module" not in rendered


def test_output_is_bounded_while_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROMPT_CHARACTERS", 10_000)
    endless = "{% for a in range(10000) %}{% for b in range(10000) %}xxxxxxxxxx{% endfor %}{% endfor %}"
    with pytest.raises(RequestError, match="grows beyond"):
        ChatTemplate(endless, SPECIAL).render(TURNS)


def test_broken_template_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="chat template"):
        ChatTemplate("{% for %}", SPECIAL)


def test_named_list_gives_its_default(tmp_path: Path) -> None:
    listed = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    template = ChatTemplate.load(tmp_path, {"chat_template": listed}, SPECIAL)
    assert template is not None
    assert template.source == "D"


def test_template_file_goes_before_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("F")
    template = ChatTemplate.load(tmp_path, {"chat_template": "C"}, SPECIAL)
    assert template is not None
    assert template.source == "F"


def test_tokenizer_problems_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: not found"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a readable tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((MODEL / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps([]))
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: expected a JSON object"):
        Tokenizer.load(tmp_path)
