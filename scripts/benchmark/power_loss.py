"""Power loss on paper: record file operations and what was synced, then rebuild the disk after each of them.

Two disks are rebuilt after every operation. On the cautious one, names that were not synced with their folder are
gone; on the hasty one all names are there, as file systems with a journal may have it, but content that was not
synced is not. The next start of the program must cope with both.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Operation = tuple[str, str, str | bytes]
"""(kind, path, second path or content)."""
WRITING = os.O_WRONLY | os.O_RDWR


@dataclass
class Node:
    """A file's synced content, or a folder's names: as they are, and as they were when it was last synced."""

    content: bytes | None = None
    names: dict[str, "Node"] = field(default_factory=dict)
    synced: dict[str, "Node"] = field(default_factory=dict)
    is_folder: bool = False


def recorded(action: Callable[[Callable[[str], None]], None], disk: Path, trace: Path) -> Path:
    """Run `action(mark)` in a forked process and write its operations below `disk` to `trace`."""
    child = os.fork()
    if child == 0:
        operations: list[Operation] = []
        _record(operations, str(disk))
        action(lambda name: operations.append(("mark", name, "")))
        plain = [[kind, at, other.decode("latin-1") if kind == "sync" else other] for kind, at, other in operations]
        trace.write_text(json.dumps(plain))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return trace


def read_trace(trace: Path) -> list[Operation]:
    """The operations that `recorded` wrote; the third part of a sync is the content, as bytes."""
    plain = json.loads(trace.read_text())
    return [(kind, at, other.encode("latin-1") if kind == "sync" else other) for kind, at, other in plain]


def _record(operations: list[Operation], disk: str) -> None:
    """From now on, append every operation of this process below `disk`."""
    fsync = os.fsync

    def note(kind: str, path: object, other: str | bytes = "", dir_fd: int = -1) -> None:
        at = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fspath(path)) if dir_fd >= 0 else os.fspath(path)
        if isinstance(at, str) and at.startswith(disk):
            operations.append((kind, at, other))

    def audit(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & WRITING:
            note("create", arguments[0])
        elif event == "os.mkdir":
            note("mkdir", arguments[0])
        elif event == "os.rename":
            note("rename", arguments[0], os.fspath(arguments[1]))
        elif event in ("os.remove", "os.rmdir"):
            note("remove", arguments[0], dir_fd=arguments[1])

    def synced(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        fsync(descriptor)
        note("sync", path, b"" if os.path.isdir(path) else Path(path).read_bytes())

    os.fsync = synced
    sys.addaudithook(audit)


def states(operations: list[Operation], disk: Path, replayed: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Rebuild `replayed` as the disk would be after a power cut behind each operation; (its number, mode, marks)."""
    root = Node(is_folder=True)
    marks: list[str] = []
    for number, operation in enumerate(operations):
        if operation[0] == "mark":
            marks.append(operation[1])
        elif Path(operation[1]) != disk or operation[0] == "sync":
            _apply(root, disk, operation)
        for mode in ("cautious", "hasty"):
            shutil.rmtree(replayed, ignore_errors=True)
            _write(root, replayed, mode)
            yield number, mode, marks


def _apply(root: Node, disk: Path, operation: Operation) -> None:
    kind, path, other = operation
    if kind == "sync":
        node = _node(root, Path(path).relative_to(disk).parts)
        node.synced = dict(node.names)
        node.content = None if node.is_folder else other
        return
    *above, name = Path(path).relative_to(disk).parts
    folder = _node(root, above)
    if kind == "create":
        folder.names.setdefault(name, Node())
    elif kind == "mkdir":
        folder.names.setdefault(name, Node(is_folder=True))
    elif kind == "remove":
        folder.names.pop(name, None)
    else:
        *above, new = Path(str(other)).relative_to(disk).parts
        _node(root, above).names[new] = folder.names.pop(name)


def _node(root: Node, parts: list[str] | tuple[str, ...]) -> Node:
    for part in parts:
        root = root.names[part]
    return root


def _write(node: Node, path: Path, mode: str) -> None:
    if not node.is_folder:
        path.write_bytes(node.content or b"")
        return
    path.mkdir()
    for name, child in (node.synced if mode == "cautious" else node.names).items():
        _write(child, path / name, mode)
