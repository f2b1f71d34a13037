"""Renders our chat templates with transformers' own renderer, for tests/data/chat.rs to compare.

    python3 -m venv venv && venv/bin/pip install transformers==4.57.6 jinja2==3.1.6
    venv/bin/python tests/golden/chat.py

Writes tests/golden/chat/renders.json: for each template and conversation the text with and without
the generation prompt (or null where the template refuses), and, where the template has
{% generation %} marks, the characters they enclose.
"""

import json
import pathlib

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).parent / "chat"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def turns(*texts, system=None):
    messages = [{"role": "system", "content": system}] if system is not None else []
    for i, text in enumerate(texts):
        messages.append({"role": ("user", "assistant")[i % 2], "content": text})
    return messages


CONVERSATIONS = {
    "one turn": turns("What is 2+2?", "4"),
    "with a system prompt": turns("Hi", "Hello!", system="You are kind."),
    "several turns": turns("a", "b", "c", "d", "e", "f"),
    "several turns and a system prompt": turns("a", "b", "c", "d", system="S"),
    "space around the text": turns("  padded \n", "\n answer \n\n", "again", " x"),
    "characters that HTML would escape": turns("<b>\"1\" & '2'</b>", "a < b && c > d \\ \\u003c"),
    "other scripts": turns("Grüße, 世界 👩‍👩‍👧", "مرحبا 🌍"),
    "the same words again": turns("yes", "yes", "yes", "yes"),
    "thoughts": turns("q", "<think>\nwhy\n</think>\n\nbecause", "r", "s"),
    "the template's own marks as text": turns("what does <|im_end|> mean?", "it ends [INST] a turn"),
}

renders = []
for path in sorted(HERE.glob("*.jinja")):
    source = path.read_text()
    for name, messages in CONVERSATIONS.items():
        def render(messages, prompt, mask=False):
            texts, spans = render_jinja_template(
                conversations=[messages], chat_template=source, add_generation_prompt=prompt,
                return_assistant_tokens_mask=mask, **TOKENS)
            return (texts[0], spans[0]) if mask else texts[0]

        entry = {"template": path.stem, "conversation": name, "messages": messages}
        try:
            entry["text"] = render(messages, False)
            entry["prompt"] = render(messages[:-1], True)
            if "endgeneration" in source:
                text, spans = render(messages, False, mask=True)
                entry["spoken"] = [text[start:end] for start, end in spans]
        except jinja2.exceptions.TemplateError as error:
            entry["refused"] = str(error)
        renders.append(entry)

(HERE / "renders.json").write_text(json.dumps(renders, indent=1, ensure_ascii=False) + "\n")
print(len(renders), "renders")
