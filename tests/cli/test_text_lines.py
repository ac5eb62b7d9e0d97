"""What ends a line of the texts that commands read."""

import io

import pytest

from xformer.cli.text_lines import read_lines

CONTENT = b"one\rtwo\r\n\nthree\x0b\xe2\x80\xa8four\n"
LINES = ["one\rtwo", "", "three\x0b\u2028four"]


@pytest.fixture(params=["file", "standard input"])
def read(request, tmp_path, monkeypatch):
    def read(content):
        if request.param == "file":
            (tmp_path / "lines.txt").write_bytes(content)
            return read_lines(str(tmp_path / "lines.txt"))
        stream = io.TextIOWrapper(io.BytesIO(content), encoding="latin-1")
        monkeypatch.setattr("sys.stdin", stream)
        return read_lines("-")

    return read


def test_line_breaks_alone_end_lines(read):
    assert read(CONTENT) == LINES
    assert read(CONTENT.removesuffix(b"\n")) == LINES
    assert read(b"") == [] and read(b"\n") == [""]


def test_what_is_not_utf8_is_refused_by_name(read):
    with pytest.raises(ValueError, match=r"(lines\.txt|standard input) is not UTF-8 text: "):
        read(b"\xff\xfe")
