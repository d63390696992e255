"""How many numbers each fine-tuning method trains on an architecture. Imports no torch."""

from pipeline.planner.architecture import ATTENTION, GATED, GPT2, INSIDE, NEOX, Architecture, Linear
from stages.models.config import TuningConfig

_QUERY_AND_VALUE = {GATED: ("q_proj", "v_proj"), GPT2: ("c_attn",), NEOX: ("query_key_value",)}
_REDUCTION = {"houlsby": 8, "pfeiffer": 4}
UNKNOWN_SHARE = 20
"""Of a PEFT type that only PEFT knows, one number is assumed for so many of the model's: 5 %."""


def trained_numbers(a: Architecture, tuning: TuningConfig, frozen_layers: int = 0) -> int:
    """Numbers that a stage trains below the heads; exact for the methods of our own table, 5 % of any other type.

    LoRA (arXiv 2106.09685): r (inputs + outputs) per adapted matrix, with DoRA `outputs` magnitudes more.
    Bottleneck (arXiv 1902.00751): two matrices H w and their biases w + H. Prefix (arXiv 2101.00190): N keys and
    values per layer. Prompt (arXiv 2104.08691): N H. P-tuning (arXiv 2103.10385): a network that makes the prompt.
    """
    layers = a.layers - frozen_layers
    match tuning.method:
        case "full":
            return a.parameters
        case "lora":
            return layers * sum(_lora(linear, tuning) for linear in adapted(a, tuning))
        case "adapter":
            return layers * sum(_bottleneck(linear, tuning) for linear in adapted(a, tuning))
        case "prefix_tuning":
            return _prefix(a, tuning)
        case "prompt_tuning":
            return tuning.virtual_tokens * a.hidden
        case "p_tuning":
            return tuning.virtual_tokens * a.hidden + _encoder(a, tuning)
    return a.parameters // UNKNOWN_SHARE


def adapted(a: Architecture, tuning: TuningConfig) -> tuple[Linear, ...]:
    """The matrices of a layer that LoRA or the bottleneck acts on."""
    if tuning.targets == "all-linear":
        return a.linears
    if tuning.targets != "auto":
        return tuple(linear for linear in a.linears if linear.name in {t.rpartition(".")[2] for t in tuning.targets})
    if tuning.method == "lora":
        return tuple(linear for linear in a.linears if linear.name in _QUERY_AND_VALUE[a.layout])
    ends = (ATTENTION, INSIDE) if tuning.placement == "houlsby" else (INSIDE,)
    return tuple(linear for linear in a.linears if linear.reads in ends)


def bottleneck_width(linear: Linear, tuning: TuningConfig) -> int:
    """Hidden units of the adapter after a projection."""
    return max(1, linear.outputs // (tuning.reduction or _REDUCTION[tuning.placement]))


def _lora(linear: Linear, tuning: TuningConfig) -> int:
    return tuning.r * (linear.inputs + linear.outputs) + linear.outputs * tuning.dora


def _bottleneck(linear: Linear, tuning: TuningConfig) -> int:
    width = bottleneck_width(linear, tuning)
    return 2 * linear.outputs * width + width + linear.outputs


def _prefix(a: Architecture, tuning: TuningConfig) -> int:
    size = a.hidden // a.heads * a.kv_heads
    kept = a.layers * 2 * size
    if not tuning.projection:
        return tuning.virtual_tokens * kept
    inside = tuning.encoder_size or a.hidden
    return tuning.virtual_tokens * size + (size + 1) * inside + (inside + 1) * kept


def _encoder(a: Architecture, tuning: TuningConfig) -> int:
    """P-tuning's network: three dense layers, or a bidirectional LSTM of two layers and two dense ones."""
    inside = tuning.encoder_size or a.hidden
    if tuning.encoder == "mlp":
        return (a.hidden + 1) * inside + (inside + 1) * inside + (inside + 1) * a.hidden
    cells = sum(2 * 4 * inside * (inputs + inside + 2) for inputs in (a.hidden, 2 * inside))
    return cells + (2 * inside + 1) * 2 * inside + (2 * inside + 1) * a.hidden
