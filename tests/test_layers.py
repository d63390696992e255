"""Who may import whom: pipeline -> stages -> reward, and the few modules that may touch torch, TRL and W&B."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "stages", "reward")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

FORBIDDEN_BELOW = {"reward": {"stages", "pipeline"}, "stages": {"pipeline"}, "pipeline": set()}
TORCH = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed"}
MAY_IMPORT_TRL = {"stages/sft/stage.py", "stages/reward_model/stage.py", "stages/reward_model/trainer.py"}
MAY_IMPORT_WANDB = {"pipeline/tracking.py"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path, everywhere: bool) -> Iterator[str]:
    """Full names of the modules imported; with `everywhere` also those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else _at_import(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING"
        if not for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _at_import(child)


def tops(path: Path, everywhere: bool = True) -> set[str]:
    return {module.partition(".")[0] for module in imports(path, everywhere)}


def loaded_by(path: Path) -> set[Path]:
    """Every source file of ours that importing `path` imports."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += [file for module in imports(current, everywhere=False) for file in _files(module)]
    return found


def _files(module: str) -> list[Path]:
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return []
    candidates = [ROOT.joinpath(*parts).with_suffix(".py"), ROOT.joinpath(*parts, "__init__.py")]
    packages = [ROOT.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts))]
    return [path for path in (*candidates, *packages) if path.is_file()]


def test_there_are_sources_and_every_package_folder_has_an_init():
    assert len(SOURCES) > 30
    assert [name(p.parent) for p in SOURCES if not (p.parent / "__init__.py").is_file()] == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_downward(path):
    assert tops(path) & FORBIDDEN_BELOW[name(path).partition("/")[0]] == set()


def test_trl_is_imported_only_where_a_stage_stands_on_it():
    assert {name(path) for path in SOURCES if "trl" in tops(path)} <= MAY_IMPORT_TRL


def test_wandb_is_imported_only_by_tracking():
    assert {name(path) for path in SOURCES if "wandb" in tops(path)} == MAY_IMPORT_WANDB


_LIGHT = ("pipeline/*.py", "pipeline/planner/*.py", "*/config.py", "stages/*/config.py")
LIGHT = sorted({path for pattern in _LIGHT for path in ROOT.glob(pattern)})


@pytest.mark.parametrize("path", [*LIGHT, ROOT / "stages/base.py", ROOT / "stages/data.py"], ids=name)
def test_importing_what_check_needs_imports_no_torch(path):
    heavy = {name(file): sorted(tops(file, everywhere=False) & TORCH) for file in loaded_by(path)}
    assert {file: found for file, found in heavy.items() if found} == {}
