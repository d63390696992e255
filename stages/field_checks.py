"""What a field of a row has to be: each check tells what is wrong with a value ("is null"), or None."""

import math
from typing import Any


def kind(value: Any) -> str:
    """A JSON value's type as JSON calls it."""
    names = {list: "list", dict: "object", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def anything(value: Any) -> None:
    """Other columns belong to the user's reward function."""


def text(value: Any) -> str | None:
    """A string, maybe an empty one."""
    if isinstance(value, str):
        return None
    return "is null" if value is None else f"is a {kind(value)}, expected a string"


def filled_text(value: Any) -> str | None:
    """A text that says something."""
    return text(value) or (None if value.strip() else "is empty")


def prompt(value: Any) -> str | None:
    """A text, or messages whose last one is the user's."""
    return messages(value, last="user") if isinstance(value, list) else text(value)


def filled_prompt(value: Any) -> str | None:
    """A prompt that says something."""
    return prompt(value) if isinstance(value, list) else filled_text(value)


def answered_messages(value: Any) -> str | None:
    """Messages whose last one is the assistant's answer."""
    if value is None:
        return "is null"
    if isinstance(value, list) and len(value) == 1:
        return "has one message, expected a question and its answer"
    return messages(value, last="assistant")


def messages(value: Any, last: str) -> str | None:
    """Messages, the last of which has the role `last`."""
    if not isinstance(value, list) or not value:
        return f"is {'an empty list' if value == [] else f'a {kind(value)}'}, expected a list of messages"
    for index, message in enumerate(value, start=1):
        fields = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not all(isinstance(field, str) for field in fields):
            return f"message {index} is not {{'role': string, 'content': string}}"
    role = value[-1]["role"]
    return None if role == last else f"ends with the role '{role}', expected '{last}'"


def finite_number(value: Any) -> str | None:
    """A number that is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "is null" if value is None else f"is a {kind(value)}, expected a number"
    return None if math.isfinite(value) else f"is {value}, expected a finite number"
