"""Texts with `{column}` places that rows fill. Imports no torch."""

from collections.abc import Mapping
from string import Formatter


class Template:
    """A text whose `{column}` places are filled by a row; doubled braces mean themselves.

    A place is a column's name and nothing more: what a row holds cannot reach attributes or formats.
    Raises ValueError when braces are unpaired, or a place is empty or says how to format.
    """

    def __init__(self, text: str):
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{text!r} has unpaired braces ({error}); write {{{{ or }}}} for a brace") from error
        for _, column, form, conversion in parts:
            if column is not None and (not column.strip() or form or conversion):
                raise ValueError(f"{text!r} has a place that is not just {{column}}; write {{{{ or }}}} for a brace")
        self._parts = [(literal, column) for literal, column, _, _ in parts]
        self.columns = [column for _, column in self._parts if column is not None]
        """Names of the places, in their order, repeated as often as they occur."""

    def fill(self, values: Mapping[str, object]) -> str:
        """The text with str(value) in each place."""
        return "".join(literal + ("" if column is None else str(values[column])) for literal, column in self._parts)
