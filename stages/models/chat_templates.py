"""Whether a chat template does what templates do: read messages, write text, soon end. Imports no torch."""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from jinja2 import TemplateError, nodes

from stages.models import template_probe

_LONGEST = 1_000_000
"""Characters of a template; the longest that is published has 50,000."""
_PATIENCE = 60
"""Seconds of waiting for the probe, whose processor time is limited already."""
_ELSEWHERE = (nodes.Import, nodes.FromImport, nodes.Include, nodes.Extends)


@functools.lru_cache(maxsize=64)
def template_problem(text: str) -> str | None:
    """What is wrong with a template as code, or None.

    It is parsed, searched for reaches into Python, and rendered once in a process of its own without environment,
    with little time and memory. What it does only with other messages is left to the sandbox it is rendered in.
    """
    if len(text) > _LONGEST:
        return f"has {len(text)} characters, more than {_LONGEST}"
    try:
        tree = template_probe.environment().parse(text)
    except (TemplateError, RecursionError) as error:
        return f"is no Jinja template ({error})"
    reach = next(_reaches(tree), None)
    return f"reaches into Python ({reach})" if reach else _rendered(text)


def _reaches(tree: nodes.Template) -> Iterator[str]:
    """Names by which a template would get at more than it was given."""
    for node in tree.find_all((nodes.Getattr, nodes.Const, nodes.Filter, *_ELSEWHERE)):
        if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
            yield node.attr
        elif isinstance(node, nodes.Const) and isinstance(node.value, str) and _is_dunder(node.value):
            yield node.value
        elif isinstance(node, _ELSEWHERE):
            yield type(node).__name__.lower()


def _is_dunder(word: str) -> bool:
    return len(word) > 4 and word.startswith("__") and word.endswith("__") and word.isidentifier()


def _rendered(text: str) -> str | None:
    command = [sys.executable, str(Path(template_probe.__file__))]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(
            command,
            input=text.encode(),
            capture_output=True,
            env=environment,
            timeout=_PATIENCE,
            check=False,
            start_new_session=True,  # Ctrl-C is not for it, and what it broke off would be blamed on the template
        )
    except subprocess.TimeoutExpired:
        return f"does not end in {_PATIENCE} s"
    if done.returncode in (-signal.SIGINT, -signal.SIGTERM):  # sent to all before the trial had its own session
        return _rendered(text)
    if done.returncode < 0:
        return f"does not render a short conversation in {template_probe.SECONDS} s of processor time"
    try:
        return json.loads(done.stdout)
    except ValueError:
        told = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return f"cannot be tried out ({''.join(told)})"
