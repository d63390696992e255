"""Whether a stage is done, goes on or starts anew, and what changed since its state was saved. Imports no torch."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.checkpoints import CheckpointManager, Found
from pipeline.identity import Change, Identity, changes
from pipeline.rundir import StageDir
from stages.base import InputError

Decision = Literal["skip", "resume", "new"]
SHOWN = 8
"""Changed fields that a message lists; `rlhf ckpt diff` lists all."""

_FITS_NOT = "the saved weights and optimizer state have the shape of the old value"
_CHOSEN = "the best policy so far was chosen by the old value"
_FIXED = {
    r"stage|base/.*|parents\..*|reward_model\.path": "the saved weights were trained from the old one",
    r"\w+\.tuning\..*|trunk\..*|model\.(dtype|quantization)": _FITS_NOT,
    r"seed": "it orders rows and random draws, part of which are used up",
    r"reward\[(?!\d+\]\.remote\.url$).*|evaluation\..*|data\.prompts\.eval": _CHOSEN,  # a server may move
    r"ppo\.(eval_prompts|kl_budget|temperature|max_new_tokens)": _CHOSEN,
    r"ppo\.(ema_decay|score_normalisation|kl_controller)": "the saved state belongs to the old value",
}


@dataclass(frozen=True)
class Verdict:
    """What to do with a stage, and why."""

    decision: Decision
    changed: list[Change] = field(default_factory=list)
    """What differs from the earlier attempt, when that is why it starts anew, or what was allowed to."""
    note: str | None = None
    """Why it starts anew, in words."""
    allowed: tuple[str, ...] = ()
    """Fields that may differ in checkpoints of this stage from now on."""


def decide(
    folder: StageDir,
    identity: Identity,
    checkpoints: CheckpointManager,
    force: bool = False,
    allow: Collection[str] = (),
) -> Verdict:
    """skip what is finished and unchanged, resume what was interrupted unchanged, else start anew.

    Raises:
        InputError: CKPT04 the stage was interrupted with a usable checkpoint and something changed since;
            CKPT05 the checkpoint is of a newer version of this program.
    """
    manifest = folder.manifest
    if force or not manifest:
        return Verdict("new")
    before = _identity_of(manifest)
    unchanged = before is not None and before.fingerprint == identity.fingerprint
    if manifest.get("status") == "finished":
        return Verdict("skip") if unchanged else _anew(before, identity, "since it finished")
    checkpoint = checkpoints.newest()
    if checkpoint is None:
        return Verdict("resume") if unchanged else _anew(before, identity, "and has no checkpoint")
    known = set(manifest.get("allowed", ())) if before else set()
    accepted = {name for name in known if before.fields.get(name) == identity.fields.get(name)} | set(allow)
    return _go_on(folder, identity, checkpoint, accepted)


def _identity_of(manifest: dict[str, Any]) -> Identity | None:
    try:
        return Identity.of_plain(manifest["identity"])
    except (KeyError, TypeError, ValueError):  # written by an earlier version
        return None


def _anew(before: Identity | None, identity: Identity, since: str) -> Verdict:
    if before is None:
        return Verdict("new", note="an earlier version left no record of what it was made from; it starts anew")
    return Verdict("new", changes(before, identity), note=f"changed {since}; it starts anew")


def _go_on(folder: StageDir, identity: Identity, checkpoint: Found, accepted: set[str]) -> Verdict:
    """Resume from a checkpoint if all that changed since is accepted and can take effect."""
    found = changes(checkpoint.seal.identity, identity)
    refused = [change for change in found if change.field not in accepted or obstacle(change, identity)]
    if refused:
        raise _refusal(folder, checkpoint, refused, identity)
    note = f"changed since {checkpoint.path.name} and allowed" if found else None
    return Verdict("resume", found, note, tuple(change.field for change in found))


def obstacle(change: Change, identity: Identity) -> str | None:
    """Why a new value cannot take over from a checkpoint, or None."""
    for pattern, reason in _FIXED.items():
        if re.fullmatch(pattern, change.field):
            return reason
    if change.field == "ppo.kl_coef" and identity.fields.get("ppo.kl_controller") == "adaptive":
        return "the adaptive controller has moved on from it"
    if change.field == "ppo.ptx_coef" and 0.0 in (float(change.old), float(change.new)):
        return "the saved state belongs to the old value"
    return None


def _refusal(folder: StageDir, checkpoint: Found, refused: Sequence[Change], identity: Identity) -> InputError:
    obstacles = {change.field: reason for change in refused if (reason := obstacle(change, identity))}
    shown = [f"{c} ({obstacles[c.field]})" if c.field in obstacles else str(c) for c in refused]
    more = f", and {len(shown) - SHOWN} more (rlhf ckpt diff {folder.path.parent})" if len(shown) > SHOWN else ""
    problem = f"{folder.path} changed since {checkpoint.path.name} was saved: {', '.join(shown[:SHOWN])}{more}"
    anew = f"--force {folder.path.name} starts anew and drops the checkpoint"
    if obstacles:
        cannot = "cannot be allowed" if len(obstacles) < len(refused) else "that cannot be allowed"
        names = ", ".join(obstacles) if len(obstacles) < len(refused) else ""
        return InputError("CKPT04", problem, fix=f"{names} {cannot}: put the old value back, or {anew}".strip())
    options = " ".join(f"--allow {change.field}" for change in refused)
    return InputError("CKPT04", problem, fix=f"{options} goes on from it with the new value, {anew}")
