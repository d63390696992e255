"""A stage's `final/`: what the next stage, plain transformers and PEFT read."""

import json
from pathlib import Path

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.divergence import require_finite_state, trained
from stages.models.adapters import verify_saved
from stages.models.hub import pinned
from stages.models.roles import Roles


def publish(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, final: Path, roles: Roles) -> None:
    """Write a stage's model so that plain transformers (and peft) load it; an adapter with the identity of its base.

    Raises InputError PEFT02 when an adapter, read back, is not whole or learned nothing, and Diverged NUM01 when a
    weight is not finite.
    """
    require_finite_state("the trained model", trained(model))
    model.save_pretrained(final)
    tokenizer.save_pretrained(final)
    (final / "README.md").unlink(missing_ok=True)  # PEFT's model card names a path and says nothing
    if isinstance(model, PeftModel):
        _order_sets(final / "adapter_config.json", model.active_peft_config)
        config = model.active_peft_config
        identity = roles.identity(pinned(config.base_model_name_or_path, config.revision))
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
