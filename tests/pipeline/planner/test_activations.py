"""The ledger of saved activations against what autograd saves in real models."""

import pytest
import torch
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.planner.activations import Precision, copied_weights, saved_per_token
from pipeline.planner.architecture import GATED
from pipeline.planner.reading import from_config
from stages.models.adapters import attach_adapter
from stages.models.config import TuningConfig
from stages.models.heads import hidden_states
from stages.models.peft_types import peft_config
from stages.models.precision import DTYPES, autocast
from tests.toy_models import toy_config

ROWS, LENGTH = 3, 48
TUNINGS = {
    "full": TuningConfig(),
    "lora": TuningConfig(method="lora", r=4),
    "lora, all": TuningConfig(method="lora", r=4, targets="all-linear"),
    "adapter": TuningConfig(method="adapter"),
}
PRECISIONS = {
    "float32": ("float32", "float32", Precision()),
    "products in bfloat16": ("float32", "bfloat16", Precision(compute=2)),
    "bfloat16": ("bfloat16", "bfloat16", Precision(2, 2, 2)),
}
CASES = [(name, method) for name in PRECISIONS for method in TUNINGS if (name, method) != ("bfloat16", "full")]


def config_of(kind: str, layers: int):
    depth = {"n_layer" if kind == "gpt2" else "num_hidden_layers": layers}
    return toy_config(kind, vocab_size=40, **depth)


def bytes_saved(kind: str, layers: int, tuning: TuningConfig, dtype: str, compute: str) -> int:
    """Bytes of all that autograd saves of one forward pass, each storage once, parameters left out."""
    model = AutoModelForCausalLM.from_config(config_of(kind, layers)).eval()
    if tuning.method != "full":
        model.to(DTYPES[dtype]).requires_grad_(False)
        model = attach_adapter(model, peft_config(tuning, model, TaskType.CAUSAL_LM))
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids, mask = torch.zeros(ROWS, LENGTH, dtype=torch.long), torch.ones(ROWS, LENGTH, dtype=torch.bool)
    mask[0, :5] = False  # with nothing masked, attention takes no mask
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(compute, ids.device):
        hidden_states(model, ids, mask)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("name, method", CASES)
def test_a_layer_saves_what_the_ledger_says(name, method, kind):
    dtype, compute, precision = PRECISIONS[name]
    architecture = from_config(config_of(kind, 4).to_dict(), kind)
    two, four = (bytes_saved(kind, layers, TUNINGS[method], dtype, compute) for layers in (2, 4))
    copies = copied_weights(architecture, TUNINGS[method], precision, 0, False) / architecture.layers
    expected = ROWS * LENGTH * saved_per_token(architecture, TUNINGS[method], precision, LENGTH) + copies

    on_a_cpu_only = name == "bfloat16" and architecture.layout != GATED  # there LayerNorm reads bfloat16 as it is
    tolerance = 0.07 if on_a_cpu_only else 0.035  # norms' statistics are left out: much, in models so narrow
    assert (four - two) / 2 == pytest.approx(expected, rel=tolerance)
