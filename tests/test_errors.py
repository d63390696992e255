"""docs/errors.md lists exactly the codes that the program can print."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = r"[A-Z]{2,6}\d{2}"
NO_CODES = {"BF16"}  # names of number formats


def codes_of(source: Path) -> set[str]:
    """Strings that are a code, and codes in brackets inside longer strings."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            whole = re.fullmatch(CODE, node.value)
            found |= {node.value} if whole else set(re.findall(rf"\[({CODE})\]", node.value))
    return found - NO_CODES


def test_every_code_of_the_source_is_documented_and_no_other():
    sources = [path for package in ("pipeline", "stages", "reward") for path in (ROOT / package).rglob("*.py")]
    printed = {code for source in sources for code in codes_of(source)}
    rows = re.findall(rf"^\| ({CODE}) \| \S.* \| \S.* \|$", (ROOT / "docs/errors.md").read_text("utf-8"), re.MULTILINE)
    assert len(printed) > 50
    assert sorted(rows) == sorted(printed)
    assert rows == sorted(rows)
