"""Which hostfiles are taken, and what is said of each line that is not."""

from pathlib import Path

import pytest

from pipeline.hostfile import Host, read_hostfile
from stages.base import InputError

FIX = "; fix: write one `<host> slots=<processes>` per line"


def write(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text)
    return path


def test_hosts_keep_their_order_and_their_lines(tmp_path: Path):
    text = "\ufeff# two machines\n\ngpu02 slots=8   # the faster one\r\n\t10.0.0.7 slots=4\n"
    assert read_hostfile(write(tmp_path, text)) == (Host("gpu02", 8, 3), Host("10.0.0.7", 4, 4))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gpu01", "found no slots, expected slots=<n>"),
        ("gpu01 slots=0", "found 'slots=0', expected slots=<n> with a whole number of at least 1"),
        ("gpu01 slots=2x", "found 'slots=2x', expected slots=<n> with a whole number of at least 1"),
        ("gpu01 slots=-1", "found 'slots=-1', expected slots=<n> with a whole number of at least 1"),
        ("gpu01 slots=", "found 'slots=', expected slots=<n> with a whole number of at least 1"),
        ("gpu01 lots=4", "found 'lots=4', expected slots=<n> with a whole number of at least 1"),
        ("gpu01 slots = 4", "found 'slots = 4' after the host, expected slots=<n>"),
        ("gpu01 slots=4 max_slots=8", "found 'slots=4 max_slots=8' after the host, expected slots=<n>"),
        ("-oProxyCommand=id slots=1", "found host '-oProxyCommand=id', expected a host name or address"),
        ("a;b slots=1", "found host 'a;b', expected a host name or address"),
    ],
)
def test_a_malformed_line_is_told_with_its_place(tmp_path: Path, line: str, said: str):
    path = write(tmp_path, f"gpu00 slots=1\n{line}\n")
    with pytest.raises(InputError) as told:
        read_hostfile(path)
    assert str(told.value) == f"[NODE01] {path}:2 {line!r}: {said}{FIX}"


def test_all_malformed_lines_are_told_together(tmp_path: Path):
    path = write(tmp_path, "a slots=0\nb slots=1\nc\nb slots=2\n")
    with pytest.raises(InputError) as told:
        read_hostfile(path)
    places = [line.split(" ")[1] for line in str(told.value).splitlines()]
    assert places == [f"{path}:1", f"{path}:3", f"{path}:4"]
    assert "'b': already named in line 2" in str(told.value)


@pytest.mark.parametrize("text", ["", "\n\n", "# gpu01 slots=4\n"])
def test_a_file_without_a_host_is_no_hostfile(tmp_path: Path, text: str):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match="names no host"):
        read_hostfile(path)


def test_a_missing_file_is_told_with_the_nearest_one(tmp_path: Path):
    write(tmp_path, "a slots=1\n")
    with pytest.raises(InputError) as told:
        read_hostfile(tmp_path / "host")
    assert str(told.value) == f"[NODE02] hostfile: no file '{tmp_path}/host'; fix: did you mean {tmp_path}/hosts?"
