"""The layers that no role trains, computed once per rollout and shared. Axes: B batch, S tokens, H hidden.

Adapters and heads act only above layer k, so the hidden states that leave layer k are the same for policy,
reference, reward model and value model, in every PPO epoch. While recording, what leaves the last trunk layer is
kept row by row; while replaying, the trunk's layers pass their input through and the last one returns what was
kept. Nothing is needed from an architecture but its list of layers.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain

from torch import Tensor, nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model of transformers that PEFT has wrapped, if it has."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def inner_model(model: nn.Module) -> nn.Module:
    """The transformer below the heads, whatever wrapper (PEFT or none) is around it."""
    model = unwrapped(model)
    return getattr(model, model.base_model_prefix, model)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of transformer layers: the one ModuleList as long as the config says.

    Raises ValueError when there is not exactly one such list.
    """
    inner = inner_model(model)
    depth = inner.config.get_text_config().num_hidden_layers
    found = [m for m in inner.children() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(found) != 1:
        raise ValueError(f"{type(inner).__name__} has {len(found)} lists of {depth} layers, expected one")
    return found[0]


def shares_layers(model: nn.Module, other: nn.Module, depth: int) -> bool:
    """Whether the first `depth` layers of both hold the very same tensors and see the same tokens."""
    if any("prompt_encoder" in name for name, _ in chain(model.named_modules(), other.named_modules())):
        return False  # virtual tokens change what the first layer is given
    own, others = ([id(p) for p in decoder_layers(m)[:depth].parameters()] for m in (model, other))
    return own == others


Rows = Tensor | slice
EVERYTHING = slice(None)


class NoTrunk:
    """Every role computes all its layers."""

    def begin(self, rows: int, columns: int) -> None:
        """A new rollout of this many rows and columns."""

    def recording(self, rows: Rows = EVERYTHING, columns: slice = EVERYTHING) -> AbstractContextManager:
        return nullcontext()

    def replaying(self, rows: Rows = EVERYTHING, columns: slice = EVERYTHING) -> AbstractContextManager:
        return nullcontext()


class FrozenTrunk(NoTrunk):
    """Recorded states [B, S, H] of the first `depth` layers of the current rollout."""

    def __init__(self, depth: int):
        self.depth = depth
        self._shape = (0, 0)
        self._states: Tensor | None = None
        self._place: tuple[Rows, slice] | None = None
        self._replayed: Tensor | None = None

    def attach(self, model: nn.Module) -> None:
        """Let this model's trunk layers obey recording() and replaying()."""
        layers = decoder_layers(model)[: self.depth]
        for layer in layers:
            layer.forward = self._wrap(layer.forward, last=layer is layers[-1])

    def _wrap(self, forward: Callable, last: bool) -> Callable:
        def wrapped(hidden: Tensor, *args, **kwargs):
            if self._replayed is not None:
                return self._replayed if last else hidden
            output = forward(hidden, *args, **kwargs)
            if last and self._place is not None:
                self._keep(output)
            return output

        return wrapped

    def _keep(self, output: Tensor) -> None:
        if self._states is None:
            self._states = output.new_zeros(*self._shape, output.shape[-1])
        self._states[self._place] = output

    def begin(self, rows: int, columns: int) -> None:
        self._shape, self._states = (rows, columns), None

    @contextmanager
    def recording(self, rows: Rows = EVERYTHING, columns: slice = EVERYTHING) -> Iterator[None]:
        """Inside, an attached model runs on these rows and columns of the rollout, once and without gradients."""
        self._place = (rows, columns)
        try:
            yield
        finally:
            self._place = None

    @contextmanager
    def replaying(self, rows: Rows = EVERYTHING, columns: slice = EVERYTHING) -> Iterator[None]:
        """Inside, attached models given these rows and columns of the rollout start from the recorded states."""
        self._replayed = None if self._states is None else self._states[rows, columns]
        try:
            yield
        finally:
            self._replayed = None
