"""Entry point of the command line: finds the command, runs it, turns errors into exit codes.

A command is a module with `add_arguments(parser)` and `run(args) -> int`; its docstring is its
help. It is imported when it is asked for, so that `xformer --help` loads nothing heavy.
"""

import argparse
import difflib
import importlib
import os
import select
import sys
from collections.abc import Sequence
from types import ModuleType

import xformer
from xformer.cli import huge_pages
from xformer.files import check_mounted

# Command -> (module, one line of help)
COMMANDS = {
    "prepare": ("xformer.cli.prepare", "tokenize and pack a corpus for training"),
    "tokenizer": ("xformer.cli.tokenizer", "train a tokenizer on a corpus"),
    "train": ("xformer.cli.train", "pretrain or finetune, or go on with it, from a gin file"),
    "eval": (
        "xformer.cli.evaluate",
        "score a run's checkpoint on its validation data or on others",
    ),
    "predict": ("xformer.cli.predict", "write a run's predictions for the rows of files"),
    "generate": ("xformer.cli.generate", "continue prompts with a run's model"),
    "embed": ("xformer.cli.embed", "write the hidden states of texts, from a model folder"),
    "export": ("xformer.cli.export", "write a run's model as a folder that transformers loads"),
    "convert": ("xformer.cli.convert", "make a model folder of a T5X or PyTorch checkpoint"),
    "report": ("xformer.cli.report", "write a run's report: one page with curves and samples"),
    "plan": (
        "xformer.cli.plan",
        "say what a run needs of a TPU topology, before paying for it",
    ),
    "show-config": (
        "xformer.cli.show_config",
        "print what a gin file comes to, without running it",
    ),
}

COMPILING = {"train", "eval", "predict", "generate", "embed"}
"""The commands that run what JAX has compiled."""

EXIT_CODES = """exit codes:
  0    done
  2    bad input: the message says what to change
  75   preempted and saved: run the same command again to go on
  130  interrupted from the keyboard
  1    anything else"""


def run_process() -> int:
    """Runs the command that this process was started for, and returns its exit code."""
    return main(is_process=True)


def main(argv: Sequence[str] | None = None, *, is_process: bool = False) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name, or None for the process's own.
        is_process: Whether the process is there for this alone, and may be started again.

    Returns:
        Exit code, as `EXIT_CODES` says.

    Raises:
        BrokenPipeError: if another pipe than stdout broke.
        KeyboardInterrupt: with `--debug`, as those below.
        ModuleNotFoundError: an extra is not installed.
        OSError: what could not be read or written.
        ValueError: bad input.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        code = _dispatch([one for one in arguments if one != "--debug"], is_process)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        if debug:
            raise
        return _complain("interrupted", 130)
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        return 1
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if debug:
            raise
        return _complain(f"error: {_message(error)}", 2)


def _dispatch(arguments: list[str], is_process: bool) -> int:
    at = next((i for i, one in enumerate(arguments) if not one.startswith("-")), len(arguments))
    parser = _program_parser()
    parser.parse_args(arguments[:at])
    if at == len(arguments):
        parser.print_help()
        return 2
    command, rest = arguments[at], arguments[at + 1 :]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}"
        raise ValueError(f"there is no command {command!r}; {hint}")
    module = importlib.import_module(COMMANDS[command][0])
    parsed = _parse(command, module, rest)
    if command in COMPILING:
        if is_process:
            huge_pages.use()
        importlib.import_module("xformer.cli.compiled_programs").keep()
    return module.run(parsed)


def _program_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="xformer",
        usage="xformer [--help] [--version] COMMAND ...",
        description="Pretrain and use transformers in JAX, from readable gin files.",
        epilog=f"commands:\n{listed}\n\n`xformer COMMAND --help` shows an example.\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"xformer {xformer.__version__}")
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error (also after COMMAND)"
    )
    return parser


def _parse(command: str, module: ModuleType, arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"xformer {command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    gin_bindings = [one.removeprefix("--gin.") for one in arguments if one.startswith("--gin.")]
    parsed = parser.parse_args([one for one in arguments if not one.startswith("--gin.")])
    if gin_bindings and not hasattr(parsed, "gin_bindings"):
        parser.error(f"--gin.{gin_bindings[0]}: this command takes no gin bindings")
    if gin_bindings:
        parsed.gin_bindings = gin_bindings
    for name in ("run", "out"):
        check_mounted(getattr(parsed, name, None) or "", name.upper())
    return parsed


def add_gin_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a command `--gin_file` and `--gin.KEY=VALUE`.

    The parsed arguments then have `gin_file` and `gin_bindings`, a list of "KEY=VALUE", as
    `xformer.configurables.load` takes them.

    Args:
        parser: The command's parser.
    """
    parser.add_argument("--gin_file", required=True, metavar="FILE", help="run file to read")
    # `main` takes these out before argparse sees them: their names are open-ended.
    group = parser.add_argument_group("bindings")
    group.description = (
        "--gin.KEY=VALUE  bind a value, before those of the file; may be repeated\n"
        "                 a string needs quotes: --gin.Run.folder='\"runs/second\"'"
    )
    parser.set_defaults(gin_bindings=[])


def _complain(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def _message(error: ValueError | OSError | ModuleNotFoundError) -> str:
    """Returns what an error says, without the errno that Python puts in front."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _stdout_is_closed() -> bool:
    """Tells whether the reader of stdout has gone, as in `xformer ... | head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(state & (select.POLLERR | select.POLLHUP) for _, state in poll.poll(0)):
        return False
    # Python flushes once more at exit; that must not fail too.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


if __name__ == "__main__":
    sys.exit(run_process())
