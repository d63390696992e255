"""Corpus BLEU, ROUGE-L and exact matches of a finished run's base, SFT and PPO policy on held-out prompts.

    python scripts/corpus_bleu.py runs/unscramble_rouge --reference sentence

Reads the completions of the run's evaluation and the reference column of its held-out prompts. Intervals are 95 %:
1000 bootstrap resamples of the completions for BLEU, Wilson's for matches, 1.96 standard errors for ROUGE-L. What PPO
changed is judged on pairs of completions of the same prompt: BLEU by 10,000 random exchanges within pairs.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from pipeline.config_loading import load_config
from stages.reward_model.quality import wilson

RESAMPLES = 1000


@dataclass(frozen=True)
class Scored:
    """What one policy reached; each interval is a half width, but that of matches (low, high)."""

    completions: int
    bleu: float
    bleu_interval: float
    rouge: float
    rouge_interval: float
    matches: float
    matches_interval: tuple[float, float]

    @staticmethod
    def of(completions: Sequence[str], references: Sequence[str]) -> "Scored":
        bleu = BLEU().corpus_score(completions, [references], n_bootstrap=RESAMPLES)
        scorer = RougeScorer(["rougeL"])
        rouge = [scorer.score(r, c)["rougeL"].fmeasure for c, r in zip(completions, references, strict=True)]
        same = wilson(sum(c == r for c, r in zip(completions, references, strict=True)), len(completions))
        error = 1.96 * float(np.std(rouge, ddof=1)) / len(rouge) ** 0.5
        half = bleu._ci  # sacrebleu prints it, and offers no other way to it
        return Scored(len(rouge), bleu.score, half, float(np.mean(rouge)), error, same.value, (same.low, same.high))


@dataclass(frozen=True)
class Texts:
    """What the policies wrote for the same prompts, and what was wanted."""

    references: list[str]
    completions: dict[str, list[str]]
    """By policy, in the order of the references."""

    @staticmethod
    def of(run: Path, reference: str) -> "Texts":
        """Those of the run's evaluation."""
        prompts = load_config(run / "config.yaml").data.prompts.eval
        wanted = {row["prompt"]: row[reference].strip() for row in _rows(Path(prompts))}
        written: dict[str, dict[str, str]] = {}
        for row in _rows(run / "evaluation" / "samples.jsonl"):
            written.setdefault(row["model"], {})[row["prompt"]] = row["completion"].strip()
        order = sorted(next(iter(written.values())))
        completions = {model: [texts[prompt] for prompt in order] for model, texts in written.items()}
        return Texts([wanted[prompt] for prompt in order], completions)

    def scored(self) -> dict[str, Scored]:
        """The figures of each policy."""
        return {model: Scored.of(texts, self.references) for model, texts in self.completions.items()}

    def p_value(self, before: str, after: str) -> float:
        """How often a difference in corpus BLEU as large as theirs comes of exchanging their completions at random."""
        systems = [(name, self.completions[name]) for name in (before, after)]
        _, found = PairedTest(systems, {"BLEU": BLEU(references=[self.references])}, None, "ar")()
        return found["BLEU"][1].p_value


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--reference", required=True, help="column of the held-out prompts with what is wanted")
    arguments = parser.parse_args()
    print("| policy | corpus BLEU | ROUGE-L | exact |\n|---|---|---|---|")
    texts = Texts.of(arguments.run, arguments.reference)
    for model, s in texts.scored().items():
        low, high = s.matches_interval
        print(
            f"| {model} | {s.bleu:.1f} ± {s.bleu_interval:.1f} | {s.rouge:.3f} ± {s.rouge_interval:.3f} "
            f"| {s.matches:.1%} [{low:.1%}, {high:.1%}] |"
        )
    if {"sft", "ppo"} <= texts.completions.keys():
        print(f"\nppo and sft differ in BLEU: p = {texts.p_value('sft', 'ppo'):.4f}")


if __name__ == "__main__":
    main()
