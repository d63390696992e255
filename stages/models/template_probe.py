"""Renders one conversation through a chat template with little time and memory. A script: the template is its input.

Prints what went wrong, as JSON, when the sandbox refused an operation or the text grew out of bounds.
"""

import json
import resource
import signal
import sys

from jinja2 import Undefined
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 0.5
"""Of processor time; a template takes a millisecond."""
MEMORY = 512 << 20
CHARACTERS = 1_000_000
"""Of the rendered text; the conversation has 60."""
CONVERSATION = (
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "What is the time?"},
    {"role": "assistant", "content": "Noon."},
    {"role": "user", "content": "Thank you."},
)


class Generation(Extension):
    """transformers' `{% generation %}` block, which renders as what it holds."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class Sandbox(ImmutableSandboxedEnvironment):
    """Says that something was forbidden where jinja2's own goes on with an undefined value."""

    def unsafe_undefined(self, obj: object, attribute: str) -> Undefined:
        raise SecurityError(f"access to {attribute!r} of a {type(obj).__name__}")


def environment() -> Sandbox:
    """The sandbox with the same additions as in transformers."""
    made = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
    made.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: "2026-01-01"}
    return made


def _refuse(message: str) -> None:
    raise TemplateError(message)


def problem(text: str) -> str | None:
    """What the template tried or did that no template needs, or None."""
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    template = environment().from_string(text)
    for messages in (CONVERSATION, CONVERSATION[1:], CONVERSATION[1:2]):
        try:
            size = 0
            for piece in template.generate(messages=list(messages), add_generation_prompt=True, tools=None, **tokens):
                size += len(piece)
                if size > CHARACTERS:
                    return f"makes more than {CHARACTERS} characters of a conversation of 60"
        except (SecurityError, OverflowError, RecursionError) as error:
            return f"attempts what the sandbox forbids ({error})"
        except MemoryError:
            return f"needs more than {MEMORY >> 20} MB"
        except Exception:
            continue  # a template may refuse a conversation, or want facts that this one lacks
    return None


if __name__ == "__main__":
    text = sys.stdin.read()
    resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # whose signal ends the process
    print(json.dumps(problem(text)))
