"""Greedy generation of a family beside PyTorch's, token for token the same."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from comparing import programs
from comparing.case import OURS, Case, Goal, Program, Setting, Side

PROMPT, NEW = 32, 32
AS_TRAINED = "xformer, as trained"


def cases(
    family: str,
    label: str,
    cls: str,
    config_of: Callable[[Setting], Any],
    goals: Mapping[int, Goal],
) -> list[Case]:
    """The cases of a family.

    Args:
        family: Its name.
        label: What the model is called.
        cls: The class that generates.
        config_of: Makes the architecture.
        goals: What shall be reached, by the number of rows.

    Returns:
        A case for each number of rows.
    """
    made = []
    for rows, goal in goals.items():
        given = {"rows": rows, "cls": cls, "config_of": config_of}
        sides = {
            OURS: Side(functools.partial(ours, laid_out=True, **given)),
            AS_TRAINED: Side(functools.partial(ours, laid_out=False, **given)),
            "PyTorch": Side(functools.partial(theirs, **given)),
        }
        made.append(
            Case(
                f"{family}-decode-{rows}",
                f"{label} decode {PROMPT}+{NEW}, batch {rows}",
                sides,
                (goal, Goal(AS_TRAINED)),
                tolerance=0.0,
                note="Greedy; whole calls, prompts included; the limit is that of new tokens. "
                'Kernels of xformer are laid out by `for_decoding("float32")`, which changes no '
                "value, but for the side that has them as they are trained.",
            )
        )
    return made


def settings(setting: Setting) -> dict[str, Any]:
    """The arguments of `generate`; no row ends early."""
    new = setting.size(NEW, 8)
    return {"max_new_tokens": new, "min_new_tokens": new, "num_beams": 1, "do_sample": False}


def prompts(rows: int, vocabulary: int, setting: Setting) -> np.ndarray:
    """Token ids that both are given."""
    return programs.token_ids(rows, setting.size(PROMPT, 8), vocabulary, seed=rows)


def ours(
    setting: Setting, *, rows: int, cls: str, config_of: Callable[[Setting], Any], laid_out: bool
) -> Program:
    """Generation by xformer's drop-in class, which saves the weights where they are laid out."""
    import jax
    from flax import traverse_util

    import xformer

    config = config_of(setting)
    model = getattr(xformer, f"Flax{cls}")(config)
    flat = traverse_util.flatten_dict(model.params)
    each = [leaf for path, leaf in flat.items() if not read_once(path, model.params)]
    new = setting.size(NEW, 8)
    figures = {
        "bytes": float(new * sum(leaf.nbytes for leaf in each)),
        "flops": float(2 * rows * new * sum(leaf.size for leaf in each)),
    }
    if laid_out:
        model.save_pretrained(setting.folder / "weights")
        model = model.for_decoding("float32")
    ids, given = prompts(rows, config.vocab_size, setting), settings(setting)

    def run() -> Any:
        return np.asarray(jax.device_get(model.generate(ids, **given).sequences))

    return Program(run, lambda: {"tokens": run()}, figures)


def read_once(path: tuple[str, ...], params: Mapping[str, Any]) -> bool:
    """Whether a weight is read for the prompt alone, or a few rows of it for every token."""
    lookup_alone = "lm_head" in params and path[0] == "shared"
    of_encoded = "EncDecAttention" in path and path[-2] in ("k", "v")
    return path[0] == "encoder" or lookup_alone or of_encoded


def theirs(
    setting: Setting, *, rows: int, cls: str, config_of: Callable[[Setting], Any]
) -> Program:
    """Generation by PyTorch."""
    import torch

    del config_of  # the saved weights bring it along
    model = programs.torch_model(cls, setting)
    ids = torch.tensor(prompts(rows, model.config.vocab_size, setting)).long().to(model.device)
    mask, given = torch.ones_like(ids), settings(setting)
    return programs.torch_program(
        lambda: model.generate(ids, attention_mask=mask, **given),
        lambda tokens: {"tokens": tokens},
    )
