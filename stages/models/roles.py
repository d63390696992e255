"""Policy, reference, reward model and value model, built from what the stages before left.

A base lies in memory once. Roles that do not train whole weights get *structural copies* of it: their own modules,
the same tensors. So an adapter injected into one role cannot touch another, nothing has to be switched, and
four roles cost little more than one.
"""

import copy
import hashlib
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from peft import PeftModel, TaskType
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from stages.base import InputError
from stages.models.adapters import attach_adapter, load_frozen_adapter, same_shape
from stages.models.config import ModelConfig, TuningConfig
from stages.models.load import (
    DTYPES,
    ModelSource,
    disable_dropout,
    load_causal_lm,
    load_tokenizer,
    put_in_place,
)


def share(model: nn.Module) -> nn.Module:
    """A structural copy: new modules over the very same parameters and buffers."""
    return copy.deepcopy(model, {id(t): t for t in chain(model.parameters(), model.buffers())})


class Roles:
    """Builder of the roles of one process; remembers each frozen base that it has loaded."""

    def __init__(self, model: ModelConfig):
        self._model = model
        self._bases: dict[str, PreTrainedModel] = {}

    def frozen_base(self, base: str) -> PreTrainedModel:
        """A causal model over the one frozen copy of `base` in memory."""
        if base not in self._bases:
            loaded = load_causal_lm(base, self._model.dtype, self._model.trust_remote_code)
            self._bases[base] = loaded.requires_grad_(False)
        return share(self._bases[base])

    def reference(self, source: ModelSource) -> nn.Module:
        """The frozen causal model of a source, its adapter (if any) included."""
        base = self.frozen_base(source.base)
        return load_frozen_adapter(base, source.adapter) if source.adapter else base

    def policy(self, source: ModelSource, tuning: TuningConfig) -> nn.Module:
        """A trainable causal model that starts exactly at `source`."""
        if tuning.method == "full":
            return self._merged(source, trainable=True)
        source = self.adaptable(source, tuning)
        return attach_adapter(self.frozen_base(source.base), tuning, TaskType.CAUSAL_LM, source.adapter)

    def adaptable(self, source: ModelSource, tuning: TuningConfig) -> ModelSource:
        """The source itself if `tuning` can continue its adapter, else its merged weights, written beside it once."""
        if source.adapter is None or tuning.method == "full":
            return source
        if same_shape(tuning, self.frozen_base(source.base), source.adapter):
            return source
        return ModelSource(str(self._merged_folder(source)))

    def _merged_folder(self, source: ModelSource) -> Path:
        """`merged-<digest of the adapter>` beside the adapter; it has its name only once it is complete."""
        weights = source.adapter / "adapter_model.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
        folder = source.adapter.parent / f"merged-{digest}"
        if folder.is_dir():
            return folder
        aside = folder.with_name(f".{folder.name}-{os.getpid()}")
        self._merged(source, trainable=False).save_pretrained(aside)
        load_tokenizer(source, self._model.trust_remote_code).save_pretrained(aside)
        return put_in_place(aside, folder)

    def _merged(self, source: ModelSource, trainable: bool) -> PreTrainedModel:
        """Whole float32 weights of a source in tensors of their own."""
        model = load_causal_lm(source.base, "float32", self._model.trust_remote_code)
        if source.adapter:
            model = PeftModel.from_pretrained(model, str(source.adapter)).merge_and_unload()
        return model.requires_grad_(trainable)

    def scorer_to_train(self, source: ModelSource, tuning: TuningConfig, pad_token_id: int) -> nn.Module:
        """A trainable scalar model over the language model of `source`; head N(0, 1/(H+1)) as in arXiv 2009.01325."""
        classifier, adapter = self._headless(source, tuning, pad_token_id)
        nn.init.normal_(classifier.score.weight, std=(classifier.score.in_features + 1) ** -0.5)
        return classifier if tuning.method == "full" else attach_adapter(classifier, tuning, TaskType.SEQ_CLS, adapter)

    def value_from_policy(self, source: ModelSource, tuning: TuningConfig, pad_token_id: int) -> nn.Module:
        """A trainable value model over the language model of `source` that says 0 everywhere at first."""
        classifier, adapter = self._headless(source, tuning, pad_token_id)
        return classifier if tuning.method == "full" else attach_adapter(classifier, tuning, TaskType.SEQ_CLS, adapter)

    def _headless(
        self, source: ModelSource, tuning: TuningConfig, pad_token_id: int
    ) -> tuple[PreTrainedModel, Path | None]:
        """A classifier with a zero head, and the adapter it is to continue."""
        if tuning.method == "full":
            return with_scalar_head(self._merged(source, trainable=True), pad_token_id), None
        source = self.adaptable(source, tuning)
        return with_scalar_head(self.frozen_base(source.base), pad_token_id), source.adapter

    def reward_model(self, source: ModelSource) -> nn.Module:
        """The reward model of a reward-model folder, frozen; an adapter shares the base of the other roles."""
        if source.adapter is None:
            return load_classifier(source.base, self._model.dtype).requires_grad_(False)
        classifier = with_scalar_head(self.frozen_base(source.base), None)
        return load_frozen_adapter(classifier, source.adapter)

    def value_from_reward_model(self, source: ModelSource, tuning: TuningConfig) -> nn.Module:
        """A trainable scalar model that starts exactly at the reward model of `source`, head included."""
        if tuning.method == "full":
            if source.adapter is None:
                return load_classifier(source.base, "float32").requires_grad_(True)
            classifier = with_scalar_head(load_causal_lm(source.base, "float32"), None)
            return PeftModel.from_pretrained(classifier, str(source.adapter)).merge_and_unload().requires_grad_(True)
        if source.adapter is None or not same_shape(tuning, self.frozen_base(source.base), source.adapter):
            raise InputError(
                "ROLE01",
                f"a {tuning.method} value model cannot start from {source.folder}: adapters of another shape",
                fix="give ppo.tuning the values of reward_model.tuning",
            )
        classifier = with_scalar_head(self.frozen_base(source.base), None)
        return attach_adapter(classifier, tuning, TaskType.SEQ_CLS, source.adapter)


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


def load_classifier(folder: str, dtype: str) -> PreTrainedModel:
    """A reward model saved whole.

    Raises InputError RM01 when it gives more than one value per text.
    """
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=DTYPES[dtype], output_loading_info=True
    )
    if model.config.num_labels != 1:
        raise InputError(
            "RM01",
            f"the head of {folder} gives {model.config.num_labels} values per text, need 1",
            fix="train a reward model with num_labels=1",
        )
    if report["missing_keys"]:
        raise InputError(
            "RM04",
            f"{folder} has no weights for {sorted(report['missing_keys'])}",
            fix="give the final/ folder of a reward_model stage",
        )
    model.score = model.score.float()
    return disable_dropout(model.eval())


def trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that an optimizer may change."""
    return (p for p in model.parameters() if p.requires_grad)
