"""A checkpoint is complete or not there, whatever happens while it is written or afterwards."""

import os
from pathlib import Path

import pytest

from pipeline.checkpoints import CheckpointManager


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
    return CheckpointManager(tmp_path / "checkpoints", keep=2, identity={"stage": "ppo"}, tell=told.append)


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
    "no readable manifest.json": lambda f: (f / "manifest.json").write_text("{"),
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


def test_every_flipped_byte_is_found(checkpoints):
    folder = checkpoints.save(1, writer())
    for path in (folder / "model.bin", folder / "manifest.json", folder / "optimizer" / "state.bin"):
        content = path.read_bytes()
        for i in range(0, len(content), max(len(content) // 20, 1)):
            path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
            assert checkpoints.latest() is None, (path.name, i)
        path.write_bytes(content)
    assert checkpoints.latest() == (1, folder)


def test_another_configuration_does_not_resume_from_it(checkpoints, told):
    checkpoints.save(1, writer())
    other = CheckpointManager(checkpoints.folder, keep=2, identity={"stage": "sft"}, tell=told.append)
    assert other.latest() is None
    assert told == [
        f"[CKPT01] {checkpoints.folder}/step-000001: belongs to another configuration; skipped, starting from step 0"
    ]
