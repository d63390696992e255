"""What a stage's result depends on, field by field, and what changed. Imports no torch."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.hashing import sha256_of

ABSENT = "absent"
"""What a field is shown as on the side that does not have it."""
_DIGEST = 64


@dataclass(frozen=True)
class Identity:
    """All that determines a result, flat: `ppo.learning_rate: 1e-05`, `data.prompts.train: <sha256>`."""

    fields: Mapping[str, Any]
    """Plain value or digest by dotted name."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """Where the content behind a digest lies; for people, so that moving a file changes nothing."""

    @property
    def fingerprint(self) -> str:
        """Digest of the fields."""
        return sha256_of(dict(self.fields))

    def plain(self) -> dict[str, Any]:
        """As written to stage.json and to a checkpoint's manifest."""
        return {"fields": dict(self.fields), "paths": dict(self.paths)}

    @classmethod
    def of_plain(cls, content: Mapping[str, Any]) -> "Identity":
        """What `plain` made. Raises KeyError, TypeError or ValueError when it is something else."""
        return cls(dict(content["fields"]), dict(content["paths"]))


@dataclass(frozen=True)
class Change:
    """One field with its two values as they are shown."""

    field: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.field}: {self.old} -> {self.new}"


def changes(old: Identity, new: Identity) -> list[Change]:
    """The fields that differ, by name.

    >>> print(*changes(Identity({"ppo.lam": 0.95, "seed": 1}), Identity({"ppo.lam": 0.9, "seed": 1})))
    ppo.lam: 0.95 -> 0.9
    """
    names = sorted(old.fields.keys() | new.fields.keys())
    return [
        Change(name, _shown(name, old), _shown(name, new))
        for name in names
        if (name in old.fields) != (name in new.fields) or old.fields.get(name) != new.fields.get(name)
    ]


def listed(found: Iterable[Change]) -> str:
    """Changes as one indented line each."""
    return "\n".join(f"    {change}" for change in found)


def _shown(name: str, identity: Identity) -> str:
    value = identity.fields.get(name, ABSENT)
    if not (isinstance(value, str) and len(value) == _DIGEST):
        return str(value)
    path = identity.paths.get(name)
    return value[:12] + (f" ({path})" if path else "")


def flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of nested plain data under dotted names; a list of numbers or words is a leaf.

    >>> dict(flat("sft", {"tuning": {"r": 8}, "targets": ["q"], "terms": [{"weight": 1}]}))
    {'sft.tuning.r': 8, 'sft.targets': ['q'], 'sft.terms[0].weight': 1}
    """
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flat(f"{prefix}.{key}", item)
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, item in enumerate(value):
            yield from flat(f"{prefix}[{index}]", item)
    else:
        yield prefix, value
