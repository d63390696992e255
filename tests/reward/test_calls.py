"""Reward functions as TRL's trainers call them: what they get, what they may be, what is told when they fail."""

import asyncio
from typing import Any

import pytest

from reward.base import RewardError
from reward.calls import TrainerState
from reward.mixture import FunctionScores, Texts

TEXTS = Texts(["p", "q", "r"], ["a", "bb", "ccc"], {"label": [1, 2, 3]}, [[5], [5, 6], [5, 6, 7]], TrainerState(3, 10))
CHAT = Texts([[{"role": "user", "content": "hi"}]], ["hello"], {})


def scores(function: Any, texts: Texts = TEXTS, **how: Any) -> list[float | None]:
    return FunctionScores("f", function, how.pop("arguments", {}), **how).scores(texts)


def told(function: Any, texts: Texts = TEXTS, **how: Any) -> str:
    with pytest.raises(RewardError) as error:
        scores(function, texts, **how)
    return str(error.value)


def line_of(function: Any, after: int) -> str:
    return f"{__file__}:{function.__code__.co_firstlineno + after}"


# The three functions below are examples of TRL's documentation of GRPOTrainer.


def reward_by_ids(completion_ids, **kwargs):
    """Reward function that assigns higher scores to longer completions (in terms of token count)."""
    return [float(len(ids)) for ids in completion_ids]


def reward_num_unique_chars(completions, **kwargs):
    return [len(set(c)) for c in completions]


async def async_reward_func(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(completion)) for completion in completions]


@pytest.mark.parametrize("function", [reward_by_ids, async_reward_func])
def test_examples_of_trls_documentation_run_unchanged(function):
    assert scores(function) == [1.0, 2.0, 3.0]


def test_another_example_of_trls_documentation_runs_unchanged():
    assert scores(reward_num_unique_chars) == [1.0, 1.0, 1.0]


def test_trls_own_format_reward_runs_unchanged_on_chat_prompts():
    from trl.rewards import think_format_reward

    thinking = Texts(CHAT.prompts * 2, ["<think>so</think> yes", "yes"], {})
    assert scores(think_format_reward, thinking) == [1.0, 0.0]


def test_the_reward_gets_how_far_training_is():
    def later(completions, trainer_state, **kwargs):
        return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

    def asks(completions, trainer_state, **kwargs):
        return [trainer_state.epoch] * len(completions)

    assert scores(later) == [0.3, 0.3, 0.3]
    assert f"trainer_state has global_step and max_steps here, and no 'epoch' at {line_of(asks, 1)}" in told(asks)


def test_a_single_call_gets_one_of_everything_and_gives_one_number():
    def one(prompt, completion, label, completion_ids, factor, **columns):
        assert columns.keys() == {"trainer_state"}
        return None if prompt == "q" else factor[0] * label + len(completion_ids)

    assert scores(one, arguments={"factor": [10, 20, 30]}, call="single") == [11.0, None, 33.0]


def test_async_single_calls_run_side_by_side_up_to_the_limit():
    running, most = 0, 0

    async def one(completion, **columns):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01 * (4 - len(completion)))  # the first ends last
        running -= 1
        return len(completion)

    assert scores(one, call="single", concurrency=2) == [1.0, 2.0, 3.0]
    assert most == 2


def test_an_object_with_an_async_call_is_async():
    class Judge:
        async def __call__(self, completions, **columns):
            return [0.5] * len(completions)

    assert scores(Judge()) == [0.5] * 3


def test_async_functions_keep_their_loop_from_call_to_call():
    loops = []

    async def remembers(completions, **columns):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    scores(remembers)
    scores(remembers)
    assert loops[0] is loops[1]


def test_an_async_single_call_that_raises_names_line_and_sample_and_cancels_the_others():
    ended = []

    async def one(completion, **columns):
        if completion == "bb":
            raise ValueError("no twins")
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            ended.append(completion)
            raise

    problem = f"f raised ValueError: no twins at {line_of(one, 2)} on sample 1 (prompt 'q', completion 'bb')"
    assert told(one, call="single") == f"[REW03] {problem}; fix: mend that line"
    assert sorted(ended) == ["a", "ccc"]


def test_a_single_call_is_not_repeated_to_find_the_sample_that_fails():
    asked = []

    def one(completion, **columns):
        asked.append(completion)
        return 1 / (2 - len(completion))

    assert f"ZeroDivisionError: division by zero at {line_of(one, 2)} on sample 1 " in told(one, call="single")
    assert asked == ["a", "bb"]


def test_an_async_batch_call_that_raises_names_its_line_and_sample():
    async def batch(completions, **columns):
        return [1 / (3 - len(c)) for c in completions]

    assert f" at {line_of(batch, 1)} on sample 2 (prompt 'r', completion 'ccc')" in told(batch)


@pytest.mark.parametrize(
    ("signature", "call", "name", "fix"),
    [
        (
            "prompt, completion, **k",
            "batch",
            "prompt",
            "set call: single for this term, or take prompts and completions",
        ),
        ("completions, **k", "single", "completions", "set call: batch for this term, or take prompt and completion"),
        (
            "completions, log_metric, **k",
            "batch",
            "log_metric",
            "give it a default, log_metric=None: only TRL's own trainer passes it",
        ),
    ],
)
def test_arguments_that_are_not_given_are_told_with_what_to_do(signature: str, call: Any, name: str, fix: str):
    function = eval(f"lambda {signature}: 0.0")
    problem = f"f needs '{name}', which is no column of the prompt data and no argument; found label"
    assert told(function, call=call) == f"[REW04] {problem}; fix: {fix}"


def test_completions_of_chat_prompts_are_messages():
    def content(completions, **columns):
        assert completions == [[{"role": "assistant", "content": "hello"}]]
        return [1.0]

    assert scores(content, CHAT) == [1.0]


def test_arguments_of_the_config_win_over_columns():
    def labels(completions, label, **columns):
        return [label] * len(completions)

    assert scores(labels, arguments={"label": 7}) == [7.0] * 3


def test_a_metric_without_its_column_says_which_is_missing():
    from reward.metrics import exact_match

    assert told(exact_match, arguments={"normalise": False}, reference="answer") == (
        "[REW04] f compares with the column 'answer', which the prompt data lacks; found label; "
        "fix: add 'answer' to the prompt rows, or correct `reference`"
    )
