"""Chat templates with the features of well-known ones, and conversations to try them on."""

from __future__ import annotations

TURN = "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

PLAIN = f"{{% for m in messages %}}{TURN}{{% endfor %}}{ASK}"

# As Qwen3's: the answer to the last question begins with its reasoning, here none; earlier ones are shown without.
REASONING = """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and loop.index0 > ns.last %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
    {{- m.content.split('</think>')[-1] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

# As the template authors mark answers for training.
MARKED = """{% for m in messages %}
{% if m.role == 'assistant' %}
<|im_start|>assistant
{% generation %}
{{ m.content + '<|im_end|>' -}}
{% endgeneration %}

{% else %}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""

# As Gemma's and Llama 2's: refuses what it does not know, trims, names roles itself.
STRICT = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}
{% endif %}
{% for m in messages %}
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_of_turn>' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model' }}
{% endif %}"""

TEMPLATES = {"plain": PLAIN, "reasoning": REASONING, "marked": MARKED, "strict": STRICT}
