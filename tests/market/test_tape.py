"""The tape gives back what was written, from any number on, whatever a crash left behind."""

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from desk_server.tape import Tape, TapeError, seq_of

BYTES_MAX = 120_000


def lines_of(tape: Tape, after: int, size: int = 2000) -> list[bytes]:
    lines = []
    while (piece := tape.read(after, size)) is not None:
        lines += piece.data.splitlines(keepends=True)
        assert seq_of(lines[-1]) == piece.last
        after = piece.last
    return lines


def line(seq: int) -> bytes:
    return b'{"seq":%d,"symbol":"S","x":"%s"}\n' % (seq, b"y" * (seq * 7919 % 90))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A tape of several segments, and its lines."""
    directory = tmp_path_factory.mktemp("tape") / "tape"
    tape = Tape(directory, BYTES_MAX)
    lines = [line(seq) for seq in range(1, 801)]
    for first in range(0, 800, 8):
        tape.append(first + 1, first + 8, b"".join(lines[first : first + 8]))
    tape.close()
    assert len(list(directory.glob("*.jsonl"))) > 2
    return directory, lines


@given(after=st.integers(0, 820), size=st.integers(1, 5000))
def test_reading_from_any_number_gives_exactly_what_follows(written, after, size):
    """Every place to begin and every size of piece give the same lines."""
    directory, lines = written
    tape = Tape(directory, BYTES_MAX)
    try:
        assert lines_of(tape, after, size) == lines[after:]
    finally:
        tape.close()


@given(cut=st.integers(0, 3000), garbage=st.sampled_from([b"", b"\0" * 50, b'{"seq":', b"\n\n"]))
def test_a_broken_end_is_cut_off(written, tmp_path_factory, cut, garbage):
    """Whatever stands behind the last whole line goes; the numbers go on behind it, and nothing else is lost."""
    directory = tmp_path_factory.mktemp("cut") / "tape"
    shutil.copytree(written[0], directory)
    newest = max(directory.glob("*.jsonl"))
    data = newest.read_bytes()
    kept = data[: max(len(data) - cut, 0)]
    newest.write_bytes(kept + garbage)
    first = int(newest.stem)
    whole = 0
    while (kept + garbage).startswith(b"".join(written[1][first - 1 : first + whole])) and first + whole <= 800:
        whole += 1
    tape = Tape(directory, BYTES_MAX)
    assert tape.last_seq == first + whole - 1
    assert lines_of(tape, 0) == written[1][: first + whole - 1]
    tape.append(first + whole, first + whole, line(first + whole))
    assert lines_of(tape, first + whole - 1) == [line(first + whole)]
    tape.close()
    shutil.rmtree(directory.parent)


def test_the_newest_lines_come_oldest_first(written):
    """The tail is the last lines, in order."""
    tape = Tape(written[0], BYTES_MAX)
    assert list(tape.tail(10)) == written[1][-10:]
    assert list(tape.tail(10**6)) == written[1]
    tape.close()


def test_a_directory_that_cannot_be_used_is_said_so(tmp_path):
    """A file where the directory should be stops the desk at start, with a clear message."""
    (tmp_path / "tape").write_text("")
    with pytest.raises(TapeError, match="cannot be used"):
        Tape(tmp_path / "tape", 2**20)
