"""Models of the hub, from a cache as the hub's client leaves it: fetched, pinned to a revision, looked through."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.models.hub import is_hub_id
from tests.toy_models import save_toy

ROOT = Path(__file__).parents[3]
NEW, OLD = "1" * 40, "2" * 40
SFT = """
import sys
from pathlib import Path
from stages.models.config import ModelConfig, TuningConfig
from stages.base import InputError
from stages.models.load import load_causal_lm, load_tokenizer, source_of
from stages.models.publish import publish
from stages.models.roles import Roles
from tests.toy_models import noise
path, final = sys.argv[1:]
roles, source = Roles(ModelConfig(path=path)), source_of(path)
policy = roles.policy(source, TuningConfig(method="lora"))
noise(policy, "lora_B")
publish(policy, load_tokenizer(source), Path(final), roles)
roles.reference(source_of(final))  # refuses a base with other weights
print(source_of(final).base)
try:
    load_causal_lm("o/other")
except InputError as error:
    print(str(error).partition(" (")[0])
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """`o/m` at two revisions; main is the new one."""
    repository = tmp_path / "hub" / "models--o--m"
    for revision, seed in ((NEW, 0), (OLD, 1)):
        save_toy(repository / "snapshots" / revision, seed=seed)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    return tmp_path


def run(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_CACHE", None)
    return subprocess.run([sys.executable, *arguments], cwd=cache, env=environment, capture_output=True, text=True)


def test_an_adapter_records_the_hubs_name_and_revision_and_finds_its_base_by_them(cache: Path):
    final = cache / "final"
    done = run(cache, "-c", SFT, f"o/m@{OLD}", str(final))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == [f"o/m@{OLD}", "[PATH01] no model at 'o/other'"]
    written = json.loads((final / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("o/m", OLD)
    assert json.loads((final / "base.json").read_text())["id"] == f"o/m@{OLD}"
    assert str(cache) not in (final / "tokenizer_config.json").read_text()


def test_a_hostile_model_in_the_cache_is_refused_before_it_is_loaded(cache: Path):
    snapshot = cache / "hub/models--o--m/snapshots" / NEW
    config = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "evil.C"}}))
    guard = "from pipeline.model_files import require_safe_folders; require_safe_folders(['o/m'])"
    assert "[SAFE02]" in run(cache, "-c", guard).stderr
    assert run(cache, "-c", guard.replace("o/m", f"o/m@{OLD}")).returncode == 0


@pytest.mark.parametrize("path", ["gpt2", "o/m", "o/m@main", f"o/m@{OLD}"])
def test_these_are_ids_of_the_hub(path: str):
    assert is_hub_id(path)


@pytest.mark.parametrize("path", ["a/b/c", "/o/m", "../m", "./m", "o/m@", "", "~/m"])
def test_these_are_paths(path: str):
    assert not is_hub_id(path)
