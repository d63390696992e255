"""The bargain between reward and KL: PPO at several KL coefficients beside best-of-n of the SFT model.

    python -m scripts.benchmark.frontier ppo runs/imdb_smollm2 --kl-coefs 0.05 0.15 0.4 1
    python -m scripts.benchmark.frontier best-of-n runs/imdb_smollm2 --samples 16 --prompts 128
    python -m scripts.benchmark.frontier draw runs/imdb_smollm2 --out docs/frontier

`ppo` repeats the PPO stage of a finished run for each coefficient, in run folders beside it, with the KL budget off.
`best-of-n` samples from the SFT model on the same held-out prompts and keeps, of n, the one that the reward scores
highest; its KL is `log n - (n - 1)/n` nats (arXiv 2009.01325, equation 5 of 2210.10760). `draw` writes a picture and
its data. The judge is the independent one of the run's evaluation; all errors are standard errors over prompts.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmark.ppo_seeds import repeat_ppo

SIZES = (1, 2, 4, 8, 16, 32, 64)


def best_of_n_weights(total: int, n: int) -> np.ndarray:
    """Probability that the i-th lowest of `total` samples is the best of n drawn without replacement.

    `C(i - 1, n - 1) / C(total, n)`: the estimator of arXiv 2112.09332, unbiased and of low variance.
    """
    return np.array([math.comb(i, n - 1) for i in range(total)], dtype=float) / math.comb(total, n)


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n to the model it samples from, in nats: `log n - (n - 1)/n`."""
    return math.log(n) - (n - 1) / n


def best_of_n(scores: np.ndarray, judged: np.ndarray, n: int) -> dict[str, float]:
    """Expected score and judgement of best-of-n for samples [prompts, total], with standard errors over prompts."""
    order = np.argsort(scores, axis=1, kind="stable")
    weights = best_of_n_weights(scores.shape[1], n)
    point = {"n": n, "kl": best_of_n_kl(n), "kl_error": 0.0}
    for name, values in (("score", scores), ("judge", judged)):
        expected = np.take_along_axis(values, order, axis=1) @ weights
        point |= {name: float(expected.mean()), f"{name}_error": float(expected.std(ddof=1) / len(expected) ** 0.5)}
    return point


def ppo(run: Path, coefficients: Sequence[float]) -> None:
    """Train and evaluate one policy per coefficient; finished ones are skipped, interrupted ones resumed."""
    for coefficient in coefficients:
        print(f"kl_coef {coefficient:g}", flush=True)
        repeat_ppo(run, f"kl{coefficient:g}", [f"ppo.kl_coef={coefficient:g}", "ppo.kl_budget=null"])


def sample(run: Path, prompts: int, samples: int) -> Path:
    """Score `samples` completions of the SFT model for each of the prompts of the run's evaluation, by both."""
    import torch

    from pipeline.config_loading import load_config
    from stages.evaluation import held_out_batch, judged
    from stages.ppo.builder import PPOBuilder
    from stages.ppo.evaluation import Evaluator
    from stages.ppo.foreign_reward import FILE, Centring
    from stages.ppo.held_out import EVALUATION_SEED
    from stages.ppo.judging import SUCCESS
    from stages.ppo.prompts import PromptBatch
    from stages.ppo.rewards import RewardServices
    from stages.quiet import quiet_libraries

    quiet_libraries()
    config = load_config(run / "config.yaml")
    finals = [run / stage / "final" for stage in ("sft", "reward_model")]
    services = RewardServices(centring=Centring(run / "ppo" / FILE))  # as PPO centred reward models of others
    builder = PPOBuilder(config.ppo, config.model, config.reward, *finals, config.seed, config.trunk, services)
    policy = builder.policy(builder.reference_lm)
    evaluator = Evaluator(
        policy,
        builder.rewards.mixture,
        builder.sampler(config.seed + 3 * EVALUATION_SEED),
        builder.renderer.decode,
        builder.trunk(builder.reference_lm, [scorer.classifier for scorer in builder.rewards.scorers]),
        config.evaluation.batch_size,
    )
    batch = held_out_batch(builder.prompts(Path(config.data.prompts.eval)), config.ppo.eval_prompts, prompts)
    repeated: PromptBatch = batch.chosen([row for row in range(len(batch.ids)) for _ in range(samples)])
    repeated = PromptBatch(range(len(repeated.ids)), repeated.ids, repeated.texts, repeated.columns)
    with torch.no_grad():
        completions = evaluator(policy, repeated)
    verdicts = [float(v > SUCCESS) for v in judged(config.evaluation.judge, completions)]
    rows = [row | {"judge": v} for row, v in zip(completions.rows(), verdicts, strict=True)]
    path = run.with_name(f"{run.name}-best-of-n.json")
    path.write_text(json.dumps({"samples": samples, "rows": rows}))
    return path


def points_of_ppo(run: Path) -> list[dict[str, Any]]:
    """One point per coefficient, and the held-out evaluations on the way there."""
    points = []
    for folder in run.parent.glob(f"{run.name}-kl*"):
        models = json.loads((folder / "results.json").read_text())["models"]
        point: dict[str, Any] = {"kl_coef": float(folder.name.removeprefix(f"{run.name}-kl"))}
        for name in ("kl", "score", "judge"):
            point |= {name: models["ppo"][name]["value"], f"{name}_error": models["ppo"][name]["standard_error"]}
        points.append(point)
    return sorted(points, key=lambda point: -point["kl_coef"])


def points_of_best_of_n(run: Path) -> list[dict[str, Any]]:
    """One point per n that is no larger than the samples per prompt."""
    found = json.loads(run.with_name(f"{run.name}-best-of-n.json").read_text())
    count = found["samples"]
    scores, verdicts = (np.array([row[k] for row in found["rows"]]).reshape(-1, count) for k in ("score", "judge"))
    return [best_of_n(scores, verdicts, n) for n in SIZES if n <= count]


def draw(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Score and judge against sqrt(KL), with standard errors, on the same axes for both ways."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    titles = {"score": "what is optimised: the reward", "judge": "what is wanted: the judge, fraction positive"}
    styles = {"PPO": ("#0072b2", "o"), "best-of-n": ("#d55e00", "s")}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for label, points in curves.items():
            colour, marker = styles[label]
            x = [math.sqrt(max(0.0, point["kl"])) for point in points]
            y, error = [p[name] for p in points], [p[f"{name}_error"] for p in points]
            axis.errorbar(x, y, error, label=label, color=colour, marker=marker, capsize=3, linewidth=1.2)
            for point, at in zip(points, zip(x, y, strict=True), strict=True):
                said = f"β={point['kl_coef']:g}" if "kl_coef" in point else f"n={point['n']}"
                axis.annotate(said, at, xytext=(5, -11), textcoords="offset points", fontsize=7, color=colour)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("√KL to the SFT model, KL in nats per completion")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=160)


def table(curves: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown, one line per point."""
    lines = ["| | KL, nats | reward | judge |", "|---|---|---|---|"]
    for label, points in curves.items():
        for p in points:
            said = f"kl_coef {p['kl_coef']:g}" if "kl_coef" in p else f"n = {p['n']}"
            kl = f"{p['kl']:.2f}" + (f" ± {p['kl_error']:.2f}" if p["kl_error"] else "")
            score, judge = (f"{p[k]:.3f} ± {p[f'{k}_error']:.3f}" for k in ("score", "judge"))
            lines.append(f"| {label}, {said} | {kl} | {score} | {judge} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    each = {name: commands.add_parser(name) for name in ("ppo", "best-of-n", "draw")}
    for command in each.values():
        command.add_argument("run", type=Path, help="folder of a finished run")
    each["ppo"].add_argument("--kl-coefs", type=float, nargs="+", default=[0.05, 0.15, 0.4, 1.0])
    each["best-of-n"].add_argument("--prompts", type=int, default=128)
    each["best-of-n"].add_argument("--samples", type=int, default=16, help="completions per prompt")
    each["draw"].add_argument("--out", type=Path, default=Path("docs/frontier"), help="of the .png and the .json")
    arguments = parser.parse_args()
    if arguments.command == "ppo":
        ppo(arguments.run, arguments.kl_coefs)
    elif arguments.command == "best-of-n":
        print(sample(arguments.run, arguments.prompts, arguments.samples))
    else:
        curves = {"PPO": points_of_ppo(arguments.run), "best-of-n": points_of_best_of_n(arguments.run)}
        arguments.out.with_suffix(".json").write_text(json.dumps(curves, indent=1) + "\n")
        draw(curves, arguments.out.with_suffix(".png"))
        print(table(curves))


if __name__ == "__main__":
    main()
