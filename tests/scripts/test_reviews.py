"""Reviews as plain text and as excerpts, against literals."""

import pytest

from scripts.reviews import clean, closing_sentences, untokenise


def test_markup_entities_and_windows_punctuation_become_plain_text() -> None:
    assert clean("Good.<br /><br />It&#39;s\x85 <i>fine</i>\t\x96 \u201creally\u201d") == (
        'Good. It\'s... fine - "really"'
    )


def test_tokenised_snippets_are_written_like_reviews() -> None:
    snippet = '. . . i liked it , and ( mostly ) " the end " . a film that isn\'t bad . . . or is it ?'
    assert untokenise(snippet) == 'I liked it, and (mostly) "the end". A film that isn\'t bad... or is it?'


def test_an_excerpt_is_as_many_closing_sentences_as_fit() -> None:
    text = "One two three. Four five six seven. Eight nine! Ten eleven twelve?"
    assert closing_sentences(text, 4, 9) == "Four five six seven. Eight nine! Ten eleven twelve?"
    assert closing_sentences(text, 4, 8) == "Eight nine! Ten eleven twelve?"
    assert closing_sentences(text, 1, 2) == ""


@pytest.mark.parametrize("text", ["I give it 8/10.", "Two out of five for this.", "Only ** of these.", "no capital."])
def test_excerpts_with_ratings_or_broken_starts_are_left_out(text: str) -> None:
    assert closing_sentences(text, 1, 30) == ""
