"""Scripts are found as the documentation calls them, by a Python that knows the packages and no more."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*.yaml"), *ROOT.glob("scripts/**/*.py")]
CALLS = sorted(
    {call for text in TEXTS for call in re.findall(r"python ((?:-m )?scripts[\w./]*\w)", text.read_text("utf-8"))}
)


def test_there_are_such_calls():
    assert {"scripts/corpus_bleu.py", "-m scripts.benchmark.frontier"} <= set(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_a_script_and_what_it_imports_are_found(call: str):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *call.split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert not re.search(r"No module named|can't open file|ImportError", done.stderr), done.stderr
