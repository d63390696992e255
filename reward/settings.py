"""Base of every config section: frozen, nested, unknown keys refused. Imports no torch."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A config section. Each field carries one description that states its unit."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
