"""Write the hidden states of texts, as text-conditioned models read them, to safetensors.

Of an encoder-decoder only the encoder is read and computed. FILE holds a text a line; "-" is
standard input. Texts of a file are written in parts of --rows: OUT/<file>-00000.safetensors and so
on, each with `last_hidden_state` (texts, length, width), zero at padding, and `attention_mask`
(texts, length). A part appears when it is complete; parts that are there already for the same
texts, model and settings are not computed again.

Example:
  xformer embed models/umt5-xxl prompts.txt -o states --length 512 --tensor 4
"""

import argparse
import glob
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from xformer.cli.run_folder import refuse_run_folder, refuse_several
from xformer.cli.text_lines import STANDARD_INPUT, read_lines
from xformer.files import write_atomic


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments.

    Args:
        parser: The command's parser.
    """
    number: Any = {"type": int, "metavar": "N"}
    parser.add_argument("model", metavar="MODEL", help="a model folder, or a name on the hub")
    parser.add_argument("files", nargs="+", metavar="FILE", help="texts, one a line; - is stdin")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="folder to write to")
    parser.add_argument("--length", **number, default=512, help="tokens of a text (%(default)s)")
    parser.add_argument(
        "--truncate", action="store_true", help="cut longer texts instead of refusing them"
    )
    parser.add_argument("--batch-size", **number, default=16, help="texts at a time (%(default)s)")
    parser.add_argument("--rows", **number, default=1024, help="texts of a part (%(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32", "float16"),
        default="bfloat16",
        help="of weights, computation and states (%(default)s)",
    )
    parser.add_argument("--fsdp", **number, default=1, help="devices that share weights by rows")
    parser.add_argument("--tensor", **number, default=1, help="devices that share every product")
    parser.add_argument("--model-type", metavar="TYPE", help="where config.json names none")


def run(args: argparse.Namespace) -> int:
    """Computes and writes the states.

    Args:
        args: Parsed arguments.

    Returns:
        0.

    Raises:
        FileNotFoundError: if a file or the model is missing.
        ValueError: if MODEL is a run folder, an argument is out of range, or a text is longer than
            --length.
    """
    if args.rows < 1:
        raise ValueError(f"--rows must be at least 1, got {args.rows}")
    refuse_several()
    refuse_run_folder(args.model)
    files = _read(args.files)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    from xformer.partitioning import MeshConfig
    from xformer.pretrained.text_encoder import TextEncoder

    encoder = TextEncoder(
        args.model,
        length=args.length,
        batch_size=args.batch_size,
        dtype=args.dtype,
        mesh=MeshConfig(fsdp=args.fsdp, tensor=args.tensor),
        truncate=args.truncate,
        **({} if args.model_type is None else {"model_type": args.model_type}),
    )
    for name, texts in files.items():
        for number, length in enumerate(encoder.lengths(texts), start=1):
            if length > args.length:
                raise ValueError(
                    f"{name}:{number}: the text has {length} tokens, more than --length "
                    f"{args.length}; give a longer one, or --truncate"
                )
        _check_parts(out, name, -(-len(texts) // args.rows))
    total = sum(map(len, files.values()))
    console = Console(file=sys.stderr)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task("encoding", total=total)
        for name, texts in files.items():
            for part, start in enumerate(range(0, len(texts), args.rows)):
                chosen = texts[start : start + args.rows]
                path = out / f"{name}-{part:05d}.safetensors"
                _write(path, chosen, encoder, _identity(args, encoder, chosen))
                bar.update(line, advance=len(chosen))
    print(f"{out}: {total:,} texts, {args.length} x {encoder.width} {args.dtype} each")
    return 0


def _read(files: Sequence[str]) -> dict[str, list[str]]:
    """The texts of each file, by the name that its parts get."""
    texts: dict[str, list[str]] = {}
    for file in files:
        name = "stdin" if file == STANDARD_INPUT else Path(file).stem
        if name in texts:
            raise ValueError(f"two files are called {name}; their parts would have one name")
        texts[name] = read_lines(file)
        if not texts[name]:
            raise ValueError(f"{file} holds no text")
    return texts


def _check_parts(out: Path, name: str, parts: int) -> None:
    """Refuses parts of another, longer file, which nobody would tell from those of this one."""
    known = {f"{name}-{part:05d}.safetensors" for part in range(parts)}
    for path in sorted(out.glob(f"{glob.escape(name)}-?????.safetensors")):
        if path.name not in known:
            raise FileExistsError(
                f"{path} is no part of the {parts} of {name}; remove it, or give another --out"
            )


def _identity(args: argparse.Namespace, encoder: Any, texts: Sequence[str]) -> dict[str, str]:
    """What decides a part's content."""
    settings = {key: getattr(args, key) for key in ("length", "truncate", "dtype")}
    settings["model"] = encoder.fingerprint
    digest = hashlib.sha256("\n".join(texts).encode())
    return {"settings": json.dumps(settings), "texts_sha256": digest.hexdigest()}


def _write(path: Path, texts: Sequence[str], encoder: Any, identity: dict[str, str]) -> None:
    """Computes a part, unless it is there."""
    import safetensors
    import safetensors.numpy

    if path.exists():
        with safetensors.safe_open(path, framework="numpy") as file:
            if file.metadata() == identity:
                return
        raise FileExistsError(
            f"{path} exists and is of other texts, another model or other settings; remove it, or "
            "give another --out"
        )
    out = encoder(texts)
    arrays = {"last_hidden_state": out.last_hidden_state, "attention_mask": out.attention_mask}
    write_atomic(path, safetensors.numpy.save(arrays, metadata=identity))
