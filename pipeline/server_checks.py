"""Scoring servers, asked about a few real prompts before any model is loaded. Imports no torch."""

from collections.abc import Sequence

from pipeline.config import PipelineConfig
from pipeline.findings import Findings
from pipeline.lineage import enabled_steps
from pipeline.rundir import RunDir
from reward.base import RewardError
from reward.config import RewardTerm
from reward.dry_run import Trial
from stages.base import InputError


def check_servers(config: PipelineConfig, samples: Sequence[Trial], found: Findings) -> None:
    """REW01, REW02, REW04, REW06 to REW08: a server that does not answer all `samples` in time, or not as agreed.

    One that a finished run will not ask any more is left alone. One whose wait other ranks cannot outlast is told.
    """
    terms = [term for term in config.reward if term.remote] if config.ppo.enabled else []
    done = _finished(config)
    for term in terms:
        if done:
            found.notes.append(f"{term.remote.url} was not asked: the stages that need it are finished")
        else:
            _ask(term, samples, config.check.reward_seconds, found)
    limit = config.run.hang_timeout_s
    for longest in (term.remote.longest_wait_s for term in terms if not config.launch.alone):
        if limit is not None and longest >= limit:
            found.notes.append(
                f"one rank may wait {longest:g} s for its scoring server, and the others give up after "
                f"run.hang_timeout_s: {limit:g}"
            )


def _ask(term: RewardTerm, samples: Sequence[Trial], seconds: float, found: Findings) -> None:
    from reward.remote import RemoteScorer

    remote = term.remote.model_copy(update={"retries": 0, "timeout_s": min(term.remote.timeout_s, seconds)})
    try:
        scorer = RemoteScorer(term.label, remote, term.limit)
        scores = [score for s in samples if s.prompts for score in scorer(s.prompts, s.completions, s.columns or {})]
    except RewardError as error:
        found.errors.append(InputError(error.code, error.problem, error.fix))
        return
    if not scores:
        found.passed("ppo", f"{remote.url} was not asked; no samples to try it on")
        return
    called = f", which calls itself {scorer.model}," if scorer.model else ""
    told = ", ".join(f"{score:.3g}" for score in scores)
    found.passed("ppo", f"{remote.url}{called} on {len(scores)} samples: {told}")


def _finished(config: PipelineConfig) -> bool:
    run = RunDir.at(config)
    return all(run.stage(step).finished for step in enabled_steps(config) if step in ("ppo", "evaluation"))
