"""The reward's running scales beside a published policy, so that it is evaluated in the units it was trained in."""

import json
from pathlib import Path

from reward.mixture import RewardMixture
from stages.base import InputError

FILE = "reward_scales.json"


def write_scales(folder: Path, reward: RewardMixture) -> None:
    """Keep the moments of running scales in a policy's folder; nothing where there are none."""
    if reward.learns:
        (folder / FILE).write_text(json.dumps(reward.state_dict(), indent=2))


def read_scales(folder: Path, reward: RewardMixture) -> None:
    """Take up what write_scales kept. Raises InputError RUN02 where the file is missing or not of these terms."""
    if not reward.learns:
        return
    try:
        reward.load_state_dict(json.loads((folder / FILE).read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{folder / FILE}: not the running scales of these reward terms ({type(error).__name__}: {error})"
        raise InputError("RUN02", problem, fix="run ppo again: --force ppo") from error
