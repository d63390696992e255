"""The judge of held-out completions: a function like a reward that no stage is trained on."""

from dataclasses import dataclass

from reward.base import RewardFunction, resolve
from reward.mixture import FunctionScores, Texts

SUCCESS = 0.5
"""A completion that the judge gives more than this is a success."""


@dataclass(frozen=True)
class Judge:
    """`function` under the name that the config gives it."""

    name: str
    function: RewardFunction

    @classmethod
    def named(cls, spec: str | None) -> "Judge | None":
        """The judge at `package.module:name` or `path/to/file.py:name`; None for none. Raises RewardError REW04."""
        return cls(spec, resolve(spec)) if spec else None

    def __call__(self, texts: Texts) -> list[float | None]:
        """What it says of each completion, None where it says nothing.

        Raises RewardError REW01 to REW04, see reward.contract.
        """
        return FunctionScores(self.name, self.function, {}).scores(texts)
