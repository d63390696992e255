"""What our own source never does: shells, generated code, pickles; and which versions of packages it never meets."""

import ast
import configparser
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for folder in ("pipeline", "stages", "reward", "scripts") for p in (ROOT / folder).rglob("*.py"))
NEVER = {
    *("eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "joblib.load"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "marshal.loads", "shelve.open"),
    *("torch.jit.load", "np.load", "numpy.load"),
}
NEVER_TRUE = {"shell", "trust_remote_code", "allow_pickle"}


def forbidden(source: str) -> Iterator[str]:
    """Calls that could run what a file or a user says."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in NEVER:
            yield f"line {node.lineno}: {name}"
        if name == "torch.load" and given.get("weights_only") != "True":
            yield f"line {node.lineno}: torch.load without weights_only=True"
        yield from (f"line {node.lineno}: {key}=True" for key in NEVER_TRUE if given.get(key) == "True")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_runs_what_a_file_says(path: Path):
    assert list(forbidden(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "planted",
    [
        "subprocess.run('ls', shell=True)",
        "os.system('ls')",
        "x = eval(text)",
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_a_planted_call_is_found(planted: str):
    assert len(list(forbidden(planted))) == 1


FLAWED = {
    "torch": "2.10.0",  # CVE-2026-24747, CVE-2026-4538
    "transformers": "5.2.0",  # CVE-2026-4372, CVE-2026-1839
    "accelerate": "1.14.0",  # CVE-2026-69112
    "jinja2": "3.1.5",  # escapes from the sandbox
}
"""The last version of each package with a known flaw that reaches us."""


def requirements() -> dict[str, Requirement]:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    lines = settings["options"]["install_requires"].split("\n")
    return {requirement.name: requirement for requirement in map(Requirement, filter(None, lines))}


@pytest.mark.parametrize("package", FLAWED)
def test_a_flawed_version_is_outside_what_setup_allows(package: str):
    assert not requirements()[package].specifier.contains(FLAWED[package], prereleases=True)
