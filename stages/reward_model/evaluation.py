"""A finished reward model measured again, on these held-out pairs or on others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.models.config import NO_FROZEN_LAYERS, ModelConfig, TrunkConfig
from stages.models.load import load_tokenizer, source_of
from stages.models.roles import Roles
from stages.quiet import quiet_libraries
from stages.render import Renderer, Row
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.examiner import Examiner
from stages.reward_model.measuring import CentredScores
from stages.reward_model.members import folders_of
from stages.reward_model.pairs import read_trainable
from stages.reward_model.reporting import measured
from stages.reward_model.statistics import RewardStatistics, verify_probes


def evaluate_reward_model(
    config: RewardModelConfig,
    model: ModelConfig,
    final: Path,
    held_out: Path,
    sft: Path | None,
    demonstrations: Sequence[Row],
    seed: int,
    trunk: TrunkConfig = NO_FROZEN_LAYERS,
) -> dict[str, Any]:
    """The content of report.json for the reward model in `final`, or the mean of those there.

    On what its stage saw the numbers are the same.

    Raises InputError RM05 when it does not score its probes as it did when saved, and those of read_trainable.
    """
    quiet_libraries()
    roles = Roles(model, trunk.frozen_layers)
    roles.trust(sft, *folders_of(final))
    source = source_of(final)
    tokenizer = load_tokenizer(source, roles.trusts(source.folder))
    renderer, examiner = Renderer(tokenizer), Examiner(config, model, roles, tokenizer, seed)
    preferences = read_trainable(renderer, held_out, config)
    shown = [renderer.demonstration(row) for row in demonstrations]
    tested = examiner.held_out(preferences, shown, sft)
    members, means = [], []
    for folder in folders_of(final):
        member, statistics = examiner.scores(folder), RewardStatistics.load(folder)
        verify_probes(member.model, statistics, folder, tokenizer.pad_token_id)
        members.append(member)
        means.append(statistics.mean)
    score = CentredScores(members, means)
    return measured(score, tested, score(shown) if shown else [])
