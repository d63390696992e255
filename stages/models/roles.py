"""Policy, reference, reward model and value model, built from what the stages before left.

A base lies in memory once. Roles that do not train whole weights get *structural copies* of it: their own modules,
the same tensors. So an adapter injected into one role cannot touch another, nothing has to be switched, and
four roles cost little more than one.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch
from peft import PeftConfig, TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.models.adapters import attach_adapter, continue_adapter, load_frozen_adapter, merge, same_shape
from stages.models.config import ModelConfig, TuningConfig
from stages.models.hub import folder_of
from stages.models.identity import BaseIdentity, probes_of, require_same_base, weights_digest
from stages.models.load import ModelSource, aside_of, load_causal_lm, load_tokenizer, put_in_place
from stages.models.peft_types import peft_config
from stages.models.scalar import load_classifier, with_scalar_head
from stages.models.trunk import inner_model


def share(model: nn.Module) -> nn.Module:
    """A structural copy: new modules over the very same parameters and buffers."""
    return copy.deepcopy(model, {id(t): t for t in chain(model.parameters(), model.buffers())})


class Roles:
    """Builder of the roles of one process; remembers each frozen base that it has loaded.

    No adapter that it makes is in the first `frozen_layers` layers. `on_forward` is called before every forward pass
    of a model made here. Without `sharing` every role has tensors of its own, which ZeRO 3 needs to split them.
    """

    def __init__(
        self,
        model: ModelConfig,
        frozen_layers: int = 0,
        on_forward: Callable[[], None] = lambda: None,
        sharing: bool = True,
    ):
        self._model = model
        self._copy: Callable[[nn.Module], nn.Module] = share if sharing else copy.deepcopy
        self._on_forward = on_forward
        self._frozen_layers = frozen_layers
        self._bases: dict[str, PreTrainedModel] = {}
        self._classifiers: dict[str, PreTrainedModel] = {}
        self._identities: dict[str, BaseIdentity] = {}
        self._trusted = {model.path} if model.trust_remote_code else set()

    def trust(self, *folders: Path | None) -> None:
        """Allow the code of folders that this run made of `model.path` as much as that of `model.path` itself."""
        if self._model.trust_remote_code:
            self._trusted |= {str(folder) for folder in folders if folder}

    def trusts(self, folder: str | Path) -> bool:
        """Whether Python code that comes with a folder may run."""
        return str(folder) in self._trusted

    def apart(self) -> "Roles":
        """One with the same settings that shares no weights with this one: they leave memory together with it."""
        other = Roles(self._model, self._frozen_layers, self._on_forward)
        other._trusted = set(self._trusted)
        return other

    def frozen_base(self, base: str) -> PreTrainedModel:
        """A causal model over the one frozen copy of `base` in memory."""
        if base not in self._bases:
            model = self._model
            loaded = load_causal_lm(base, model.dtype, self.trusts(base), model.quantization)
            self._bases[base] = self._followed(loaded).requires_grad_(False)
        return self._copy(self._bases[base])

    def identity(self, base: str) -> BaseIdentity | None:
        """What an adapter on `base` records of it; None for a quantised base, whose weights are approximations."""
        if self._model.quantization != "none":
            return None
        if base not in self._identities:
            self.frozen_base(base)
            weights = self._bases[base]
            self._identities[base] = BaseIdentity(base, weights_digest(weights), probes_of(weights))
        return self._identities[base]

    def reference(self, source: ModelSource) -> nn.Module:
        """The frozen causal model of a source, its adapter (if any) included.

        Raises InputError PEFT01 (adapter of another base), PEFT02 (incomplete adapter).
        """
        base = self.frozen_base(source.base)
        return load_frozen_adapter(base, self._fitting(source)) if source.adapter else base

    def policy(self, source: ModelSource, tuning: TuningConfig) -> nn.Module:
        """A trainable causal model that starts exactly at `source`; new virtual tokens alone begin elsewhere."""
        source = self.adaptable(source, tuning)
        if tuning.method == "full":
            return self.merged(source).requires_grad_(True)
        return self._tuned(self.frozen_base(source.base), source, tuning, TaskType.CAUSAL_LM)

    def adaptable(self, source: ModelSource, tuning: TuningConfig) -> ModelSource:
        """The source itself if `tuning` can continue its adapter, else its merged weights, written beside it once."""
        if source.adapter is None:
            return source
        base = self.frozen_base(source.base)
        if tuning.method != "full" and same_shape(base, self._config(base, source, tuning), source.adapter):
            return source
        return ModelSource(str(self._merged_folder(source)))

    def merged(self, source: ModelSource) -> PreTrainedModel:
        """Whole float32 weights of a source in tensors of their own.

        Raises InputError PEFT03 when its adapter cannot be merged into weights.
        """
        model = self._followed(load_causal_lm(source.base, "float32", self.trusts(source.base)))
        if not source.adapter:
            return model
        require_same_base(source.adapter, BaseIdentity(source.base, weights_digest(model)))
        return merge(model, source.adapter)

    def _merged_folder(self, source: ModelSource) -> Path:
        """`merged-<digest of the adapter>` beside the adapter; it has its name only once it is complete."""
        weights = source.adapter / "adapter_model.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
        folder = source.adapter.parent / f"merged-{digest}"
        if self.trusts(source.base):
            self.trust(folder)
        if folder.is_dir():
            return folder
        aside = aside_of(folder)
        self.merged(source).save_pretrained(aside)
        load_tokenizer(source, self.trusts(source.folder)).save_pretrained(aside)
        return put_in_place(aside, folder)

    def scorer_to_train(self, source: ModelSource, tuning: TuningConfig, pad_token_id: int) -> nn.Module:
        """A trainable scalar model over the language model of `source`; head N(0, 1/(H+1)) as in arXiv 2009.01325."""

        def random_head(classifier: PreTrainedModel) -> PreTrainedModel:
            nn.init.normal_(classifier.score.weight, std=(classifier.score.in_features + 1) ** -0.5)
            return classifier

        if tuning.method == "full":
            return random_head(with_scalar_head(self.merged(source), pad_token_id)).requires_grad_(True)
        source = self.adaptable(source, tuning)
        classifier = random_head(with_scalar_head(self.frozen_base(source.base), pad_token_id))
        return self._tuned(classifier, source, tuning, TaskType.SEQ_CLS)

    def value_from_policy(self, source: ModelSource, tuning: TuningConfig, pad_token_id: int) -> nn.Module:
        """A trainable value model over the language model of `source` that says 0 everywhere at first."""
        if tuning.method == "full":
            return with_scalar_head(self.merged(source), pad_token_id).requires_grad_(True)
        source = self.adaptable(source, tuning)
        classifier = with_scalar_head(self.frozen_base(source.base), pad_token_id)
        return self._tuned(classifier, source, tuning, TaskType.SEQ_CLS)

    def reward_model(self, source: ModelSource) -> nn.Module:
        """The reward model of a reward-model folder, frozen; an adapter shares the base of the other roles.

        Raises InputError RM01 (not one value per text), RM04 (no head), PEFT01, PEFT02.
        """
        if source.adapter is None:
            return self._copy(self._classifier(source.base))
        classifier = with_scalar_head(self.frozen_base(source.base), None)
        return load_frozen_adapter(classifier, self._fitting(source))

    def value_from_reward_model(self, source: ModelSource, tuning: TuningConfig) -> nn.Module:
        """A trainable scalar model that starts at the reward model of `source`, head included.

        A reward model that is an adapter is continued as a copy of that adapter, whatever the policy trains; one of
        whole weights is copied whole under `full`, else its weights stay, shared, below an adapter of `tuning`.
        """
        if source.adapter is not None:
            classifier = with_scalar_head(self.frozen_base(source.base), None)
            return continue_adapter(classifier, self._fitting(source))
        if tuning.method == "full":
            whole = load_classifier(source.base, "float32", self.trusts(source.base))
            return self._followed(whole).requires_grad_(True)
        return self._tuned(self._copy(self._classifier(source.base)), source, tuning, TaskType.SEQ_CLS)

    def _classifier(self, folder: str) -> PreTrainedModel:
        if folder not in self._classifiers:
            loaded = load_classifier(folder, self._model.dtype, self.trusts(folder))
            self._classifiers[folder] = self._followed(loaded).requires_grad_(False)
        return self._classifiers[folder]

    def _followed(self, model: PreTrainedModel) -> PreTrainedModel:
        """The hook is on the transformer below the heads: all roles run it, and structural copies keep it."""
        told = self._on_forward
        inner_model(model).register_forward_pre_hook(lambda *_: told())
        return model

    def _tuned(self, model: PreTrainedModel, source: ModelSource, tuning: TuningConfig, task: TaskType) -> nn.Module:
        start = self._fitting(source) if source.adapter else None
        tuned = attach_adapter(model, self._config(model, source, tuning, task), start)
        if start is None and tuning.starts_at_words:
            tuned.start_prefix_at(self._words(model, source, tuning))
        return tuned

    def _words(self, model: PreTrainedModel, source: ModelSource, tuning: TuningConfig) -> Tensor:
        """Ids [N] of the words at which virtual tokens start: those of `init_text`, or random ones."""
        count = tuning.virtual_tokens
        if tuning.init_text is None:
            return torch.randint(model.config.get_text_config().vocab_size, (count,))
        tokenizer = load_tokenizer(source, self.trusts(source.folder))
        ids = tokenizer(tuning.init_text, add_special_tokens=False).input_ids
        return torch.tensor(ids).repeat(-(-count // len(ids)))[:count]

    def _config(
        self, model: PreTrainedModel, source: ModelSource, tuning: TuningConfig, task: TaskType = TaskType.CAUSAL_LM
    ) -> PeftConfig:
        return peft_config(tuning, model, task, self._frozen_layers, folder_of(source.folder))

    def _fitting(self, source: ModelSource) -> Path:
        """The adapter of a source, once it is known to be of that base."""
        identity = self.identity(source.base)
        if identity is not None:
            require_same_base(source.adapter, identity)
        return source.adapter


def trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that an optimizer may change."""
    return (p for p in model.parameters() if p.requires_grad)
