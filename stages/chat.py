"""Talking to a model: one base in memory, any number of adapters of any PEFT method on it, switched between replies."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from stages.base import InputError
from stages.export import is_scorer
from stages.models.config import ModelConfig
from stages.models.load import ModelSource, load_tokenizer, source_of, stop_ids
from stages.models.precision import autocast, device
from stages.models.roles import Roles
from stages.models.trunk import unwrapped
from stages.models.virtual_tokens import generate, has_virtual_tokens
from stages.quiet import quiet_libraries
from stages.render import Renderer
from stages.rollout import InverseCDF, generating_with, uniforms

BASE, OWN = "base", "default"
HELP = """\
/adapter        list the adapters
/adapter NAME   answer with that adapter from now on; the conversation stays
/base           answer with the base model, without an adapter
/reset          forget the conversation
/quit           end (so does the end of the input)
"""
Write = Callable[[str], object]


def _nowhere(text: str) -> None:
    """For a reply that nobody watches being written."""


@dataclass(frozen=True)
class ChatConfig:
    """What is loaded, and how replies are drawn."""

    folder: Path
    """A base model, or a stage's `final/`."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """More adapters on the same base, by name."""
    temperature: float = 0.7
    """Of the full softmax; 0 = always the likeliest token."""
    max_new_tokens: int = 256
    """Length limit of a reply."""
    seed: int = 0
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Voice:
    """A model that can answer: the shared base with one adapter or none, and how it reads and ends a text."""

    lm: nn.Module
    renderer: Renderer
    stops: tuple[int, ...]

    @property
    def limit(self) -> int:
        """Tokens of prompt and reply together that the model has positions for."""
        positions = getattr(self.lm.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        return positions - (self.lm.count if has_virtual_tokens(self.lm) else 0)


class ChatSession:
    """A conversation with one of several voices over a single copy of the base in memory.

    Raises InputError STAGE02 (a reward model), CHAT02 (an adapter folder without adapter), PEFT01 (adapter of another
    base), PEFT02 (incomplete adapter).
    """

    def __init__(self, config: ChatConfig):
        quiet_libraries()
        self.config = config
        own = source_of(config.folder)
        self._compute = "bfloat16" if device().type == "cuda" else "float32"
        roles = Roles(
            ModelConfig(
                path=own.base, dtype=self._compute, compute=self._compute, trust_remote_code=config.trust_remote_code
            )
        )
        self.voices = {
            name: _voice(roles, source, own, config.trust_remote_code) for name, source in _sources(own, config).items()
        }
        self.active = OWN if own.adapter else BASE
        self.messages: list[dict[str, str]] = []
        self._replies = 0
        self._told_of_limit = False

    def switch(self, name: str) -> None:
        """Let another voice answer, the conversation staying. Raises InputError CHAT03 for a name that is not there."""
        if name not in self.voices:
            raise InputError("CHAT03", f"no adapter '{name}'; found {', '.join(self.voices)}", fix="name one of these")
        self.active = name

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages = []

    def reply(self, text: str, write: Write = _nowhere) -> str:
        """The active voice's answer, handed to `write` as it comes; empty, with a notice, when the text is too long.

        With a chat template it answers the conversation, without one it continues this text alone.
        """
        voice = self.voices[self.active]
        prompt, kept = self._fitting(voice, text)
        if len(prompt) >= voice.limit:
            write(f"(this text has {len(prompt)} tokens, the model takes fewer than {voice.limit}; shorten it)")
            return ""
        if len(kept) < len(self.messages) and not self._told_of_limit:
            write(f"(the conversation no longer fits into {voice.limit} tokens; its oldest messages are left out)\n")
            self._told_of_limit = True
        answer = self._generate(voice, prompt, write)
        self.messages = [*kept, {"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return answer

    def _fitting(self, voice: Voice, text: str) -> tuple[list[int], list[dict[str, str]]]:
        """Ids of the prompt, and the earlier messages in it: as many of the latest as leave room for a reply."""
        if voice.renderer.tokenizer.chat_template is None:
            return voice.renderer.prompt(text), self.messages
        kept, asked = self.messages, {"role": "user", "content": text}
        room = min(self.config.max_new_tokens, voice.limit // 2)  # a short context keeps half for the conversation
        while len(prompt := voice.renderer.prompt([*kept, asked])) + room > voice.limit and kept:
            kept = kept[2:]  # question and answer, so that templates still see the two in turns
        return prompt, kept

    def _generate(self, voice: Voice, prompt: list[int], write: Write) -> str:
        """Text of a completion; each draw is a function of (seed, number of the reply, token)."""
        config, where = self.config, next(voice.lm.parameters()).device
        width = min(config.max_new_tokens, voice.limit - len(prompt))
        ids = torch.tensor([prompt], device=where)
        stream = _Stream(voice.renderer.tokenizer, voice.stops, write)
        arguments = {"streamer": stream}
        if config.temperature > 0:
            numbers = uniforms(config.seed, [self._replies], width).to(where)
            arguments["logits_processor"] = LogitsProcessorList([InverseCDF(numbers, config.temperature)])
        plain = GenerationConfig(
            do_sample=False,
            max_new_tokens=width,
            use_cache=True,
            eos_token_id=list(voice.stops),
            pad_token_id=voice.renderer.tokenizer.pad_token_id,
        )
        with autocast(self._compute, where), generating_with(voice.lm, plain):
            generate(voice.lm, ids, torch.ones_like(ids, dtype=torch.bool), **arguments)
        self._replies += 1
        return stream.text


class _Stream(BaseStreamer):
    """Hands on text as tokens come, whole characters only; keeps it as `text`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: tuple[int, ...], write: Write):
        self._tokenizer, self._stops, self._write = tokenizer, stops, write
        self._ids: list[int] = []
        self._shown = 0
        self.text = ""

    def put(self, value: Tensor) -> None:
        """New ids [1]; the prompt, with whatever stands for virtual tokens, comes as [1, P] and is not shown."""
        if value.dim() > 1:
            return
        self._ids += [token for token in value.tolist() if token not in self._stops]
        self.text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if not self.text.endswith("\ufffd"):  # a character of several tokens is not complete yet
            self._show()

    def end(self) -> None:
        self._show()

    def _show(self) -> None:
        self._write(self.text[self._shown :])
        self._shown = len(self.text)


def _sources(own: ModelSource, config: ChatConfig) -> dict[str, ModelSource]:
    """What each name stands for, all on the base of the folder."""
    named = {BASE: ModelSource(own.base)} | ({OWN: own} if own.adapter else {})
    for name, folder in config.adapters.items():
        if not (folder / "adapter_config.json").is_file():
            problem = f"adapter {name}: {folder} has no adapter_config.json, so it holds no adapter"
            raise InputError("CHAT02", problem, fix="give the final/ of a stage that trains an adapter")
        named[name] = ModelSource(own.base, folder)
    for source in named.values():
        if is_scorer(source):
            problem = f"{source.folder} is a reward model (score head, no language-model head)"
            raise InputError("STAGE02", problem, fix="give the final/ of an sft or ppo stage")
    return named


def _voice(roles: Roles, source: ModelSource, own: ModelSource, trust_remote_code: bool) -> Voice:
    """A source with the tokenizer that its adapter was saved with, else that of the folder, else the base's."""
    candidates = [source, own] if source.adapter else [own]
    has_tokenizer = (s for s in candidates if (Path(s.folder) / "tokenizer_config.json").is_file())
    chosen = next(has_tokenizer, ModelSource(own.base))
    tokenizer = load_tokenizer(chosen, trust_remote_code and chosen in (own, ModelSource(own.base)))
    lm = roles.reference(source).to(device())
    return Voice(lm, Renderer(tokenizer), stop_ids(unwrapped(lm), tokenizer))


def run_chat(session: ChatSession, lines: Iterable[str], write: Write, marked: bool = False) -> None:
    """Answer each line or obey it until /quit or the end; `marked` shows a person whose turn it is."""
    if marked:
        write(f"{_listed(session)}/help lists the commands\n")
    reading = iter(lines)
    while True:
        if marked:
            write(f"[{session.active}] > ")
        line = next(reading, None)
        if line is None:
            return
        text = line.rstrip("\r\n")
        if text.strip() == "/quit":
            return
        if text.startswith("/"):
            _obey(session, text, write)
        elif text.strip():
            session.reply(text, write)
            write("\n")


def _obey(session: ChatSession, line: str, write: Write) -> None:
    command, _, name = (part.strip() for part in line.partition(" "))
    if command == "/base" or (command == "/adapter" and name):
        try:
            session.switch(BASE if command == "/base" else name)
            write(f"now answering: {session.active}\n")
        except InputError as error:
            write(f"{error}\n")
    elif command == "/adapter":
        write(_listed(session))
    elif command == "/reset":
        session.reset()
        write("the conversation is forgotten\n")
    elif command == "/help":
        write(HELP)
    else:
        write(f"no command {command}; known are:\n{HELP}")


def _listed(session: ChatSession) -> str:
    return "adapters: " + ", ".join(f"{n} (active)" if n == session.active else n for n in session.voices) + "\n"
