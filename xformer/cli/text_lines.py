"""Texts that a command gets, one a line."""

import io
import sys

STANDARD_INPUT = "-"


def read_lines(file: str) -> list[str]:
    r"""Reads the lines of a text.

    A line ends with `\n` or `\r\n`, and with nothing else: not with a lone `\r`, nor with what
    Unicode calls a line separator.

    Args:
        file: The file, UTF-8; "-" is standard input.

    Returns:
        The lines without their ends; none for an empty text.

    Raises:
        OSError: if the file cannot be read.
        ValueError: naming what is not UTF-8.
    """
    try:
        content = _read(file)
    except UnicodeDecodeError as error:
        name = "standard input" if file == STANDARD_INPUT else file
        raise ValueError(f"{name} is not UTF-8 text: {error}") from error
    lines = content.removesuffix("\n").split("\n") if content else []
    return [line.removesuffix("\r") for line in lines]


def _read(file: str) -> str:
    if file != STANDARD_INPUT:
        with open(file, encoding="utf-8", newline="") as stream:
            return stream.read()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", newline="")
    return sys.stdin.read()
