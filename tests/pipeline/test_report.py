import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.report import result_table, write_report
from pipeline.report.plots import stage_plots
from pipeline.report.reading import Series, StageRecord, read_run
from pipeline.report.table import duration, number
from pipeline.spaced import spaced

ATTACK = "<script>alert(1)</script>"


def metric(value: float, standard_error: float) -> dict[str, float]:
    return {"value": value, "n": 256, "standard_error": standard_error}


RESULTS = {
    "models": {
        "base": {"judge": metric(0.4883, 0.0312), "score": metric(-0.412, 0.071), "kl": metric(14.21, 0.42)},
        "sft": {"judge": metric(0.5117, 0.0312), "score": metric(0.031, 0.082), "kl": metric(0.0, 0.0)},
        "ppo": {"judge": metric(0.9414, 0.0147), "score": metric(2.613, 0.051), "kl": metric(8.42, 0.21)},
    },
    "reward_model": {
        "accuracy": 0.8794,
        "accuracy_low": 0.853,
        "accuracy_high": 0.901,
        "n": 700,
        "length_baseline": 0.503,
    },
    "stages": {
        "sft": {"seconds": 95.2, "peak_bytes": 2_310_000_000},
        "ppo": {"seconds": 288.9, "peak_bytes": 3.7e9},
    },
}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_rows(path: Path, rows: list[dict[str, object]], tail: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")


def write_sft(run: Path, tail: str = "") -> None:
    manifest = {
        "format": 1,
        "stage": "sft",
        "status": "finished",
        "base": {"id": "toy", "hash": "ab" * 32},
        "data": {"data/demonstrations.jsonl": "0123456789abcdef" * 4},
        "started": "2026-09-01T10:00:00+00:00",
        "seconds": 95.2,
        "peak_bytes": 2_310_000_000,
        "headline": {"eval_loss_before": 3.91234, "eval_loss": 3.5},
    }
    write_json(run / "sft/stage.json", manifest)
    write_rows(run / "sft/metrics.jsonl", [{"step": i, "time": 0.5, "sft/loss": 4 - i / 10} for i in (1, 2, 3)], tail)
    sample = {"step": 0, "prompt": "The film", "completion": " was made", "reference": " is a delight"}
    write_rows(run / "sft/samples.jsonl", [sample | {"when": "before"}, sample | {"when": "after"}])


@pytest.fixture
def full(tmp_path: Path) -> Path:
    run = tmp_path / "demo"
    command = ["rlhf", "run", "configs/demo.yaml", "run.name=two words"]
    versions = {"torch": "2.13.0"}
    write_json(run / "run.json", {"name": "demo", "command": command, "versions": versions, "git": "4f2c9d8e"})
    data = "data: {demonstrations: {train: data/demonstrations.jsonl}}"
    (run / "config.yaml").write_text(f"model: {{path: models/toy, dtype: bfloat16}}\nseed: 7\n{data}\n")
    write_sft(run)
    ranked = {"reward_model/loss": 0.6, "reward_model/accuracy": 0.7}
    write_rows(run / "reward_model/metrics.jsonl", [{"step": i, "time": 0.5} | ranked for i in (1, 2)])
    step = {"objective/score": 1.0, "objective/kl": 4.0, "objective/kl_coef": 0.05, "time/rollout": 1.0}
    steps = [{"step": i, "time": 0.5} | step for i in (1, 2, 3)]
    write_rows(run / "ppo/metrics.jsonl", [*steps, {"step": 3, "time": 0.5, "eval/score": 1.5, "eval/kl": 4.5}])
    drawn = {
        "step": 2,
        "prompt": "Early on",
        "completion": " it drags",
        "score": -1.25,
        "kl": 0.5,
        "length": 3,
    }
    write_rows(run / "ppo/samples.jsonl", [drawn | {"stopped": False}])
    answers = {"base": " is `code`", "sft": f" was {ATTACK} bad", "ppo": " was wonderful"}
    rows = [
        {
            "step": 0,
            "model": model,
            "index": i,
            "prompt": f"Review {i}",
            "completion": text,
            "score": 2.5,
            "kl": 8.1,
        }
        for i in range(30)
        for model, text in answers.items()
    ]
    write_rows(run / "evaluation/samples.jsonl", rows)
    write_json(run / "results.json", RESULTS)
    return run


def page(run: Path) -> str:
    path = write_report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def plain(html: str) -> str:
    """The page's words, single-spaced."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_the_result_table_of_the_page_holds_every_value_with_its_standard_error(full: Path) -> None:
    text = plain(page(full))
    assert "base 0.488 ± 0.031 -0.41 ± 0.07 14.21 ± 0.42" in text
    assert "SFT 0.512 ± 0.031 0.03 ± 0.08 0.00 ± 0.00" in text
    assert "PPO 0.941 ± 0.015 2.61 ± 0.05 8.42 ± 0.21" in text
    assert "Reward model accuracy 0.879 (95 % interval 0.853 to 0.901, n = 700)" in text
    assert "over 256 held-out prompts" in text
    assert "distinct-2 fraction" not in text, "a column that nobody measured"


def test_the_page_says_what_was_run(full: Path) -> None:
    text = plain(page(full))
    for fact in (
        "rlhf run configs/demo.yaml &#39;run.name=two words&#39;",
        "model models/toy",
        "precision dtype bfloat16",
        "seed 7",
        "git revision 4f2c9d8e",
        "data, demonstrations data/demonstrations.jsonl (0123456789ab)",
        "versions torch 2.13.0",
        "SFT finished 2026-09-01 10:00:00 1 min 35 s 2.31 GB eval_loss_before 3.912, eval_loss 3.5",
    ):
        assert fact in text
    assert "seed: 7" in page(full).split("<details>")[1]


def test_the_page_names_the_stages_that_the_run_has(full: Path) -> None:
    assert "supervised fine-tuning → reward model → PPO" in write_report(full).read_text()
    config = full / "config.yaml"
    config.write_text(config.read_text() + "reward_model: {enabled: false}\n")
    assert "supervised fine-tuning → PPO" in write_report(full).read_text()


def test_each_stage_that_logged_something_gets_its_figures(full: Path) -> None:
    record = read_run(full)
    titles = {name: [plot.title for plot in stage_plots(stage)] for name, stage in record.stages.items()}
    assert titles == {
        "sft": ["Loss"],
        "reward_model": ["Loss", "Accuracy"],
        "ppo": ["Score", "KL to the SFT model", "Score against √KL", "Time per step"],
        "evaluation": [],
    }
    html = page(full)
    assert html.count("<svg") == html.count("<figcaption>") == 7


def test_a_reward_of_several_terms_has_a_figure_and_a_fact_for_each(full: Path) -> None:
    names = ("like", "short", "<i>", "like_std")
    terms = {f"objective/weighted/{n}": 0.2 for n in names[:3]} | {f"objective/term/{n}": 0.5 for n in names}
    rows = [{"step": i, "objective/score": 0.4, "objective/kl": 1.0, "eval/term/like": 0.6} | terms for i in (1, 2)]
    write_rows(full / "ppo/metrics.jsonl", rows)
    drawn = {"step": 2, "prompt": "p", "completion": "c", "score": 0.4, "terms": {"like": 0.5, "short": None}}
    write_rows(full / "ppo/samples.jsonl", [drawn])
    titles = [plot.title for plot in stage_plots(read_run(full).stages["ppo"])]
    assert titles == ["Score", "KL to the SFT model", "Score against √KL", "Reward term like", "Reward term short"]
    html = page(full)
    assert "PPO score 0.40 like 0.50 c" in plain(html)
    assert "<i>" not in html


def test_the_only_term_of_a_reward_is_its_score_and_not_drawn_again(full: Path) -> None:
    rows = [{"step": 1, "objective/score": 0.4, "objective/term/like": 0.4, "objective/weighted/like": 0.4}]
    write_rows(full / "ppo/metrics.jsonl", rows)
    assert [plot.title for plot in stage_plots(read_run(full).stages["ppo"])] == ["Score"]


def test_figures_take_their_colours_from_the_page_and_share_no_ids(full: Path) -> None:
    html = page(full)
    assert "stroke: var(--c1)" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", html)) <= set(ids)
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]|#1[01]1[12]1[23]", html), "a placeholder colour was left"


def test_completions_stand_side_by_side_for_twelve_evenly_spaced_prompts(full: Path) -> None:
    text = plain(page(full))
    prompts = re.findall(r"prompt \d+ Review (\d+)", text)
    assert prompts == ["0", "3", "5", "8", "11", "13", "16", "18", "21", "24", "26", "29"]
    assert "base score 2.50 KL 8.10 is `code` SFT score 2.50 KL 8.10 was" in text
    assert "step 2 prompt Early on PPO score -1.25 KL 0.50 tokens 3 cut off it drags" in text


def test_model_output_is_escaped(full: Path) -> None:
    html = page(full)
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 12


def test_the_page_loads_nothing_from_elsewhere(full: Path) -> None:
    html = page(full)
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", html)
    assert not re.search(r"url\((?!#)|@import", html)
    assert "http://" not in html and "https://" not in html


def test_a_run_with_only_sft_is_reported(tmp_path: Path) -> None:
    write_sft(tmp_path)
    text = plain(page(tmp_path))
    assert "This run has no final evaluation yet." in text
    assert "What fine-tuning changed" in text and "demonstration is a delight" in text
    assert "PPO over time" not in text and "reward model accuracy" not in text.lower()


def test_an_empty_folder_is_reported(tmp_path: Path) -> None:
    assert "No stage has started." in page(tmp_path)


def test_empty_metrics_are_no_figures(tmp_path: Path) -> None:
    write_sft(tmp_path)
    (tmp_path / "sft/metrics.jsonl").write_text("")
    html = page(tmp_path)
    assert "<svg" not in html and "could be read" not in html


def test_a_torn_last_line_is_left_out_and_named(tmp_path: Path) -> None:
    write_sft(tmp_path, tail='{"step": 4, "sft/lo')
    record = read_run(tmp_path)
    assert record.stages["sft"].series("sft/loss") == Series((1, 2, 3), (3.9, 3.8, 3.7))
    assert "sft/metrics.jsonl: 1 of 4 lines unreadable, left out" in plain(page(tmp_path))


def test_a_line_torn_inside_a_character_is_left_out(tmp_path: Path) -> None:
    write_sft(tmp_path)
    with (tmp_path / "sft/samples.jsonl").open("ab") as file:
        file.write('{"step": 1, "completion": "é'.encode()[:-1])
    assert len(read_run(tmp_path).stages["sft"].samples) == 2


def test_a_line_separator_inside_a_text_does_not_split_the_row(tmp_path: Path) -> None:
    write_rows(tmp_path / "ppo/samples.jsonl", [])
    row = json.dumps({"step": 1, "prompt": "a", "completion": "b\u2028c"}, ensure_ascii=False)
    (tmp_path / "ppo/samples.jsonl").write_text(row + "\n", encoding="utf-8")
    assert [row["completion"] for row in read_run(tmp_path).stages["ppo"].samples] == ["b\u2028c"]


def test_steps_repeated_by_a_resumed_run_count_once_with_their_last_value() -> None:
    rows = tuple({"step": step, "m": value} for step, value in ((1, 1.0), (2, 9.0), (3, 9.0), (2, 2.0), (3, 3.0)))
    assert StageRecord("ppo", metrics=rows).series("m") == Series((1, 2, 3), (1.0, 2.0, 3.0))


def test_a_value_that_diverged_is_drawn_around_and_shown() -> None:
    rows = tuple(
        {"step": i, "objective/score": v, "objective/kl": v} for i, v in ((1, 1.0), (2, float("nan")), (3, -2.0))
    )
    assert [plot.title for plot in stage_plots(StageRecord("ppo", metrics=rows))][0] == "Score"
    assert number(float("nan"), 2) == "nan"


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "value/loss": 0.5}],
        [{"step": 1, "objective/kl": float("inf")}, {"step": 2, "objective/kl": float("nan")}],
        [{"step": 1, "time/rollout": 1.0}, {"step": 2, "time/update": 1.0}],
        [{"step": 1, "eval/win_rate": 0.5}, {"step": 2, "eval/win_rate": 0.6, "eval/win_rate_low": 0.5}],
        [{"step": 1, "objective/score": -2.0}, {"step": 2, "objective/score": -2.0}],
    ],
    ids=["right axis only", "nothing finite", "phases at different steps", "half an interval", "constant"],
)
def test_an_odd_selection_of_metrics_still_draws(rows: list[dict[str, float]]) -> None:
    (plot,) = stage_plots(StageRecord("ppo", metrics=tuple(rows)))
    assert plot.svg.startswith("<svg ")


def test_a_damaged_manifest_and_a_lone_surrogate_do_not_stop_the_report(tmp_path: Path) -> None:
    write_rows(tmp_path / "ppo/samples.jsonl", [{"step": 1, "prompt": "a", "completion": "b\ud800c"}])
    (tmp_path / "ppo/stage.json").write_text("{")
    text = plain(page(tmp_path))
    assert "ppo/stage.json: not a JSON object, left out" in text
    assert "b?c" in text


def test_the_report_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    assert "old" not in page(tmp_path).split("<main>")[0].split("</style>")[1]
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_same_run_gives_the_same_bytes(full: Path) -> None:
    assert page(full) == page(full)


def printed(results: dict[str, object]) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(result_table(results))
    return console.export_text()


def test_the_printed_table_fits_eighty_characters_and_holds_the_numbers() -> None:
    lines = [line.rstrip() for line in printed(RESULTS).splitlines()]
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1] in (["base"], ["SFT"], ["PPO"])}
    assert rows == {
        "base": ["0.488±0.031", "-0.41±0.07", "14.21±0.42"],
        "SFT": ["0.512±0.031", "0.03±0.08", "0.00±0.00"],
        "PPO": ["0.941±0.015", "2.61±0.05", "8.42±0.21"],
    }


def test_below_the_printed_table_stand_reward_model_and_costs() -> None:
    text = " ".join(printed(RESULTS).split())
    assert 'accuracy 0.879 (95 % interval 0.853 to 0.901, n = 700); "longer is better" 0.503' in text
    assert "SFT: 1 min 35 s, 2.31 GB peak PPO: 4 min 49 s, 3.70 GB peak" in text


def test_before_policies_are_evaluated_only_reward_model_and_costs_are_printed() -> None:
    lines = printed({**RESULTS, "models": {}}).splitlines()
    assert lines[0].startswith("reward model accuracy 0.879 (95 % interval 0.853 to 0.901, n = 700)")
    assert lines[-1] == "PPO: 4 min 49 s, 3.70 GB peak"
    assert "base" not in printed({}) and "accuracy" not in printed({})


def test_durations_read_as_people_say_them() -> None:
    assert [duration(s) for s in (42, 187, 7500.4, None)] == ["42 s", "3 min 07 s", "2 h 05 min", "–"]


def test_spaced_keeps_first_and_last() -> None:
    assert spaced([0, 1, 2, 3, 4, 5, 6], 3) == [0, 3, 6]
    assert spaced([0, 1], 3) == [0, 1]
