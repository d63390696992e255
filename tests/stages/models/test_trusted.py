"""What is not refused, and the edges of what is; the attacks themselves are a row of the reliability scoreboard."""

import json
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.base import InputError
from stages.models.chat_templates import template_problem
from stages.models.config import ModelConfig
from stages.models.roles import Roles
from stages.models.trusted import require_safe, unsafe
from tests.toy_models import CHAT_TEMPLATE, save_toy

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(3)}


def codes(path: Path, trust_remote_code: bool = False) -> list[str]:
    return [mistake.code for mistake in unsafe(path, trust_remote_code)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file(WEIGHTS, folder / "model.safetensors")
    return folder


def test_a_saved_model_and_a_path_where_there_is_nothing_pass(tmp_path: Path):
    assert codes(save_toy(tmp_path / "toy")) == []
    assert codes(Path("organisation/model")) == []


def test_tensors_alone_may_lie_as_pickle_beside_safetensors_which_are_read_instead(model: Path):
    torch.save(WEIGHTS, model / "pytorch_model.bin")
    assert codes(model) == []
    torch.save(WEIGHTS, model / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert codes(model) == []


def test_weights_only_as_pickle_are_refused_with_a_command_that_converts_them(model: Path):
    (model / "model.safetensors").unlink()
    torch.save(WEIGHTS, model / "pytorch_model-00001-of-00002.bin")
    torch.save({"c": torch.zeros(1)}, model / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(InputError, match=r"^\[SAFE01\] .* has weights only as pickle .*; fix: convert it: ") as caught:
        require_safe(model)
    command = shlex.split(str(caught.value).partition("convert it: ")[2])
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert codes(model) == []
    assert {name: t.tolist() for name, t in load_file(model / "model.safetensors").items()} == {
        "a.weight": [[0, 1, 2], [3, 4, 5]],
        "b.weight": [1, 1, 1],
        "c": [0],
    }


def test_trust_lets_code_of_that_model_run_and_nothing_that_fetches_other_code(model: Path):
    config = {"auto_map": {"AutoConfig": "code.Config"}}
    (model / "config.json").write_text(json.dumps(config))
    assert (codes(model), codes(model, trust_remote_code=True)) == (["SAFE02"], [])
    (model / "config.json").write_text(json.dumps(config | {"_attn_implementation_internal": "x/y"}))
    assert codes(model, trust_remote_code=True) == ["SAFE02"]


def test_trust_holds_for_one_path_and_for_what_the_run_made_of_it():
    roles = Roles(ModelConfig(path="base", trust_remote_code=True))
    roles.trust(Path("runs/r/sft/final"), None)
    assert [roles.trusts(path) for path in ("base", Path("runs/r/sft/final"), "other")] == [True, True, False]
    careful = Roles(ModelConfig(path="base"))
    careful.trust(Path("runs/r/sft/final"))
    assert not careful.trusts("base") and not careful.trusts("runs/r/sft/final")


def test_links_into_the_hub_cache_of_the_same_repository_pass(tmp_path: Path):
    repository = tmp_path / "models--o--m"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    save_file(WEIGHTS, repository / "blobs" / "1234")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    assert codes(snapshot) == []
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../../secret.safetensors")
    (tmp_path / "secret.safetensors").write_bytes(b"")
    assert codes(snapshot) == ["SAFE03"]


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_looks_like_the_start_of_a_pickle_is_a_header(model: Path, length: int):
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(length)
    (model / "model.safetensors").write_bytes(struct.pack("<Q", length) + header + b"x")
    assert codes(model) == []


def test_a_cut_safetensors_file_is_told_with_its_sizes(model: Path):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"^\[SAFE04\] .*model.safetensors announces 36 bytes of tensors and has 32;"):
        require_safe(model)


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "é"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5, 2.5])
    writer.add_chat_template(CHAT_TEMPLATE)
    writer.add_tensor("t", np.ones((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_passes_whole_and_not_without_its_end(gguf_file: Path):
    assert codes(gguf_file) == []
    gguf_file.write_bytes(gguf_file.read_bytes()[:-1])
    assert codes(gguf_file) == ["SAFE04"]


def test_a_single_file_that_is_no_gguf_is_no_model(tmp_path: Path):
    torch.save(WEIGHTS, tmp_path / "weights.pt")
    assert codes(tmp_path / "weights.pt") == ["SAFE01"]


ORDINARY = {
    "of the toys": CHAT_TEMPLATE,
    "with transformers' tags": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content | trim }}{% endgeneration %}{% endfor %}{{ strftime_now('%d') }}"
    ),
    "that refuses a system message": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        "{% for m in messages %}{{ '<' ~ m['role'] ~ '>' + m['content'] }}{% endfor %}"
    ),
    "that wants tools": "{% for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}{{ messages[0].content }}",
    "with a namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    ),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_a_template_that_writes_messages_passes(name: str):
    assert template_problem(ORDINARY[name]) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{% if %}", "is no Jinja template"),
        ("{% include 'x' %}", r"reaches into Python \(include\)"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", r"reaches into Python \(__"),
        ("{{ messages.append(1) }}", "attempts what the sandbox forbids"),
        ("{{ ('_' ~ '_class_' ~ '_') | length }}{{ messages | attr('_' ~ '_class_' ~ '_') }}", "sandbox forbids"),
    ],
)
def test_a_template_that_does_more_is_told_what(text: str, told: str):
    assert re.search(told, template_problem(text) or "nothing")


def test_an_interrupt_from_the_terminal_is_not_blamed_on_a_template():
    program = (
        "import os, signal, threading, time\n"
        "from stages.models.chat_templates import template_problem\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "def interrupt():\n"
        "    while True: time.sleep(0.003); os.killpg(0, signal.SIGINT)\n"
        "threading.Thread(target=interrupt, daemon=True).start()\n"
        "found = template_problem('{% for m in messages %}{{ m.content }}{% endfor %}')\n"
        "os.write(1, repr(found).encode())\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, start_new_session=True, timeout=60)
    assert done.stdout == b"None", done.stderr.decode()
