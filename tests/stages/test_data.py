"""Every mistake in a data file is told with its place, together with the others, before a model is loaded."""

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stages.base import InputError
from stages.data import read_demonstrations, read_preferences, read_prompts, read_rows
from tests.toy_models import write_rows

PAIR = {"prompt": "The", "chosen": " best", "rejected": " worst"}
QUESTION = {"role": "user", "content": "Two plus two?"}
ANSWER = {"role": "assistant", "content": "Four."}


def message(read: Any, path: Path) -> str:
    with pytest.raises(InputError) as error:
        read(path)
    return str(error.value)


def test_rows_are_read_in_order_and_may_hold_line_separators(file: Path) -> None:
    file.write_text('{"text": "a\u2028b"}\n{"text": "c"}\n\n', encoding="utf-8")
    assert read_rows(file) == [{"text": "a\u2028b"}, {"text": "c"}]


def test_a_byte_order_mark_is_no_mistake(file: Path) -> None:
    file.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n')
    assert read_rows(file) == [{"text": "a"}, {"text": "b"}]


def test_broken_lines_are_told_with_line_and_column(file: Path) -> None:
    file.write_text('{"prompt": "a"}\n{"prompt": "b" "c"}\n[1]\n', encoding="utf-8")
    assert message(read_rows, file) == (
        "[DATA03] data.jsonl line 2: not JSON (Expecting ',' delimiter, column 16); "
        "fix: write one JSON object per line\n"
        "[DATA03] data.jsonl line 3: a JSON list, expected an object; "
        'fix: write {"column": value, ...} on each line '
        "(all unusable rows at once: sed -i.bak '2d;3d' data.jsonl)"
    )


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_told(file: Path, content: str) -> None:
    file.write_text(content, encoding="utf-8")
    assert message(read_rows, file) == (
        "[DATA03] data.jsonl holds no rows; fix: check the path, or run the script that makes the data"
    )


def test_a_file_in_another_encoding_is_told_with_its_line(file: Path) -> None:
    file.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    assert message(read_rows, file) == "[DATA03] data.jsonl line 2: not UTF-8; fix: save the file as UTF-8"


def test_a_missing_file_is_told(file: Path) -> None:
    assert message(read_rows, file) == "[PATH01] no file data.jsonl; fix: correct the path, or create it"


def test_a_missing_column_is_told_with_the_nearest_name(file: Path) -> None:
    write_rows(file, [{"prompt": "The", "chosen": " best", "reject": " worst"}])
    assert message(read_preferences, file) == (
        "[DATA01] data.jsonl row 1: no field 'rejected'. Found: prompt, chosen, reject. "
        "Did you mean 'reject'?; fix: rename 'reject' to 'rejected'"
    )


def test_null_fields_are_told_with_their_rows(file: Path) -> None:
    write_rows(file, [{**PAIR, "chosen": None} if number in (17, 40, 91) else PAIR for number in range(1, 100)])
    assert message(read_preferences, file) == (
        "[DATA02] data.jsonl row 17: 'chosen' is null (3 such rows: 17, 40, 91); "
        "fix: correct or remove them (all unusable rows at once: sed -i.bak '17d;40d;91d' data.jsonl)"
    )


def test_all_mistakes_of_a_file_are_told_together(file: Path) -> None:
    write_rows(file, [{**PAIR, "margin": "big"}, {**PAIR, "prompt": 3, "margin": float("nan")}, PAIR, PAIR])
    assert message(read_preferences, file) == (
        "[DATA02] data.jsonl row 2: 'prompt' is a number, expected a string; fix: correct or remove them\n"
        "[DATA01] data.jsonl row 3: no field 'margin' (2 such rows: 3, 4). Found: prompt, chosen, rejected; "
        "fix: add 'margin'\n"
        "[DATA02] data.jsonl row 1: 'margin' is a string, expected a number; fix: correct or remove them\n"
        "[DATA02] data.jsonl row 2: 'margin' is nan, expected a finite number; fix: correct or remove them "
        "(all unusable rows at once: sed -i.bak '1d;2d' data.jsonl)"
    )


def test_the_command_that_removes_rows_leaves_the_others(file: Path) -> None:
    rows = [{**PAIR, "prompt": f"{number}", "chosen": None if number % 2 else " best"} for number in range(1, 9)]
    told = message(read_preferences, write_rows(file, rows))
    subprocess.run(shlex.split(told.partition("at once: ")[2].removesuffix(")")), check=True)
    assert [row["prompt"] for row in read_preferences(file).values()] == ["2", "4", "6", "8"]
    assert len(read_rows(file.with_name("data.jsonl.bak"))) == 8


def test_long_lists_of_rows_are_cut(file: Path) -> None:
    write_rows(file, [{"prompt": None}] * 21)
    assert message(read_prompts, file) == (
        "[DATA02] data.jsonl row 1: 'prompt' is null (21 such rows: 1, 2, 3, 4, 5, ...); fix: correct or remove them"
    )


def test_preferences_may_have_empty_prompts_and_margins(file: Path) -> None:
    rows = [{**PAIR, "prompt": "", "margin": 0.5}, {**PAIR, "margin": 1}]
    assert read_preferences(write_rows(file, rows)) == {1: rows[0], 2: rows[1]}


def test_other_columns_of_preferences_are_let_through(file: Path) -> None:
    rows = [{**PAIR, "source": "forum"}, {**PAIR, "source": None}, PAIR, {**PAIR, "source": {"name": "web"}}]
    assert list(read_preferences(write_rows(file, rows)).values()) == rows


def test_a_few_equal_pairs_are_dropped_aloud_and_the_others_keep_their_numbers(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(file, [PAIR, {**PAIR, "chosen": " worst "}, *[PAIR] * 18])
    assert read_preferences(file) == dict.fromkeys((1, *range(3, 21)), PAIR)
    assert capsys.readouterr().out == "data.jsonl: dropped 1 of 20 pairs whose two sides are equal\n"


def test_many_equal_pairs_are_refused(file: Path) -> None:
    write_rows(file, [PAIR, {**PAIR, "chosen": " worst"}, {**PAIR, "chosen": " worst"}, *[PAIR] * 16])
    assert message(read_preferences, file) == (
        "[DATA05] data.jsonl 'chosen' equals 'rejected' in 2 of 19 rows (2, 3); "
        "fix: check what wrote the file, then remove those rows"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "The", "completion": " end"},
        {"text": "A whole text."},
        {"messages": [QUESTION, ANSWER]},
        {"prompt": [QUESTION], "completion": "Four."},
    ],
)
def test_demonstrations_have_four_forms(file: Path, row: dict[str, Any]) -> None:
    assert read_demonstrations(write_rows(file, [row])) == [row]


def test_demonstrations_of_two_kinds_are_refused(file: Path) -> None:
    write_rows(file, [{"prompt": "The", "completion": " end"}, {"text": "A whole text."}])
    assert message(read_demonstrations, file) == (
        "[DATA01] data.jsonl row 2: no field 'prompt'. Found: text; fix: add 'prompt'\n"
        "[DATA01] data.jsonl row 2: no field 'completion'. Found: text; fix: add 'completion'"
    )


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (None, "is null"),
        ([], "is an empty list, expected a list of messages"),
        ("Hi", "is a string, expected a list of messages"),
        ([ANSWER], "has one message, expected a question and its answer"),
        ([QUESTION, QUESTION], "ends with the role 'user', expected 'assistant'"),
        ([QUESTION, {"role": "assistant"}], "message 2 is not {'role': string, 'content': string}"),
        (["Hi", ANSWER], "message 1 is not {'role': string, 'content': string}"),
    ],
)
def test_malformed_messages_are_told(file: Path, messages: Any, problem: str) -> None:
    write_rows(file, [{"messages": messages}])
    assert message(read_demonstrations, file) == (
        f"[DATA02] data.jsonl row 1: 'messages' {problem}; fix: correct or remove them "
        "(all unusable rows at once: sed -i.bak '1d' data.jsonl)"
    )


def test_prompts_keep_their_other_columns(file: Path) -> None:
    rows = [{"prompt": "The", "source": "imdb", "id": 3}, {"prompt": [QUESTION], "source": None, "id": 4}]
    assert read_prompts(write_rows(file, rows)) == rows


def test_other_columns_of_prompts_must_be_in_every_row(file: Path) -> None:
    write_rows(file, [{"prompt": "The"}, {"prompt": "A", "answer": "4"}])
    assert message(read_prompts, file) == (
        "[DATA01] data.jsonl row 1: no field 'answer'. Found: prompt; fix: add 'answer'"
    )


def test_prompts_must_ask_something(file: Path) -> None:
    write_rows(file, [{"prompt": " "}, {"prompt": [QUESTION, ANSWER]}])
    assert message(read_prompts, file) == (
        "[DATA02] data.jsonl row 1: 'prompt' is empty; fix: correct or remove them\n"
        "[DATA02] data.jsonl row 2: 'prompt' ends with the role 'assistant', expected 'user'; "
        "fix: correct or remove them (all unusable rows at once: sed -i.bak '1d;2d' data.jsonl)"
    )
