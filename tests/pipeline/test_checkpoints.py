"""A checkpoint is complete or not there, whatever happens while it is written or afterwards."""

import json
import os
from pathlib import Path

import pytest

from pipeline.checkpoints import CheckpointManager
from pipeline.hashing import sha256_of
from pipeline.identity import Identity
from pipeline.seals import FORMAT
from stages.base import InputError


def writer(content: bytes = b"weights"):
    def write(folder: Path) -> None:
        (folder / "model.bin").write_bytes(content)
        (folder / "optimizer").mkdir()
        (folder / "optimizer" / "state.bin").write_bytes(b"moments")

    return write


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def checkpoints(tmp_path, told) -> CheckpointManager:
    return CheckpointManager(tmp_path / "checkpoints", keep=2, identity=Identity({"stage": "ppo"}), tell=told.append)


def test_nothing_saved_is_no_checkpoint(checkpoints, told):
    assert checkpoints.latest() is None
    assert told == []


def test_the_newest_one_is_found_with_all_its_files(checkpoints, told):
    checkpoints.save(100, writer(b"old"))
    path = checkpoints.save(200, writer(b"new"))
    assert path.name == "step-000200"
    assert checkpoints.latest() == (200, path)
    assert (path / "model.bin").read_bytes() == b"new"
    assert told == []


def test_only_the_last_ones_are_kept(checkpoints):
    for step in (1, 2, 3, 10):
        checkpoints.save(step, writer())
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step-000003", "step-000010"]


def crash_in_child(action) -> None:
    """Run `action` in a process that dies inside it, as under kill -9."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_crash_while_writing_leaves_the_previous_one(checkpoints, told):
    checkpoints.save(1, writer())

    def dies(folder: Path) -> None:
        (folder / "model.bin").write_bytes(b"half")
        os._exit(9)

    crash_in_child(lambda: checkpoints.save(2, dies))
    assert checkpoints.latest()[0] == 1
    assert len(told) == 1
    assert told[0].startswith("[CKPT02] ")
    assert told[0].endswith("save was interrupted; skipped, resuming from " + str(checkpoints.folder / "step-000001"))


def test_a_crash_between_writing_and_renaming_leaves_the_previous_one(checkpoints, monkeypatch):
    checkpoints.save(1, writer())
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *paths: os._exit(9))
        crash_in_child(lambda: checkpoints.save(2, writer()))
    assert checkpoints.latest()[0] == 1
    checkpoints.save(2, writer())
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step-000001", "step-000002"]


def test_a_failing_write_leaves_no_trace(checkpoints):
    def fails(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoints.save(1, fails)
    assert list(checkpoints.folder.iterdir()) == []


DAMAGES = {
    "sha256 differs from manifest": lambda f: (f / "model.bin").write_bytes(b"weightz"),
    "3 bytes, manifest says 7": lambda f: (f / "model.bin").write_bytes(b"wei"),
    "model.bin: missing": lambda f: (f / "model.bin").unlink(),
    "extra.bin: not in the manifest": lambda f: (f / "extra.bin").write_bytes(b""),
    "manifest.json: not readable": lambda f: (f / "manifest.json").write_text("{"),
    "altered since it was written": lambda f: (f / "manifest.json").write_text(
        (f / "manifest.json").read_text().replace('"step": 2', '"step": 1')
    ),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_one_is_passed_over_with_its_reason(checkpoints, told, reason):
    first = checkpoints.save(1, writer())
    DAMAGES[reason](checkpoints.save(2, writer()))
    assert checkpoints.latest() == (1, first)
    assert len(told) == 1
    assert told[0].startswith("[CKPT01] ")
    assert told[0].endswith(f"{reason}; skipped, resuming from {first}")


def test_a_passed_over_checkpoint_is_told_once(checkpoints, told):
    (checkpoints.save(1, writer()) / "model.bin").unlink()
    assert checkpoints.latest() is None
    assert checkpoints.latest() is None
    assert len(told) == 1


def test_a_checkpoint_of_a_newer_version_is_refused_and_not_trained_over(checkpoints):
    checkpoints.save(1, writer())
    manifest = checkpoints.save(2, writer()) / "manifest.json"
    content = json.loads(manifest.read_text()) | {"format": FORMAT + 1}
    content["seal"] = sha256_of({key: value for key, value in content.items() if key != "seal"})
    manifest.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"\[CKPT05\] .*step-000002: format 3 of a newer version, this one reads"):
        checkpoints.latest()


def test_one_of_an_earlier_format_is_passed_over_with_its_reason(checkpoints, told):
    manifest = checkpoints.save(1, writer()) / "manifest.json"
    content = json.loads(manifest.read_text()) | {"format": 1}
    content["seal"] = sha256_of({key: value for key, value in content.items() if key != "seal"})
    manifest.write_text(json.dumps(content))
    assert checkpoints.latest() is None
    assert "step-000001: format 1 of an earlier version, this one reads 2; skipped, starting from step 0" in told[0]


def test_the_last_good_one_is_kept_when_a_later_one_is_damaged(tmp_path, told):
    checkpoints = CheckpointManager(tmp_path, keep=1, tell=told.append)
    (checkpoints.save(20, writer()) / "model.bin").write_bytes(b"weightz")  # as long as it was
    path = checkpoints.save(10, writer())
    assert checkpoints.latest() == (10, path)


def test_one_that_is_cut_short_does_not_count_among_those_kept(checkpoints):
    checkpoints.save(1, writer())
    (checkpoints.save(2, writer()) / "model.bin").write_bytes(b"wei")
    checkpoints.save(3, writer())
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step-000001", "step-000002", "step-000003"]
    checkpoints.save(4, writer())
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step-000003", "step-000004"]


def test_every_file_of_a_checkpoint_is_looked_at_for_damage(checkpoints):
    path = checkpoints.save(1, writer())
    (path / "model.bin").unlink()
    (path / "optimizer" / "state.bin").write_bytes(b"")
    (found,) = checkpoints.all()
    assert found.problems == [
        f"{path}/model.bin: missing",
        f"{path}/optimizer/state.bin: 0 bytes, manifest says 7",
    ]
