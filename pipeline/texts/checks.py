"""Mistakes in texts that only a tokenizer shows, found with it alone. The rules are those of the stages."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pipeline.config import STAGES, PipelineConfig
from pipeline.findings import Findings
from pipeline.parents import other_reward_models
from pipeline.texts.files import LONGEST, Row, TextFile, text_file, texts_in
from pipeline.texts.gate import Rows
from pipeline.texts.stages import ROLES, model_path, texts_of
from pipeline.texts.summary import summarised
from stages.base import InputError
from stages.data import listed
from stages.models.classifier_facts import is_foreign
from stages.models.facts import facts_of
from stages.models.load import same_reading, tokenizer_alone
from stages.render import Renderer, rendered


class TextChecks:
    """A config's texts as tokens; what it sees gathers in `found`."""

    def __init__(self, config: PipelineConfig, found: Findings):
        self.config, self.found = config, found
        self._used: dict[str, set[int]] = {}
        """Ids in the texts, by the model whose tokenizer made them."""
        self._renderer = cache(self._load)

    def look(self, rows: Rows) -> None:
        """Read all files and compare the tokenizers."""
        for stage in STAGES:
            for part in ("train", "eval"):
                role = f"{ROLES[stage]}.{part}"
                if role in rows and self._reads(stage):
                    self._try(lambda stage=stage, role=role: self._file(stage, role, rows[role]))
        for path, used in self._used.items():
            self._try(lambda path=path, used=used: self._tokenizer(path, used))
        self._try(self._reward_models)

    def _reads(self, stage: str) -> bool:
        """Whether a stage runs; the evaluation reads PPO's prompts as PPO does."""
        return getattr(self.config, stage).enabled or stage == "ppo"

    def _try(self, look: Callable[[], None]) -> None:
        """One look; a mistake that others have met too, such as a missing template, is told once."""
        try:
            look()
        except InputError as error:
            if error.code not in ("TMPL01", "TOK03", "TOK04") or error.code not in {e.code for e in self.found.errors}:
                self.found.errors.append(error)

    def _load(self, path: str) -> Renderer:
        trusted = path == self.config.model.path and self.config.model.trust_remote_code
        return Renderer(readable_tokenizer(path, trusted))

    def _file(self, stage: str, role: str, rows: Sequence[Row]) -> None:
        path = model_path(stage, self.config)
        renderer = self._renderer(path)
        name, part = role.split(".")
        file = text_file(role, Path(getattr(getattr(self.config.data, name), part)), rows)
        texts = texts_of(stage, self.config, renderer)
        before = renderer.doubled_bos
        looked = file.looked_at(LONGEST if stage == "ppo" else 0)
        items = rendered(looked, texts.render, file.path)
        self._used.setdefault(path, set()).update(i for item in items for ids in texts.ids(item) for i in ids)
        if renderer.doubled_bos > before:
            self.found.notes.append(_doubled(file, renderer))
        self.found.notes += _written_specials(file, looked, renderer.tokenizer)
        texts.judge(items, file.path, [number for number, _ in looked])
        self.found.passed(stage, f"{file.path}: {summarised(texts, items, len(file.rows))}")

    def _tokenizer(self, path: str, used: set[int]) -> None:
        """TOK01: padding is the stop token. TOK02: ids beyond the embedding."""
        tokenizer = self._renderer(path).tokenizer
        if str(tokenizer.init_kwargs.get("pad_token")) == tokenizer.eos_token:  # before it was loaded as one of ours
            self.found.notes.append(
                f"[TOK01] {path}: pad_token is eos_token ({tokenizer.eos_token!r}); masks are taken from lengths, so "
                f"this is safe here, and what is saved pads with {tokenizer.pad_token!r}"
            )
        require_embedded(tokenizer, used, facts_of(path).embedding_rows, path)

    def _reward_models(self) -> None:
        """RM02: a reward model that reads texts in another way than the policy."""
        own = self.config.reward_model.path if self.config.reward_model.enabled else None
        terms = [model for model in other_reward_models(self.config) if not is_foreign(model)]
        for path in dict.fromkeys(path for path in (own, *terms) if path and self.config.ppo.enabled):
            mine, theirs = (self._renderer(p).tokenizer for p in (self.config.model.path, path))
            if not same_reading(mine, theirs):
                value = "; the value model starts from the policy" if path == own else ""
                self.found.notes.append(
                    f"[RM02] reward model {path} has a tokenizer or template of its own ({len(theirs)} tokens, policy "
                    f"{len(mine)}): completions are decoded and rendered again for it{value}"
                )


def readable_tokenizer(path: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises InputError TOK03 (no EOS), TOK04 (it cannot be loaded)."""
    try:
        return tokenizer_alone(path, trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"the tokenizer of '{path}' cannot be loaded ({str(error).splitlines()[0]:.200})"
        raise InputError("TOK04", problem, fix="copy tokenizer.json and tokenizer_config.json there again") from error


def require_embedded(tokenizer: PreTrainedTokenizerBase, used: set[int], rows: int | None, path: str) -> None:
    """Raises InputError TOK02 when a token that texts, padding or stopping need has no row in the embedding."""
    special = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id} - {None}
    beyond = sorted(i for i in used | special if rows is not None and i >= rows)
    if beyond:
        names = ", ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(beyond[:3]))
        raise InputError(
            "TOK02",
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model {rows} rows; {names} "
            f"{'has' if len(beyond) == 1 else 'have'} none (id {beyond[0]}), added after training?",
            fix="resize the model's embedding and save it, or name an existing token in tokenizer_config.json",
        )


def _doubled(file: TextFile, renderer: Renderer) -> str:
    bos = renderer.tokenizer.bos_token
    return f"[TMPL03] {file.path}: prompts begin with {bos}{bos}, since their text or template writes one; one is kept"


def _written_specials(
    file: TextFile, looked: Sequence[tuple[int, Row]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """Special tokens spelled out in texts: they become the token, not its letters."""
    special = [token for token in tokenizer.all_special_tokens if token]
    found: dict[str, list[int]] = {}
    for number, row in looked:
        for token in special:
            if any(token in text for text in texts_in(row)):
                found.setdefault(token, []).append(number)
    for token, numbers in found.items():
        rows = f"{len(numbers)} of {len(looked)} rows ({listed(numbers)})"
        yield f"[TMPL03] {file.path}: {rows} have {token} in their text; it is read as that special token"
