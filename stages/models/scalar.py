"""Models that say one number per text: a causal model under a scalar head, or a reward model saved whole."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from stages.base import InputError
from stages.models.load import disable_dropout
from stages.models.precision import DTYPES
from stages.models.trusted import require_safe


def with_scalar_head(causal_lm: PreTrainedModel, pad_token_id: int | None) -> PreTrainedModel:
    """A sequence-classification model with one label over the tensors of a causal model, its head zero and float32."""
    config = copy.deepcopy(causal_lm.config)
    config.num_labels = 1
    config.get_text_config().pad_token_id = (
        pad_token_id if pad_token_id is not None else config.get_text_config().pad_token_id
    )
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    if not hasattr(classifier, "score"):
        raise InputError(
            "RM03",
            f"{type(classifier).__name__} has no `score` head",
            fix="use a decoder model such as Llama, Qwen2, GPT-2 or GPT-NeoX",
        )
    setattr(classifier, classifier.base_model_prefix, getattr(causal_lm, causal_lm.base_model_prefix))
    classifier.score = nn.Linear(config.get_text_config().hidden_size, 1, bias=False)
    nn.init.zeros_(classifier.score.weight)
    return disable_dropout(classifier.eval())


def read_classifier(
    folder: str, dtype: str, trust_remote_code: bool = False, **changes: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A sequence classifier from safetensors, and the names of the weights that its folder lacks.

    Raises InputError as `require_safe` does; `changes` go into its config.
    """
    require_safe(folder, trust_remote_code)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=DTYPES[dtype],
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
        **changes,
    )
    return model, sorted(report["missing_keys"])


def load_classifier(folder: str, dtype: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A reward model saved whole.

    Raises InputError RM01 (more than one value per text), RM04 (no head), and those of `require_safe`.
    """
    model, missing = read_classifier(folder, dtype, trust_remote_code)
    if model.config.num_labels != 1:
        raise InputError(
            "RM01",
            f"the head of {folder} gives {model.config.num_labels} values per text, need 1",
            fix="train a reward model with num_labels=1",
        )
    if missing:
        raise InputError(
            "RM04",
            f"{folder} has no weights for {missing}",
            fix="give the final/ folder of a reward_model stage",
        )
    model.score = model.score.float()
    return disable_dropout(model.eval())
