"""Model folders of others: looked through before any library opens them. Imports no torch.

Every loader calls `require_safe`, and `rlhf check`, `run`, `stage`, `export` and `chat` do so before they import one.
docs/security.md says what is refused and why.
"""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.base import InputError
from stages.models.chat_templates import template_problem
from stages.models.config_keys import code_in, entries, remedy
from stages.models.file_formats import read_gguf, safetensors_problem
from stages.models.hub import pinned
from stages.models.pickles import is_pickle, pickled_calls

_JSON_LIMIT = 50_000_000
_READ = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json"),
    *("processor_config.json", "preprocessor_config.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.json",
)
"""JSON files that transformers and PEFT obey."""
_TEMPLATES = "additional_chat_templates"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")


def require_safe(path: str | Path, trust_remote_code: bool = False) -> None:
    """Refuse a model folder, adapter folder or GGUF file that could run code or lead elsewhere.

    A path where there is nothing, such as a hub id, passes: whoever fetches it calls this again.

    Raises InputError SAFE01 (pickle), SAFE02 (code), SAFE03 (leads elsewhere), SAFE04 (lies about its sizes),
    SAFE05 (chat template).
    """
    for mistake in unsafe(path, trust_remote_code):
        raise mistake


def unsafe(path: str | Path, trust_remote_code: bool = False) -> Iterator[InputError]:
    """All reasons to refuse a model, its adapter's base not included."""
    path = Path(path)
    if path.is_dir():
        yield from _in_folder(path, trust_remote_code)
    elif path.exists():
        yield from _in_file(path)


def adapter_base(folder: str | Path) -> str | None:
    """The base that the adapter in a folder names, a hub id with its revision; None when there is no adapter.

    Raises InputError SAFE04 when its adapter_config.json is damaged.
    """
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        return None
    content = _read_json(file)
    found, revision = content.get("base_model_name_or_path"), content.get("revision")
    if not isinstance(found, str):
        raise _malformed(file, "names no base_model_name_or_path")
    return pinned(found, revision)


def require_plain_files(folder: Path) -> None:
    """Refuse a folder with anything but folders and regular files of its own. Raises InputError SAFE03."""
    for mistake in (found for path in sorted(folder.rglob("*")) for found in _leading_away(path, folder.resolve())):
        raise mistake


def _in_file(path: Path) -> Iterator[InputError]:
    if not path.is_file() or path.suffix != ".gguf":
        problem = f"{path} is not a model: found a single file, expected a folder or a GGUF file"
        yield InputError("SAFE01", problem, fix="name the folder that holds config.json and *.safetensors")
        return
    try:
        template = read_gguf(path).template
    except ValueError as error:
        yield _malformed(path, str(error))
        return
    if template is not None:
        yield from _template(f"{path}: tokenizer.chat_template", template)


def _in_folder(folder: Path, trust: bool) -> Iterator[InputError]:
    files = sorted([*folder.iterdir(), *(folder / _TEMPLATES).glob("*")])
    away = [mistake for path in files for mistake in _leading_away(path, _home(folder))]
    yield from away
    if away:
        return  # nothing is opened in a folder that leads out of itself
    names = {path.name for path in files if path.is_file()}
    for path in (path for path in files if path.is_file()):
        if path.name in _READ:
            yield from _obeyed(path, trust)
        elif path.name.endswith(".index.json"):
            yield from _index(path)
        elif path.suffix == ".safetensors":
            yield from _safetensors(path)
        elif path.suffix in PICKLED:
            yield from _pickle(path, names)
        elif path.suffix == ".jinja":
            yield from _template(str(path), _text(path))


# Where files lie


def _home(folder: Path) -> Path:
    """The folder that links may lead to: itself, or of a hub cache's snapshot the whole cached repository."""
    resolved = folder.resolve()
    cached = resolved.parent.name == "snapshots" and (resolved.parent.parent / "blobs").is_dir()
    return resolved.parent.parent if cached else resolved


def _leading_away(path: Path, home: Path) -> Iterator[InputError]:
    target = path.resolve()
    if path.is_symlink() and not target.is_relative_to(home):
        problem = f"{path} is a link that leads out of its folder"
        yield InputError("SAFE03", problem, fix="copy the file into the folder, if you trust it")
    elif path.exists() and not stat.S_ISREG(mode := target.stat().st_mode) and not stat.S_ISDIR(mode):
        yield InputError("SAFE03", f"{path} is no regular file (a pipe, socket or device)", fix="remove it")


def _index(path: Path) -> Iterator[InputError]:
    try:
        shards = _read_json(path).get("weight_map")
    except InputError as error:
        yield error
        return
    if not isinstance(shards, dict):
        yield _malformed(path, "has no weight_map")
        return
    for shard in sorted({str(shard) for shard in shards.values()}):
        if re.search(r"[/\\\x00]", shard) or shard in ("", ".", ".."):
            problem = f"{path} leads out of its folder, to {shard!r:.80}"
            yield InputError("SAFE03", problem, fix="get the model again from where you trust it")


# What files hold


def _safetensors(path: Path) -> Iterator[InputError]:
    problem = safetensors_problem(path)
    if problem and is_pickle(path):
        told = f"{path} is a pickle under the name of safetensors; opening one can run code"
        yield InputError("SAFE01", told, fix="get the model again from where you trust it")
    elif problem:
        yield _malformed(path, problem)


def _pickle(path: Path, names: set[str]) -> Iterator[InputError]:
    """Nothing here opens pickles, so that plain tensors may lie beside the safetensors that are used instead."""
    try:
        calls = pickled_calls(path)
    except ValueError as error:
        problem = f"{path} has the name of a pickle and cannot be looked through ({error})"
        yield InputError("SAFE01", problem, fix=f"delete {path}; weights are read from safetensors or GGUF")
        return
    if calls:
        problem = f"{path} is a pickle, which runs code when it is opened; found a call of {_calls(calls)}"
        yield InputError("SAFE01", problem, fix=f"delete {path}; weights are read from safetensors or GGUF")
    elif path.name.startswith(("pytorch_model", "adapter_model")) and not _has_safetensors(names):
        problem = f"{path.parent} has weights only as pickle ({path.name}), expected safetensors or GGUF"
        yield InputError("SAFE01", problem, fix=f"convert it: {_conversion(path)}")


def _has_safetensors(names: set[str]) -> bool:
    return any(name.endswith((".safetensors", ".gguf")) for name in names)


def _calls(calls: list[str]) -> str:
    return ", ".join(call.replace(" ", ".") for call in calls[:3])[:120]


def _conversion(path: Path) -> str:
    """A command that reads tensors and nothing else."""
    stem = "adapter_model" if path.name.startswith("adapter_model") else "model"
    source, target = str(path.with_name(path.name.split("-0")[0].removesuffix(".bin") + "*.bin")), path.parent
    code = (
        "import glob, torch, safetensors.torch as s; "
        f"t = {{k: v.clone() for f in glob.glob({source!r}) for k, v in torch.load(f, weights_only=True).items()}}; "
        f"s.save_file(t, {str(target / f'{stem}.safetensors')!r}, {{'format': 'pt'}})"
    )
    return f'python -c "{code}"'


def _template(where: str, text: str) -> Iterator[InputError]:
    problem = template_problem(text)
    if problem:
        fix = "remove or replace that template; a template only reads messages and writes text"
        yield InputError("SAFE05", f"{where}: the chat template {problem}", fix=fix)


def _obeyed(path: Path, trust: bool) -> Iterator[InputError]:
    try:
        content = _read_json(path)
    except InputError as error:
        yield error
        return
    for key, value in entries(content):
        problem = code_in(key, value, trust)
        if problem:
            yield InputError("SAFE02", f"{path}: {problem}", fix=remedy(key))
    for template in _templates_in(content.get("chat_template")):
        yield from _template(f"{path}: chat_template", template)


def _templates_in(value: Any) -> list[str]:
    """The texts of a tokenizer's chat_template: one, or a list of named ones."""
    if isinstance(value, list):
        return [str(item.get("template", "")) for item in value if isinstance(item, dict)]
    if isinstance(value, dict):
        return [str(template) for template in value.values()]
    return [value] if isinstance(value, str) else []


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _JSON_LIMIT:
        raise _malformed(path, f"has {path.stat().st_size} bytes, expected at most {_JSON_LIMIT}")
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"is not JSON ({str(error)[:80]})") from error
    if not isinstance(content, dict):
        raise _malformed(path, "is no JSON object")
    return content


def _text(path: Path) -> str:
    return path.read_bytes()[:_JSON_LIMIT].decode("utf-8", errors="replace")


def _malformed(path: Path, what: str) -> InputError:
    return InputError("SAFE04", f"{path} {what}", fix="get the file again from where you trust it")
