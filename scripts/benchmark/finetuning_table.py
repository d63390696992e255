"""The table and the picture of docs/finetuning.md, from the runs of scripts/benchmark/finetuning.py."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path("docs")
START, END = "<!-- measured: scripts/benchmark/finetuning.py table -->", "<!-- end -->"
STAGES = ("sft", "reward_model", "ppo")
PANELS = {
    "trained, % of parameters": "share",
    "adapter or weights on disk, MB": "megabytes",
    "peak memory of PPO, GB": "peak",
    "seconds per PPO step": "seconds",
    "SFT held-out loss, nats": "loss",
    "reward-model accuracy": "accuracy",
    "judge of PPO, fraction positive": "judge",
}
LOGARITHMIC = ("share", "megabytes")


def measured(root: Path, method: str) -> dict[str, Any]:
    """The figures of one method; an estimate is (value, lower error, upper error)."""
    run = root / method
    stages = {stage: json.loads((run / stage / "stage.json").read_text()) for stage in STAGES}
    results = json.loads((run / "results.json").read_text())
    seconds = json.loads((root / "seconds.json").read_text())[method]
    counts, accuracy = stages["sft"]["details"], stages["reward_model"]["headline"]
    judge = results["models"]["ppo"]["judge"]
    return {
        "trained": counts["trainable_parameters"],
        "share": 100 * counts["trainable_parameters"] / counts["parameters"],
        "megabytes": sum(f.stat().st_size for f in (run / "sft" / "final").glob("*.safetensors")) / 1e6,
        "peaks": [stages[stage]["peak_bytes"] / 1e9 for stage in STAGES],
        "peak": stages["ppo"]["peak_bytes"] / 1e9,
        "all_seconds": [seconds[stage] for stage in STAGES],
        "seconds": seconds["ppo"],
        "loss": stages["sft"]["headline"]["eval_loss"],
        "accuracy": (
            accuracy["accuracy"],
            accuracy["accuracy"] - accuracy["accuracy_low"],
            accuracy["accuracy_high"] - accuracy["accuracy"],
        ),
        "judge": (judge["value"], judge["standard_error"], judge["standard_error"]),
        "before": results["models"]["sft"]["judge"]["value"],
        "kl": results["models"]["ppo"]["kl"]["value"],
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, one line per method; three numbers are SFT / reward model / PPO."""
    lines = [
        "| method | trained (SFT) | file, MB | peak memory, GB | seconds per step | SFT loss | reward-model accuracy "
        "| judge: SFT -> PPO (KL) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, row in rows.items():
        value, low, high = row["accuracy"]
        judge, error, _ = row["judge"]
        lines.append(
            f"| `{method}` | {row['trained']:,} ({row['share']:.2f} %) | {row['megabytes']:.3g} "
            f"| {' / '.join(f'{peak:.2f}' for peak in row['peaks'])} "
            f"| {' / '.join(f'{seconds:.1f}' for seconds in row['all_seconds'])} | {row['loss']:.3f} "
            f"| {value:.3f} [{value - low:.3f}, {value + high:.3f}] "
            f"| {row['before']:.2f} -> {judge:.2f} ± {error:.2f} ({row['kl']:.1f}) |"
        )
    return "\n".join(lines)


def generation(root: Path) -> str:
    """One sentence on LoRA merged and unmerged, once that was measured."""
    file = root / "merged.json"
    if not file.is_file():
        return ""
    found = json.loads(file.read_text())
    return (
        f"\n\nLoRA generates {found['adapter']:.1f} tokens per second as an adapter and {found['merged']:.1f} merged: "
        f"{found['ratio']:.2f} times as many ({found['lowest']:.2f} to {found['highest']:.2f} in rounds side by side; "
        "one prompt, greedy)."
    )


def picture(rows: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """One panel per figure, one line per method; bars are standard errors, of the accuracy its 95 % interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = list(rows)[::-1]
    figure, axes = pyplot.subplots(
        1, len(PANELS), figsize=(2.1 * len(PANELS) + 1, 0.32 * len(methods) + 1.5), sharey=True
    )
    for axis, (title, name) in zip(axes, PANELS.items(), strict=True):
        for height, method in enumerate(methods):
            found = rows[method][name]
            value, *errors = found if isinstance(found, tuple) else (found,)
            bars = [[error] for error in errors] or None
            axis.errorbar(value, height, xerr=bars, fmt="o", color="#1f5fa8", capsize=3, markersize=6)
        axis.set_title(title, fontsize=8)
        axis.set_xscale("log" if name in LOGARITHMIC else "linear")
        axis.margins(x=0.15, y=0.1)
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(methods)), methods, fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def write(root: Path, methods: list[str]) -> None:
    """Put the table between its marks in docs/finetuning.md, and the picture beside it."""
    rows = {method: measured(root, method) for method in methods if (root / method / "results.json").is_file()}
    document = DOCS / "finetuning.md"
    before, _, rest = document.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    image = "![The same figures by method](finetuning.png)"
    content = f"{START}\n{table(rows)}{generation(root)}\n\n{image}\n{END}"
    document.write_text(before + content + after, encoding="utf-8")
    picture(rows, DOCS / "finetuning.png")
    print(table(rows))
