"""Model files that attack whoever opens them. Each tries to change a canary file, or leads, lies or never ends."""

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SSTI = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
HIDDEN_SSTI = "{% if messages|length > 9 %}{{ messages|attr('__class__') }}{% endif %}"
JOINED_SSTI = "{{ messages|attr('_' ~ '_class_' ~ '_')|string }}"
ENDLESS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
GIGABYTES = "{% set a = 'x' * 999999999 %}{{ a }}{{ a }}"
LONG_TEXT = "{% for a in range(99999) %}{{ 'spam' * 99 }}{% endfor %}"


class Order:
    """Unpickled, it writes into the canary."""

    def __init__(self, canary: Path):
        self._command = f"echo touched > {canary}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self._command,)


@dataclass(frozen=True)
class Attack:
    """How a good model folder becomes a bad one."""

    make: Callable[[Path, Path], None]
    """(model folder, canary)."""
    code: str
    """Of the message that refuses it."""


def hostile_pickle(path: Path, canary: Path, archive: bool = False) -> None:
    """A pickle that runs a command, plain or in an archive as torch writes them."""
    data = pickle.dumps({"weight": Order(canary)}, protocol=2)
    if not archive:
        path.write_bytes(data)
        return
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3\n")


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file, which need not exist."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


def _code(folder: Path, canary: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').write('touched')\n")


def _only_pickle(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    hostile_pickle(folder / "pytorch_model.bin", canary, archive=True)


def _disguised(archive: bool) -> Callable[[Path, Path], None]:
    return lambda folder, canary: hostile_pickle(folder / "model.safetensors", canary, archive)


def _slipping(folder: Path, canary: Path) -> None:
    with zipfile.ZipFile(folder / "extra.pt", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        file.writestr(f"../../../{canary.name}", "touched")


def _config_code(folder: Path, canary: Path) -> None:
    _code(folder, canary)
    edit(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})


def _tokenizer_code(folder: Path, canary: Path) -> None:
    _code(folder, canary)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})


def _index(target: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, canary: Path) -> None:
        outside = folder.parent / "outside.safetensors"
        (folder / "model.safetensors").rename(outside)
        shard = target.format(outside=outside)
        edit(folder / "model.safetensors.index.json", metadata={}, weight_map={"model.norm.weight": shard})

    return make


def _link(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


def _pipe(name: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, canary: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return make


def _header(header: bytes, length: int | None = None) -> Callable[[Path, Path], None]:
    size = struct.pack("<Q", len(header) if length is None else length)
    return lambda folder, canary: (folder / "model.safetensors").write_bytes(size + header + bytes(8))


def _overlapping() -> Callable[[Path, Path], None]:
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return _header(json.dumps({"a": tensor, "b": tensor}).encode())


def _config(**changes: Any) -> Callable[[Path, Path], None]:
    return lambda folder, canary: edit(folder / "config.json", **changes)


def _template(text: str) -> Callable[[Path, Path], None]:
    return lambda folder, canary: (folder / "chat_template.jinja").write_text(text)


def _template_in_json(folder: Path, canary: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", chat_template=SSTI)


def _deep(folder: Path, canary: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000 + "]" * 100_000)


FOLDERS: Mapping[str, Attack] = {
    "pickle alone as pytorch_model.bin": Attack(_only_pickle, "SAFE01"),
    "pickle beside safetensors": Attack(lambda f, c: hostile_pickle(f / "pytorch_model.bin", c), "SAFE01"),
    "pickle as training_args.bin": Attack(lambda f, c: hostile_pickle(f / "training_args.bin", c, True), "SAFE01"),
    "pickle as model.pt": Attack(lambda f, c: hostile_pickle(f / "model.pt", c, True), "SAFE01"),
    "pickle as vocab.pkl": Attack(lambda f, c: hostile_pickle(f / "vocab.pkl", c), "SAFE01"),
    "pickle named safetensors": Attack(_disguised(archive=False), "SAFE01"),
    "archive named safetensors": Attack(_disguised(archive=True), "SAFE01"),
    "archive with ../ inside": Attack(_slipping, "SAFE01"),
    "auto_map in config.json": Attack(_config_code, "SAFE02"),
    "auto_map in tokenizer_config.json": Attack(_tokenizer_code, "SAFE02"),
    "_attn_implementation_internal": Attack(_config(_attn_implementation_internal="evil/kernel"), "SAFE02"),
    "attn_implementation from the hub": Attack(_config(attn_implementation="evil/kernel:run"), "SAFE02"),
    "experts_implementation in a part": Attack(_config(text_config={"experts_implementation": "e/k"}), "SAFE02"),
    "quantisation with fetched code": Attack(_config(quantization_config={"quant_method": "mxfp4"}), "SAFE02"),
    "newline in model_type": Attack(_config(model_type="llama\nimport os"), "SAFE02"),
    "../ in a weight map": Attack(_index("../outside.safetensors"), "SAFE03"),
    "absolute path in a weight map": Attack(_index("{outside}"), "SAFE03"),
    "link out of the folder": Attack(_link, "SAFE03"),
    "pipe as config.json": Attack(_pipe("config.json"), "SAFE03"),
    "pipe as weights": Attack(_pipe("model.safetensors"), "SAFE03"),
    "header of 2^62 bytes": Attack(_header(b"{}", 1 << 62), "SAFE04"),
    "header of garbage": Attack(_header(b"\xff" * 64), "SAFE04"),
    "overlapping tensors": Attack(_overlapping(), "SAFE04"),
    "config nested without end": Attack(_deep, "SAFE04"),
    "template that reaches into Python": Attack(_template(SSTI), "SAFE05"),
    "template that does so later": Attack(_template(HIDDEN_SSTI), "SAFE05"),
    "template that joins the name": Attack(_template(JOINED_SSTI), "SAFE05"),
    "template in tokenizer_config.json": Attack(_template_in_json, "SAFE05"),
    "template without end": Attack(_template(ENDLESS), "SAFE05"),
    "template of gigabytes": Attack(_template(GIGABYTES), "SAFE05"),
    "template of 39 MB": Attack(_template(LONG_TEXT), "SAFE05"),
}
"""Attacks by the files of a model's folder."""


def _bad_adapter_pickle(folder: Path, canary: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    hostile_pickle(folder / "adapter_model.bin", canary, archive=True)


ADAPTERS: Mapping[str, Attack] = {
    "pickle as adapter_model.bin": Attack(_bad_adapter_pickle, "SAFE01"),
    "adapter that imports a module": Attack(
        lambda f, c: edit(f / "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil"), "SAFE02"
    ),
    "adapter with a hostile tokenizer": Attack(_tokenizer_code, "SAFE02"),
}
"""Attacks by the files of an adapter's folder."""


def _gguf(facts: bytes, tensors: int, pairs: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + facts + bytes(64)


def _gguf_text(key: str, value: bytes, length: int | None = None) -> bytes:
    name = key.encode()
    size = len(value) if length is None else length
    return struct.pack("<Q", len(name)) + name + struct.pack("<IQ", 8, size) + value


_HUGE = struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 1 << 20, 1 << 20, 0, 0)
_MANY = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 60)

GGUF_FILES: Mapping[str, tuple[bytes, str]] = {
    "GGUF with 2^60 tensors": (_gguf(b"", 1 << 60, 0), "SAFE04"),
    "GGUF with a text of 2^60 bytes": (_gguf(_gguf_text("k", b"", 1 << 60), 0, 1), "SAFE04"),
    "GGUF with an array of 2^60 texts": (_gguf(_MANY, 0, 1), "SAFE04"),
    "GGUF with a tensor beyond its end": (_gguf(_HUGE, 1, 0), "SAFE04"),
    "GGUF with a hostile template": (_gguf(_gguf_text("tokenizer.chat_template", SSTI.encode()), 0, 1), "SAFE05"),
}
"""Single files and the code that refuses them."""
