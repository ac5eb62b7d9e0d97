#!/usr/bin/env python
"""Send a model to transformers (PyTorch) and back, and measure what that takes.

For each class: random weights are saved by xformer, loaded and saved again by transformers, and
loaded by xformer. The tensors must come back bit for bit, and both must compute the same outputs.
Every stage runs in a process of its own, so that its peak memory is its own.

The default is XGLM-564M: about 2.3 GB of float32 in a folder, two folders at a time, and minutes
on two cores. Needs requirements/reference.txt.

Examples:
  .venv/bin/python scripts/benchmarks/roundtrip.py
  .venv/bin/python scripts/benchmarks/roundtrip.py --set num_layers=2 d_model=64 vocab_size=1000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLASSES = ("XGLMModel", "XGLMForCausalLM")
LOADS = (("loop", 1), ("scan", 1), ("loop", 8), ("scan", 8))  # layer mode, devices
ROWS, LENGTH = 2, 32


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=N", help="sizes of XGLMConfig to change"
    )
    parser.add_argument("--scratch", help="where the folders go (the system's temporary folder)")
    for name in ("stage", "cls", "layers"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)  # how a stage is called
    parser.add_argument("--devices", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Runs every stage in its process and prints what it took."""
    args = parse_arguments()
    if args.stage:
        print(json.dumps(STAGES[args.stage](args)))
        return
    print(f"{'model':16} {'stage':28} {'seconds':>8} {'peak GB':>8} {'over start':>10}")
    for cls in CLASSES:
        with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
            options = ["--cls", cls, "--scratch", scratch, "--set", *args.set]
            show(cls, "xformer saves", call("save", options))
            show(cls, "transformers", call("transformers", options))
            for layers, devices in LOADS:
                more = ["--layers", layers, "--devices", str(devices)]
                taken = call("load", options + more, devices)
                show(cls, f"xformer loads, {layers}, {devices} dev.", taken)
            compared = call("compare", options)
            print(f"{cls:16} {compared['bytes'] / 1e9:.3f} GB of weights, {compared['equality']}")


def call(stage: str, options: list[str], devices: int = 1) -> dict:
    """Runs one stage; what it printed last is its result."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, __file__, "--stage", stage, *options]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def show(cls: str, what: str, taken: dict) -> None:
    """Prints a line of the table."""
    over = taken["peak"] - taken["start"]
    print(
        f"{cls:16} {what:28} {taken['seconds']:8.1f} {taken['peak']:8.2f} {over:10.2f}", flush=True
    )


class Measured:
    """Times a block and reads the highest memory of the process up to its end."""

    def __enter__(self) -> "Measured":
        """Starts the clock, and the high-water mark anew."""
        Path("/proc/self/clear_refs").write_text("5")
        self.result = {"start": memory("VmRSS")}
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops it."""
        self.result |= {"seconds": time.perf_counter() - self._began, "peak": memory("VmHWM")}


def memory(field: str) -> float:
    """A line of this process's status, in GB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024 / 1e9


def ours(args: argparse.Namespace) -> Path:
    """The folder that xformer saves."""
    return Path(args.scratch) / "ours"


def theirs(args: argparse.Namespace) -> Path:
    """The folder that transformers saves."""
    return Path(args.scratch) / "theirs"


def model_of(args: argparse.Namespace, layers: str = "loop"):
    """The config, the head and the module that the arguments describe."""
    from xformer.layers.execution import Execution
    from xformer.layers.heads import Base, CausalLM
    from xformer.models import build
    from xformer.models.xglm import XGLMConfig

    config = XGLMConfig(**{key: int(value) for key, value in (one.split("=") for one in args.set)})
    head = {"XGLMModel": Base, "XGLMForCausalLM": CausalLM}[args.cls]()
    return config, head, build(config, head, Execution(layers=layers))


def token_ids(config):
    """The same ids for everyone."""
    import numpy as np

    return np.random.default_rng(0).integers(3, config.vocab_size, (ROWS, LENGTH))


def save(args: argparse.Namespace) -> dict:
    """Draws weights and saves them."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax.core import meta

    from xformer.pretrained.saving import save_params
    from xformer.pretrained.xglm import WEIGHTS

    config, _, module = model_of(args)
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), ids))["params"]
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape, leaf.dtype) / 50), shapes)
    fields = config.to_dict() | {"architectures": [args.cls]}
    with Measured() as measured:
        save_params(ours(args), params, WEIGHTS, files={"config.json": json.dumps(fields).encode()})
    return measured.result


def transformers(args: argparse.Namespace) -> dict:
    """Loads what xformer saved, computes the outputs, and saves it again."""
    import numpy as np
    import torch
    import transformers

    config, _, _ = model_of(args)
    with Measured() as measured:
        model, info = getattr(transformers, args.cls).from_pretrained(
            ours(args), output_loading_info=True
        )
        model.save_pretrained(theirs(args))
    if found := {key: value for key, value in info.items() if value}:
        raise SystemExit(f"transformers did not load everything: {found}")
    with torch.no_grad():
        output = model.eval()(torch.tensor(token_ids(config)))
    np.save(theirs(args) / "expected.npy", output[0].numpy())
    return measured.result


def load(args: argparse.Namespace) -> dict:
    """Loads what transformers saved, whole or onto a mesh."""
    import jax
    import jax.numpy as jnp
    from flax.core import meta

    from xformer import partitioning
    from xformer.partitioning import MeshConfig, Rules
    from xformer.pretrained.folder import read_params

    config, head, module = model_of(args, args.layers)
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    boxed = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
    mesh = partitioning.make_mesh(MeshConfig(data=1, fsdp=args.devices))
    names = partitioning.axis_names(boxed)
    places = partitioning.shardings(meta.unbox(boxed), names, mesh, Rules())
    with Measured() as measured:
        params = read_params(
            theirs(args),
            config,
            head,
            execution=module.execution,
            shardings=places if args.devices > 1 else None,
        )
        jax.block_until_ready(params)
    return measured.result


def compare(args: argparse.Namespace) -> dict:
    """Compares the tensors of both folders, and both models' outputs."""
    import jax
    import numpy as np

    from xformer.hub import open_source
    from xformer.pretrained.folder import read_params
    from xformer.pretrained.reading import open_weights

    first, second = (open_weights(open_source(folder)) for folder in (ours(args), theirs(args)))
    identical = first.names == second.names and all(
        first.read(name).tobytes() == second.read(name).tobytes() for name in first.names
    )
    config, head, module = model_of(args)
    params = read_params(theirs(args), config, head)
    output = jax.jit(module.apply)({"params": params}, token_ids(config))
    expected = np.load(theirs(args) / "expected.npy")
    off = np.abs(np.asarray(output[0]) - expected).max() / np.abs(expected).max()
    sizes = [np.prod(form.shape) * form.dtype.itemsize for form in first.names.values()]
    kept = "bit-identical" if identical else "NOT IDENTICAL"
    equality = f"{len(sizes)} tensors {kept}; outputs differ by {off:.1e} of the largest"
    return {"bytes": int(sum(sizes)), "equality": equality}


STAGES = {"save": save, "transformers": transformers, "load": load, "compare": compare}

if __name__ == "__main__":
    main()
