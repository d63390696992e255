"""A tuning section as a PEFT configuration: what it becomes, what is refused and how."""

import pytest
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, TaskType

from stages.base import InputError
from stages.models.bottleneck import BottleneckConfig
from stages.models.config import TuningConfig
from stages.models.peft_types import check_peft_type, peft_config
from tests.toy_models import toy_lm


def made(architecture: str = "llama", frozen_layers: int = 0, **tuning: object):
    return peft_config(TuningConfig(**tuning), toy_lm(architecture), TaskType.CAUSAL_LM, frozen_layers, "folder")


@pytest.mark.parametrize(
    ("tuning", "kind", "fields"),
    [
        ({"method": "lora", "r": 8}, LoraConfig, {"r": 8, "lora_alpha": 32, "target_modules": {"q_proj", "v_proj"}}),
        ({"method": "lora", "dora": True, "rslora": True}, LoraConfig, {"use_dora": True, "use_rslora": True}),
        ({"method": "adapter"}, BottleneckConfig, {"placement": "houlsby", "reduction": 8, "activation": "relu"}),
        ({"method": "adapter", "placement": "pfeiffer"}, BottleneckConfig, {"reduction": 4}),
        ({"method": "prefix_tuning"}, PrefixTuningConfig, {"num_virtual_tokens": 20, "prefix_projection": False}),
        (
            {"method": "prefix_tuning", "projection": True},
            PrefixTuningConfig,
            {"prefix_projection": True, "encoder_hidden_size": 32},
        ),
        ({"method": "prompt_tuning"}, PromptTuningConfig, {"prompt_tuning_init": "SAMPLE_VOCAB"}),
        (
            {"method": "prompt_tuning", "init_text": "a film"},
            PromptTuningConfig,
            {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a film", "tokenizer_name_or_path": "folder"},
        ),
        ({"method": "p_tuning"}, PromptEncoderConfig, {"encoder_reparameterization_type": "LSTM"}),
        ({"method": "p_tuning", "encoder": "mlp"}, PromptEncoderConfig, {"encoder_reparameterization_type": "MLP"}),
        ({"method": "IA3"}, IA3Config, {"task_type": TaskType.CAUSAL_LM}),
    ],
)
def test_a_section_becomes_the_config_of_its_method(tuning: dict, kind: type, fields: dict):
    config = made(**tuning)
    assert type(config) is kind
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [("llama", {"q_proj", "v_proj"}), ("gpt2", {"c_attn"}), ("gpt_neox", {"query_key_value"})],
)
def test_lora_adapts_query_and_value_of_each_architecture(architecture: str, targets: set[str]):
    assert made(architecture, method="lora").target_modules == targets


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_frozen_layers_stay_without_adapters(method: str):
    assert made(method=method, frozen_layers=1).layers_to_transform == [1]


@pytest.mark.parametrize(
    ("tuning", "frozen_layers", "message"),
    [
        ({"method": "lora"}, 2, "[TUNE02] trunk.frozen_layers is 2, the model has 2 layers; fix: frozen_layers <= 1"),
        (
            {"method": "ia3"},
            1,
            "[TUNE04] method ia3 cannot leave the first 1 layers alone; fix: trunk.frozen_layers: 0, or another method",
        ),
    ],
)
def test_what_does_not_fit_a_trunk_is_refused(tuning: dict, frozen_layers: int, message: str):
    with pytest.raises(InputError) as error:
        made(frozen_layers=frozen_layers, **tuning)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("tuning", "start", "end"),
    [
        ({"method": "lorra"}, "[TUNE05] no fine-tuning method 'lorra'; found ", "; fix: did you mean 'lora'?"),
        (
            {"method": "vera", "arguments": {"rr": 3, "projection_prng": 1}},
            "[TUNE05] VeraConfig has no argument 'rr'; found ",
            "; fix: did you mean 'r'?",
        ),
        ({"method": "xlora"}, "[TUNE05] no fine-tuning method 'xlora'; found ", ""),
    ],
)
def test_an_unknown_method_or_argument_names_the_nearest(tuning: dict, start: str, end: str):
    with pytest.raises(InputError) as error:
        check_peft_type(TuningConfig(**tuning))
    assert str(error.value).startswith(start)
    assert str(error.value).endswith(end)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"method": "full", "r": 4}, "r has no meaning with method: full; it has no keys"),
        (
            {"method": "prompt_tuning", "alpha": 4},
            "alpha has no meaning with method: prompt_tuning; it reads init, init_text, virtual_tokens",
        ),
        ({"method": "prefix_tuning", "encoder_size": 4}, "encoder_size needs projection: true"),
        ({"method": "ia3", "r": 4}, "r has no meaning with method: ia3; it reads arguments"),
    ],
)
def test_keys_of_another_method_are_refused(tuning: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TuningConfig(**tuning)
