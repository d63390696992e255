"""The parameters of a decoder, counted from the numbers of its config. Imports no torch.

Letters: H hidden, L layers, A heads of size d, K key-value heads, F width of the feed-forward, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

GATED, GPT2, NEOX = "gated", "gpt2", "gpt_neox"
LAYOUTS = {
    "llama": GATED,
    "mistral": GATED,
    "qwen2": GATED,
    "qwen3": GATED,
    "gpt2": GPT2,
    "gpt_neox": NEOX,
}
"""How the layers of each model type are built; those of other types are not known here."""
NORM_1, ATTENTION, NORM_2, INSIDE = "first norm", "attention", "second norm", "feed-forward"
"""What the matrices of a layer read."""


@dataclass(frozen=True)
class Linear:
    """One matrix of a layer, and whether it has a bias."""

    name: str
    """Last part of the module's name."""
    reads: str
    """Whose output it multiplies; matrices that read the same share it."""
    inputs: int
    outputs: int
    bias: bool

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + self.outputs * self.bias


@dataclass(frozen=True)
class Architecture:
    """A decoder as its config describes it; sizes are counts."""

    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    positions: int = 0
    """Rows of learned position embeddings; 0 with rotary ones."""
    tied: bool = False
    """Whether the output layer is the embedding."""
    attention_bias: bool = False
    """Biases of query, key and value (of the fused projection in GPT-2 and GPT-NeoX)."""
    output_bias: bool = False
    """Bias of the projection after attention."""
    mlp_bias: bool = False
    query_key_norm: bool = False
    """Norms of each head's queries and keys (Qwen3)."""
    parallel_residual: bool = False
    """Attention and feed-forward read the same states (GPT-NeoX)."""

    @property
    def layout(self) -> str:
        return LAYOUTS[self.model_type]

    @property
    def query_size(self) -> int:
        """A d."""
        return self.heads * self.head_size

    @property
    def kv_size(self) -> int:
        """K d."""
        return self.kv_heads * self.head_size

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """The matrices of one layer, in the order in which they act."""
        return tuple(_gated(self) if self.layout == GATED else _fused(self))

    @property
    def norm_size(self) -> int:
        """Parameters of one norm: RMSNorm has a scale (H), LayerNorm a bias too (2 H)."""
        return self.hidden if self.layout == GATED else 2 * self.hidden

    @property
    def matrix_parameters(self) -> int:
        """Parameters of all layers' matrices, without biases: those that a token is multiplied by."""
        return self.layers * sum(linear.inputs * linear.outputs for linear in self.linears)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: its matrices, two norms, and Qwen3's norms of size d for queries and keys."""
        norms = 2 * self.norm_size + (2 * self.head_size if self.query_key_norm else 0)
        return sum(linear.parameters for linear in self.linears) + norms

    @property
    def embedding_parameters(self) -> int:
        """V H, and H for each learned position."""
        return (self.vocabulary + self.positions) * self.hidden

    @property
    def body_parameters(self) -> int:
        """Parameters below the heads: embeddings, L layers, the last norm."""
        return self.embedding_parameters + self.layers * self.layer_parameters + self.norm_size

    @property
    def parameters(self) -> int:
        """Parameters of the causal model: the body, and V H for an output layer that is not the embedding."""
        return self.body_parameters + (0 if self.tied else self.vocabulary * self.hidden)

    @property
    def scalar_parameters(self) -> int:
        """Parameters of a reward or value model: the body, and a head of H."""
        return self.body_parameters + self.hidden


def _gated(a: Architecture) -> Iterator[Linear]:
    """Llama, Mistral, Qwen2, Qwen3: four projections of attention, three of a gated feed-forward."""
    yield Linear("q_proj", NORM_1, a.hidden, a.query_size, a.attention_bias)
    yield Linear("k_proj", NORM_1, a.hidden, a.kv_size, a.attention_bias)
    yield Linear("v_proj", NORM_1, a.hidden, a.kv_size, a.attention_bias)
    yield Linear("o_proj", ATTENTION, a.query_size, a.hidden, a.output_bias)
    yield Linear("gate_proj", NORM_2, a.hidden, a.intermediate, a.mlp_bias)
    yield Linear("up_proj", NORM_2, a.hidden, a.intermediate, a.mlp_bias)
    yield Linear("down_proj", INSIDE, a.intermediate, a.hidden, a.mlp_bias)


_NAMES = {
    GPT2: ("c_attn", "c_proj", "c_fc", "c_proj"),
    NEOX: ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}


def _fused(a: Architecture) -> Iterator[Linear]:
    """GPT-2 and GPT-NeoX: one projection for queries, keys and values, and a plain feed-forward."""
    attention, output, inside, outside = _NAMES[a.layout]
    yield Linear(attention, NORM_1, a.hidden, 3 * a.hidden, a.attention_bias)
    yield Linear(output, ATTENTION, a.hidden, a.hidden, a.output_bias)
    yield Linear(inside, NORM_2, a.hidden, a.intermediate, a.mlp_bias)
    yield Linear(outside, INSIDE, a.intermediate, a.hidden, a.mlp_bias)
