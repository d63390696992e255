"""A reward model's report.json as figures and words on the page, and as tables in the terminal."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline.report import write_report
from pipeline.report.reading import REPORT_FORMAT, read_run
from pipeline.report.reward_model_facts import reward_model_tables
from pipeline.report.reward_model_plots import reward_model_plots
from stages.reward_model.label_noise import label_noise
from stages.reward_model.report import FORMAT, ScoredPairs, report_of
from stages.reward_model.score_statistics import Scored

ATTACK = "<script>alert(1)</script>"


def report(n: int = 60, samples: bool = True, **columns: Any) -> dict[str, Any]:
    """What a reward model leaves that ranks three pairs of four as their labels say."""
    random = np.random.default_rng(0)
    sides = [Scored(random.normal(mean, 1, n), random.integers(3, 40, n)) for mean in (0.7, -0.7)]
    pairs = ScoredPairs(*sides, **columns)
    noise = label_noise(pairs.margins)
    others = {"demonstrations": sides[0], **({"sft_samples": sides[1]} if samples else {})}
    found = report_of(pairs, others, noise)
    row = {"prompt": "It is", "chosen": f" bad {ATTACK}", "rejected": " good", "reversed_probability": 0.9}
    found["label_noise"]["rows"] = [row | {"row": i + 1, "margin": float(pairs.margins[i])} for i in noise.disputed]
    drawn = {"unfinished": 3, "max_new_tokens": 49} if samples else None
    return {"format": FORMAT, "pairs": "pairs.jsonl", "left_out": 0, "sft_sampling": drawn, **found}


def page(run: Path, content: dict[str, Any] | str) -> str:
    (run / "reward_model").mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (run / "reward_model" / "report.json").write_text(text, encoding="utf-8")
    return write_report(run).read_text(encoding="utf-8")


def plain(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_the_page_has_the_figures_the_numbers_and_the_disputed_rows(tmp_path: Path):
    found = report(data_margins=np.arange(60) % 3.0, sources=["web", "$forum$"] * 30)
    html = page(tmp_path, found)
    titles = re.findall(r"<h3>(.*?)</h3>\s*<svg", html)
    assert titles == [
        "Calibration",
        "Distribution of scores",
        "Score against length",
        "Accuracy by score margin",
        "Accuracy by margin of the data",
        "Accuracy by length difference",
        "Accuracy by source",
    ]
    text, accuracy = plain(html), found["accuracy"]
    assert f"{accuracy['value']:.3f} (95 % interval {accuracy['low']:.3f} to {accuracy['high']:.3f}, 60 pairs)" in text
    assert f"ECE {found['calibration']['ece']:.3f} (a calibrated model: " in text
    assert "60 completions of held-out prompts, at most 49 tokens; 3 reached that" in text
    for group in (group for groups in found["groups"].values() for group in groups):
        assert f"{group['name']} ({group['n']})" in text
    rows = found["label_noise"]["rows"]
    assert rows, "a page without disputed rows proves nothing"
    for row in rows:
        assert f"{row['row']} {row['margin']:.2f} It is bad" in text
    assert ATTACK not in html


def test_the_tables_fit_eighty_characters_and_hold_the_numbers():
    console = Console(width=80, record=True, file=io.StringIO())
    found = report(sources=["web"] * 60)
    for table in reward_model_tables(found):
        console.print(table)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    chosen, (web,) = found["scores"]["chosen"], found["groups"]["source"]
    assert f"chosen 60 {chosen['mean']:.2f} {chosen['std']:.2f}" in " ".join(lines)
    assert f"source: web 60 {web['value']:.3f} {web['low']:.3f} to {web['high']:.3f}" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_handful_of_pairs_without_sft_samples_draws_as_well(n: int):
    found = report(n, samples=False)
    assert [plot.title for plot in reward_model_plots(found)][:3] == [
        "Calibration",
        "Distribution of scores",
        "Score against length",
    ]
    assert list(reward_model_tables(found))
    json.dumps(found, allow_nan=False)  # raises where a number is not one


@pytest.mark.parametrize(
    ("content", "told"),
    [('{"format": 1, "pai', "not a JSON object"), ('{"format": 99}', "of another version of this program")],
)
def test_a_report_that_cannot_be_read_is_left_out_aloud(content: str, told: str, tmp_path: Path):
    text = plain(page(tmp_path, content))
    assert f"reward_model/report.json: {told}, left out" in text
    assert "How good the reward model is" not in text


def test_a_stage_writes_the_format_that_the_page_reads(tmp_path: Path):
    assert REPORT_FORMAT == FORMAT
    page(tmp_path, report())
    assert read_run(tmp_path).stages["reward_model"].report["accuracy"]["n"] == 60
