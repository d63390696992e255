"""The reliability scoreboard: every promise of docs/reliability.md as a command with a number. Run from the repository.

    python -m scripts.benchmark.reliability              # all rows, long
    python -m scripts.benchmark.reliability R5 R6        # these
    python -m scripts.benchmark.reliability --quick      # as small as in the test suite; nothing is kept
    python -m scripts.benchmark.reliability compare      # the same disturbances on transformers' Trainer
    python -m scripts.benchmark.reliability table        # the tables of docs/reliability.md from what was measured

Figures are kept under --root, one JSON file a row; a row that misses its target makes the exit code 1.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.rundir import versions
from scripts.benchmark import trainer_comparison
from scripts.benchmark.reliability_rows import (
    damage,
    divergence,
    drift,
    hang,
    hostile,
    kills,
    resume,
    rewards,
    saver,
    secrets,
    servers,
    serving,
    signals,
    storage,
)
from scripts.benchmark.scoreboard import Figure, Row, keep, kept

MODULES = (
    kills,
    saver,
    damage,
    resume,
    signals,
    storage,
    drift,
    divergence,
    rewards,
    servers,
    serving,
    hang,
    hostile,
    secrets,
)
_FOUND = [item for module in MODULES for item in module.ROWS.items()]
ROWS: Mapping[str, Row] = dict(sorted(_FOUND, key=lambda item: int(item[0][1:])))
DOCUMENT = Path("docs/reliability.md")
START, END = "<!-- measured: python -m scripts.benchmark.reliability table -->", "<!-- end -->"
COMPARED = "<!-- compared: python -m scripts.benchmark.reliability table -->"


def measure(name: str, quick: bool) -> Figure:
    """One row in a fresh folder that is removed when the row met its target."""
    work = Path(tempfile.mkdtemp(prefix=f"reliability-{name}-"))
    figure = ROWS[name].measure(work, quick)
    if figure.passed:
        shutil.rmtree(work, ignore_errors=True)
    else:
        print(f"{name}: what it left is in {work}", file=sys.stderr)
    return figure


def table(root: Path) -> str:
    """Markdown, one line per row."""
    lines = ["| row | promise | target | found | command |", "|---|---|---|---|---|"]
    for name, row in ROWS.items():
        figure = kept(root, name)
        found = "not measured" if figure is None else figure.found + ("" if figure.passed else " (**missed**)")
        lines.append(f"| {name} | {row.promise} | {row.target} | {found} | `... {name}` |")
    return "\n".join(lines)


def write_tables(root: Path) -> None:
    """Put both tables between their marks."""
    text = _between(DOCUMENT.read_text(encoding="utf-8"), START, f"{table(root)}\n\n{_machine(root)}")
    compared = root / "compare.json"
    if compared.is_file():
        found = json.loads(compared.read_text(encoding="utf-8"))
        text = _between(text, COMPARED, trainer_comparison.table(found))
    DOCUMENT.write_text(text, encoding="utf-8")


def _between(text: str, start: str, content: str) -> str:
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(END)
    return f"{before}{start}\n{content}\n{END}{after}"


def remember_machine(root: Path) -> None:
    """Note beside the figures where they were measured."""
    models = [
        line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    machine = {"processor": models[0] if models else platform.machine(), "cores": os.cpu_count(), **versions()}
    root.mkdir(parents=True, exist_ok=True)
    (root / "machine.json").write_text(json.dumps(machine, indent=2), encoding="utf-8")


def _machine(root: Path) -> str:
    file = root / "machine.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return ", ".join(f"{name} {value}" for name, value in found.items())


def compare(root: Path) -> None:
    """Disturb transformers' Trainer and keep what was found."""
    work = Path(tempfile.mkdtemp(prefix="reliability-compare-"))
    trainer_comparison.compare(work, root / "compare.json")
    shutil.rmtree(work)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="rows to measure, or `table`; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing kept")
    parser.add_argument("--root", type=Path, default=Path("runs/reliability"), help="folder of the figures")
    arguments = parser.parse_args()
    if arguments.rows == ["table"]:
        write_tables(arguments.root)
        return 0
    if not arguments.quick:
        remember_machine(arguments.root)
    if arguments.rows == ["compare"]:
        compare(arguments.root)
        return 0
    unknown = set(arguments.rows) - ROWS.keys()
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; found {', '.join(ROWS)}")
    missed = 0
    for name in arguments.rows or ROWS:
        start = time.monotonic()
        figure = measure(name, arguments.quick)
        if not arguments.quick:
            keep(arguments.root, name, figure)
        missed += not figure.passed
        verdict = f"{'met' if figure.passed else 'MISSED'}; {time.monotonic() - start:.0f} s"
        print(f"{name}  {figure.found}  (target {ROWS[name].target}: {verdict})", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
