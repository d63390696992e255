"""Loss scaling for products in float16, which would round small gradients to zero (arXiv 1710.03740, section 3.2)."""

from collections.abc import Iterable

from torch import Tensor, nn

START, GROWTH_STEPS = 2.0**16, 2000
"""The first scale, and the optimizer steps in a row without an overflow after which it is doubled."""


class LossScale:
    """A factor on the loss that is as large as gradients in float16 can bear; optimizers see gradients without it.

    A step whose gradients overflow is left out, and the factor is halved.
    """

    def __init__(self) -> None:
        self.value = START
        self._good = 0

    @staticmethod
    def of(compute: str) -> "LossScale | None":
        """That of a model whose products are in `compute`; None where it needs none."""
        return LossScale() if compute == "float16" else None

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return loss * self.value

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take the factor off the gradients."""
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(self.value)

    def overflowed(self, finite: bool) -> bool:
        """To be told once per optimizer step whether its gradients are finite: whether a smaller factor may mend it.

        At a factor of 1 it may not: then it is not the factor that makes them infinite.
        """
        if not finite:
            halved = self.value > 1.0
            self.value, self._good = max(1.0, self.value / 2), 0
            return halved
        self._good += 1
        if self._good == GROWTH_STEPS:
            self.value, self._good = 2 * self.value, 0
        return False

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "good": self._good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value, self._good = float(state["value"]), int(state["good"])
