"""What `rlhf data` shows: of each stage its files in numbers, and rows as the model sees them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.data_checks import data_files, read_data
from pipeline.findings import Findings
from pipeline.problems import raise_together
from pipeline.spaced import spaced
from pipeline.texts.checks import readable_tokenizer
from pipeline.texts.files import LONGEST, Row, TextFile, text_file
from pipeline.texts.stages import ROLES, Kind, StageTexts, model_path, texts_of
from pipeline.texts.summary import Summary, summarised
from pipeline.texts.tokens import Passage, readable
from stages.render import Renderer, rendered


@dataclass(frozen=True)
class Example:
    """One row as the model sees it."""

    place: str
    """File and line."""
    passages: Sequence[Passage]
    facts: Sequence[str]
    """What becomes of it, in words."""
    columns: Sequence[tuple[str, str]]
    """What reward functions are given beside prompt and completion."""


@dataclass(frozen=True)
class FileView:
    """One file of a stage."""

    role: str
    path: Path
    summary: Summary
    examples: Sequence[Example]


@dataclass(frozen=True)
class StageView:
    """One stage: its tokenizer and files."""

    stage: str
    tokenizer: str
    files: Sequence[FileView]


def data_view(config: PipelineConfig, stages: Sequence[str], count: int) -> list[StageView]:
    """The view of those stages with `count` rows of each training file; of held-out files the numbers alone.

    Raises InputError as reading data, loading tokenizers and rendering do.
    """
    found = Findings()
    rows = read_data(config, data_files(config, found), False, found)
    raise_together(found.errors)
    return [_stage(config, stage, rows, count) for stage in stages]


_MEANINGS: dict[Kind, str] = {
    "context": "given, no loss",
    "target": "trained on",
    "answer": "the answer that is scored",
    "read": "its score is read here",
    "cut": "cut off, not seen",
}


def meanings(views: Sequence[StageView]) -> dict[Kind, str]:
    """What the kinds of tokens that are shown mean."""
    examples = [example for view in views for file in view.files for example in file.examples]
    kinds = {token.kind for example in examples for passage in example.passages for token in passage.tokens}
    return {kind: meaning for kind, meaning in _MEANINGS.items() if kind in kinds}


def _stage(config: PipelineConfig, stage: str, rows: dict[str, list[Row]], count: int) -> StageView:
    path = model_path(stage, config)
    trusted = path == config.model.path and config.model.trust_remote_code
    renderer = Renderer(readable_tokenizer(path, trusted))
    texts = texts_of(stage, config, renderer)
    split = getattr(config.data, ROLES[stage])
    views = []
    for part, shown in (("train", count), ("eval", 0)):
        role = f"{ROLES[stage]}.{part}"
        if role in rows:
            file = text_file(role, Path(getattr(split, part)), rows[role])
            views.append(_file(texts, renderer, file, stage, shown))
    return StageView(stage, _described(path, renderer), views)


def _file(texts: StageTexts, renderer: Renderer, file: TextFile, stage: str, count: int) -> FileView:
    looked = file.looked_at(LONGEST if stage == "ppo" else 0)
    items = rendered(looked, texts.render, file.path)
    examples = []
    for i in _chosen([texts.fate(item) for item in items], count):
        number, row = looked[i]
        passages = [readable(marked, renderer.tokenizer) for marked in texts.marked(items[i])]
        columns = [(name, _plain(value)) for name, value in row.items() if name != "prompt"] if stage == "ppo" else []
        examples.append(Example(f"{file.path}:{number}", passages, texts.facts(items[i]), columns))
    return FileView(file.role, file.path, summarised(texts, items, len(file.rows)), examples)


def _chosen(fates: Sequence[str], count: int) -> list[int]:
    """Rows at even distances, and in place of the last ones the first of each fate that none of them has."""
    chosen = spaced(range(len(fates)), count)
    lacking = [f for f in dict.fromkeys(fates) if f and f not in {fates[i] for i in chosen}]
    kept = chosen[: max(0, count - len(lacking))]
    return sorted({*kept, *(fates.index(fate) for fate in lacking[: count - len(kept)])})


def _described(path: str, renderer: Renderer) -> str:
    tokenizer = renderer.tokenizer
    template = "a chat template" if tokenizer.chat_template else "no chat template"
    bos = repr(tokenizer.bos_token) if tokenizer.bos_token else "none"
    return f"{path}: {len(tokenizer)} tokens, BOS {bos}, EOS {tokenizer.eos_token!r}, {template}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
