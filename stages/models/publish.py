"""A stage's `final/`: what the next stage, plain transformers and PEFT read."""

import json
from pathlib import Path

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.divergence import require_finite_state, trained
from stages.models.adapters import verify_saved
from stages.models.gathered import gathered, whole_weights
from stages.models.hub import pinned
from stages.models.identity import BaseIdentity
from stages.models.roles import Roles


def publish(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, final: Path | None, roles: Roles
) -> None:
    """Write a stage's model so that plain transformers (and peft) load it; an adapter with the identity of its base.

    All ranks call it; those without `final` only give their parts of the weights.
    Raises InputError PEFT02 when an adapter, read back, is not whole or learned nothing, and Diverged NUM01 when a
    weight is not finite.
    """
    if isinstance(model, PeftModel):
        with gathered(parameter for _, parameter in trained(model)):
            if final is not None:
                require_finite_state("the trained model", trained(model))
                model.save_pretrained(final)
                _complete_adapter(model, final, roles)
    else:
        weights = whole_weights(model, keep=final is not None)
        if final is not None:
            require_finite_state("the trained model", trained(model) if weights is None else weights.items())
            model.save_pretrained(final, state_dict=weights)
    if final is not None:
        tokenizer.save_pretrained(final)


def note_base(model: nn.Module, roles: Roles) -> BaseIdentity | None:
    """The identity of an adapter's base, taken while its weights are whole; None where there is no adapter or none."""
    if not isinstance(model, PeftModel):
        return None
    config = model.active_peft_config
    name = config.base_model_name_or_path or model.get_base_model().name_or_path  # PEFT fills it in when it saves
    return roles.identity(pinned(name, config.revision))


def _complete_adapter(model: PeftModel, final: Path, roles: Roles) -> None:
    (final / "README.md").unlink(missing_ok=True)  # PEFT's model card names a path and says nothing
    _order_sets(final / "adapter_config.json", model.active_peft_config)
    identity = note_base(model, roles)
    if identity is not None:
        identity.save(final)
    verify_saved(model, final)


def _order_sets(file: Path, config: PeftConfig) -> None:
    """PEFT keeps names of modules in sets and writes them as they come, which differs from process to process."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content |= {name: sorted(value) for name, value in vars(config).items() if isinstance(value, set)}
    file.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


def is_adapter(final: Path) -> bool:
    """Whether a folder holds an adapter rather than whole weights."""
    return (final / "adapter_config.json").is_file()
