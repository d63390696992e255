"""Text to ids: one encoding for all three stages, EOS at the end of every completion, prompts as prefixes."""

from pathlib import Path

import pytest
import torch
from tokenizers import processors

from stages.base import InputError
from stages.render import Rendered, Renderer, collate
from tests.toy_models import BOS, EOS, PAD, bare_tokenizer, toy_tokenizer

USER = {"role": "user", "content": "why?"}
ANSWER = {"role": "assistant", "content": "so."}
EXAMPLE = {"prompt": "the film", "completion": " is great"}


@pytest.fixture
def renderer() -> Renderer:
    return Renderer(toy_tokenizer())


def text(renderer: Renderer, ids: list[int]) -> str:
    return renderer.tokenizer.decode(ids)


def test_prompt_and_completion_are_joined_and_end_with_eos(renderer: Renderer):
    row = renderer.demonstration(EXAMPLE)
    assert text(renderer, row.prompt_ids) == "<bos>the film"
    assert text(renderer, row.completion_ids) == " is great<eos>"
    assert row.ids == [*row.prompt_ids, *row.completion_ids]


@pytest.mark.parametrize(
    ("prompt", "row"),
    [
        ("the film", EXAMPLE),
        ([USER], {"messages": [USER, ANSWER]}),
        ([USER, ANSWER, USER], {"messages": [USER, ANSWER, USER, ANSWER]}),
    ],
)
def test_the_ids_of_a_prompt_in_ppo_are_a_prefix_of_its_demonstration(renderer: Renderer, prompt, row: dict):
    ids = renderer.prompt(prompt)
    demonstration = renderer.demonstration(row)
    assert demonstration.ids[: len(ids)] == ids == list(demonstration.prompt_ids)


def test_every_completion_ends_with_one_eos_and_every_text_begins_with_one_bos(renderer: Renderer):
    rows = [
        renderer.demonstration(EXAMPLE),
        renderer.demonstration({"messages": [USER, ANSWER]}),
        renderer.demonstration({"text": "a film"}),
        renderer.pair("the film", " is bad"),
        renderer.pair([USER], "so."),
        renderer.pair("the film", ""),
    ]
    for row in rows:
        assert row.completion_ids[-1] == EOS
        assert row.ids.count(EOS) == 1
        assert row.ids.count(BOS) == 1 and row.ids[0] == BOS


def test_messages_go_through_the_template(renderer: Renderer):
    row = renderer.demonstration({"messages": [{"role": "system", "content": "be kind"}, USER, ANSWER]})
    assert text(renderer, row.prompt_ids) == "<bos>s:be kind\nu:why?\na:"
    assert text(renderer, row.completion_ids) == "so.<eos>"  # what the template writes after EOS is left out


def test_a_preference_with_messages_equals_the_demonstration(renderer: Renderer):
    assert renderer.pair([USER], "so.") == renderer.demonstration({"messages": [USER, ANSWER]})


def test_eos_is_appended_where_the_template_writes_none():
    template = (
        "{% for m in messages %}{{ m['role'][:1] + ':' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    renderer = Renderer(toy_tokenizer(chat_template=template))
    row = renderer.demonstration({"messages": [USER, ANSWER]})
    assert text(renderer, row.completion_ids) == "so.\n<eos>"


def test_the_first_token_of_a_text_alone_is_its_prompt(renderer: Renderer):
    row = renderer.demonstration({"text": "a film"})
    assert (list(row.prompt_ids), text(renderer, row.completion_ids)) == ([BOS], "a film<eos>")


def test_without_bos_the_first_token_of_a_text_is_its_prompt():
    renderer = Renderer(
        bare_tokenizer(["<eos>", "<unk>", "a", "b"], ["<eos>", "<unk>"], eos_token="<eos>", unk_token="<unk>")
    )
    assert renderer.demonstration({"text": "a b b"}) == Rendered([2], [3, 3, 0])
    assert renderer.demonstration({"prompt": "a", "completion": " b"}).ids == [2, 3, 0]


def test_a_tokenizer_that_appends_eos_does_not_end_the_prompt():
    tokenizer = toy_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    renderer = Renderer(tokenizer)
    assert text(renderer, renderer.prompt("the film")) == "<bos>the film"
    assert text(renderer, renderer.demonstration({"text": "a film"}).ids) == "<bos>a film<eos>"


def test_messages_without_a_template_are_refused():
    renderer = Renderer(toy_tokenizer(chat_template=None))
    with pytest.raises(InputError) as error:
        renderer.prompt([USER])
    assert str(error.value) == (
        "[TMPL01] the data has messages but the tokenizer has no chat_template; "
        "fix: use prompt/completion rows, or a tokenizer with a template"
    )


def test_a_template_whose_prompt_is_no_prefix_is_refused():
    template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    renderer = Renderer(
        toy_tokenizer(chat_template=template.replace("{{ messages | length }}", "{{ 'abc'[messages | length] }}"))
    )
    with pytest.raises(
        InputError, match=r"^\[TMPL04\] the chat template renders a prompt differently once it is answered; fix: "
    ):
        renderer.demonstration({"messages": [USER, ANSWER]})


def test_a_renderer_survives_saving_its_tokenizer(renderer: Renderer, tmp_path: Path):
    from transformers import AutoTokenizer

    renderer.tokenizer.save_pretrained(tmp_path)
    again = Renderer(AutoTokenizer.from_pretrained(tmp_path))
    for row in (EXAMPLE, {"messages": [USER, ANSWER]}, {"text": "a film"}):
        assert again.demonstration(row) == renderer.demonstration(row)


def test_completions_are_decoded_up_to_the_stop_token(renderer: Renderer):
    ids = torch.tensor([[*renderer.completion("good"), PAD, 9], [*renderer.completion("a bad"), 9]])
    mask = torch.tensor([[True] * 5 + [False] * 2, [True] * 6 + [False]])
    assert renderer.decode(ids, mask) == ["good", "a bad"]


def test_collated_rows_are_aligned_at_the_start_of_the_completion():
    ids, attended, mask = collate([Rendered([5, 6, 7], [8, EOS]), Rendered([9], [10, 11, 12, EOS])], PAD)
    assert ids.tolist() == [[5, 6, 7, 8, EOS, PAD, PAD], [PAD, PAD, 9, 10, 11, 12, EOS]]
    assert attended.int().tolist() == [[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]]
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_collated_rows_without_prompts_still_have_a_column_before_the_completion():
    ids, attended, mask = collate([Rendered((), [8, EOS]), Rendered((), [9])], PAD)
    assert ids.tolist() == [[PAD, 8, EOS], [PAD, 9, PAD]]
    assert attended.int().tolist() == [[0, 1, 1], [0, 1, 0]]
    assert mask.shape == (2, 2)
