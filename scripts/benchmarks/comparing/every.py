"""All cases, by name."""

from comparing import bigbird, block_attention, kernels, squeezebert, umt5, vocabulary, xglm
from comparing.case import Case

CASES: dict[str, Case] = {
    case.name: case
    for module in (squeezebert, block_attention, bigbird, xglm, umt5, vocabulary, kernels)
    for case in module.CASES
}
FAMILIES = tuple(dict.fromkeys(case.family for case in CASES.values()))
