"""Floating point operations of a traced program: those of its matrix products.

The compiler's own count takes the body of a loop once, however often it runs; here the program is
walked as JAX traced it, with the lengths of its scans. Only matrix products and convolutions count:
everything else together is a few in a thousand of a transformer's arithmetic, and runs elsewhere.
"""

import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval


def matrix_flops(program: ClosedJaxpr) -> int:
    """Counts the operations of all matrix products, two for each multiplication and addition.

    Of alternatives (`jax.lax.cond`) the dearest counts; what no result depends on does not.

    Args:
        program: A traced program, over all devices.

    Returns:
        The number.

    Raises:
        ValueError: if a loop without a known number of turns multiplies matrices.
    """
    live, _ = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    return _of_jaxpr(live)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "pallas_call" and params["cost_estimate"] is not None:
        return params["cost_estimate"].flops  # its loops may be as long as its data say
    inner = [_of_jaxpr(one) for one in _inner(params)]
    match name:
        case "dot_general":
            return _of_product(equation)
        case "conv_general_dilated":
            return _of_convolution(equation)
        case "dot_product_attention_fwd_wrapper":  # cuDNN's, as the following
            return 2 * _of_scores(equation)
        case "dot_product_attention_bwd_wrapper":
            return 5 * _of_scores(equation)
        case "scan":
            return params["length"] * sum(inner)
        case "while" if any(inner):
            raise ValueError(
                "a while loop multiplies matrices and its number of turns is not known before it "
                "runs; use jax.lax.scan"
            )
        case "cond":
            return max(inner)
        case "shard_map":  # its body is what one device does
            return sum(inner) * math.prod(
                params["mesh"].shape[a] for a in params["newly_manual_axes"]
            )
        case "pallas_call":
            return sum(inner) * math.prod(params["grid_mapping"].grid)
    return sum(inner)


def _of_product(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _of_convolution(equation: JaxprEqn) -> int:
    kernel, out = _shape(equation.invars[1]), _shape(equation.outvars[0])
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(out) * math.prod(kernel) // outputs


def _of_scores(equation: JaxprEqn) -> int:
    """The product of queries with keys, both by token."""
    q_BTNH, k_BSNH = (_shape(operand) for operand in equation.invars[:2])
    return 2 * math.prod(q_BTNH) * k_BSNH[1]


def _shape(operand: Any) -> tuple[int, ...]:
    return operand.aval.shape


def _inner(params: dict[str, Any]) -> list[Jaxpr]:
    """The programs that an equation runs."""
    leaves = jax.tree.leaves(
        list(params.values()), is_leaf=lambda one: isinstance(one, Jaxpr | ClosedJaxpr)
    )
    closed = [one for one in leaves if isinstance(one, Jaxpr | ClosedJaxpr)]
    return [one.jaxpr if isinstance(one, ClosedJaxpr) else one for one in closed]
