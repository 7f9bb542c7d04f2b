"""Everything that differs between JAX versions, and the only import of ``jax.extend``."""

import functools
import os
import sysconfig
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox
import jax
import jax.extend.core as jex_core
import jax.extend.core.primitives as primitives
import jax.numpy as jnp
from jax.core import ShapedArray, Tracer, eval_jaxpr
from jax.interpreters import ad, batching, mlir, partial_eval

__all__ = [
    "Literal",
    "Primitive",
    "add_any_p",
    "bind",
    "call_body",
    "calls_out",
    "enable_x64",
    "linear_solve_p",
    "is_known",
    "Scan",
    "loop_body",
    "loop_kind",
    "scan_parts",
    "new_primitive",
    "own_function",
    "promoted",
    "ragged_dot_p",
    "run_jaxpr",
    "select_and_gather_add_p",
    "select_and_scatter_add_p",
    "source_line",
    "source_scope",
    "used_inputs",
    "While",
    "while_parts",
]

Primitive = jex_core.Primitive
Literal = jex_core.Literal

enable_x64 = jax.enable_x64
# Of primitives that ``jax.lax`` does not export.
add_any_p = primitives.add_jaxvals_p
linear_solve_p = primitives.linear_solve_p
select_and_gather_add_p = primitives.select_and_gather_add_p
select_and_scatter_add_p = primitives.select_and_scatter_add_p
# JAX does not export it.
ragged_dot_p = (
    jax.make_jaxpr(jax.lax.ragged_dot)(
        jax.ShapeDtypeStruct((1, 1), jnp.float32),
        jax.ShapeDtypeStruct((1, 1, 1), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    .eqns[0]
    .primitive
)

# The parameter that holds the body of each call-like primitive.
_CALLS: dict[Any, str] = {
    primitives.jit_p: "jaxpr",
    primitives.remat_p: "jaxpr",
    primitives.closed_call_p: "call_jaxpr",
    primitives.custom_jvp_call_p: "call_jaxpr",
    primitives.custom_vjp_call_p: "call_jaxpr",
}

_LOOPS: dict[Any, str] = {
    primitives.while_p: "while",
    primitives.scan_p: "scan",
    primitives.cond_p: "cond",
}


def promoted(*dtypes: Any) -> Any:
    """The dtype that holds all these, also where the user allows no promotion in their code."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


# The functions behind primitives of our own.
_OWN: dict[Any, Callable[..., list[Any]]] = {}


def _folders(*paths: str) -> tuple[str, ...]:
    return tuple(os.path.join(os.path.abspath(path), "") for path in paths)


# Frames of these are never the user's own line, and of what is installed only if no other is. What
# called the tracer is no part of the function that is traced.
_TRACING = _folders(*(os.path.dirname(file) for file in (jax.__file__, equinox.__file__, __file__)))
_INSTALLED = _folders(*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
_TRACER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "trace.py")


def call_body(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """The jaxpr and constants of a call to inline, or None if ``eqn`` is no call."""
    name = _CALLS.get(eqn.primitive)
    if name is None:
        return None
    body = eqn.params[name]
    # An open jaxpr (remat) has no constants; from JAX 0.11 `.jaxpr` of a jaxpr is itself.
    return body.jaxpr if hasattr(body, "jaxpr") else body, getattr(body, "consts", ())


def loop_kind(primitive: Any) -> str | None:
    """``"while"``, ``"scan"`` or ``"cond"`` for control flow, else None."""
    return _LOOPS.get(primitive)


def loop_body(eqn: Any) -> tuple[Any, int | None] | None:
    """The closed body of a loop or a solve and how often it runs, None if open; else None."""
    kind = loop_kind(eqn.primitive)
    if eqn.primitive is primitives.linear_solve_p:
        return eqn.params["jaxprs"].solve, 1
    if kind == "scan":
        return eqn.params["jaxpr"], int(eqn.params["length"])
    return (eqn.params["body_jaxpr"], None) if kind == "while" else None


def own_function(eqn: Any) -> Callable[..., list[Any]] | None:
    """What an equation of a `new_primitive` does, as a function of its operands; else None."""
    function = _OWN.get(eqn.primitive)
    return None if function is None else functools.partial(function, **eqn.params)


class Scan(NamedTuple):
    """The parts of a scan: its closed body, and how many of its operands are what."""

    body: Any
    consts: int
    carries: int
    length: int
    reverse: bool


@functools.cache
def _pure_callback() -> Any:
    """The primitive of `jax.pure_callback`, which has no public name."""
    shape = jax.ShapeDtypeStruct((), "float32")
    return jax.make_jaxpr(lambda: jax.pure_callback(float, shape))().eqns[0].primitive


def calls_out(eqn: Any) -> bool:
    """Whether an equation calls Python while it runs, or has another effect; or one in it does."""
    if eqn.effects or eqn.primitive is _pure_callback():
        return True
    parts = [x for p in eqn.params.values() for x in (p if isinstance(p, (tuple, list)) else (p,))]
    bodies = (getattr(part, "jaxpr", part) for part in parts)
    return any(calls_out(e) for body in bodies for e in getattr(body, "eqns", ()))


def scan_parts(eqn: Any) -> Scan:
    """What a scan equation says."""
    params = eqn.params
    if "num_consts" in params:
        consts, carries = params["num_consts"], params["num_carry"]
    else:  # from JAX 0.11
        consts, carries, _ = (len(group) for group in params["ft_in"].unpack())
    return Scan(params["jaxpr"], consts, carries, int(params["length"]), bool(params["reverse"]))


class While(NamedTuple):
    """The parts of a while loop: closed condition and body, and how many constants each has."""

    condition: Any
    body: Any
    condition_consts: int
    body_consts: int


def while_parts(eqn: Any) -> While:
    """What a while equation says."""
    params = eqn.params
    names = ("cond_jaxpr", "body_jaxpr", "cond_nconsts", "body_nconsts")
    return While(*(params[name] for name in names))


def used_inputs(closed: Any, outputs: Sequence[bool]) -> list[bool]:
    """Which inputs of a closed jaxpr some of its outputs depend on."""
    return list(partial_eval.dce_jaxpr(closed.jaxpr, list(outputs))[1])


def run_jaxpr(closed: Any, *operands: Any) -> list[Any]:
    """Evaluate a closed jaxpr; traced again, its equations keep their source lines."""
    return eval_jaxpr(closed.jaxpr, closed.consts, *operands)


def loop_predicates(eqn: Any) -> tuple[int, ...]:
    """Which operands of a control-flow equation decide how it runs."""
    kind = loop_kind(eqn.primitive)
    if kind == "cond":
        return (0,)
    if kind == "while":
        condition = eqn.params["cond_jaxpr"].jaxpr
        atoms = [a for e in condition.eqns for a in e.invars] + list(condition.outvars)
        read = {a for a in atoms if not isinstance(a, Literal)}
        own, body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        positions = [i for i, var in enumerate(condition.invars) if var in read]
        return tuple(i if i < own else i + body for i in positions)
    return ()


def bind(primitive: Any, params: dict[str, Any], *operands: Any) -> list[Any]:
    """Evaluate one equation; always a list of outputs."""
    out = primitive.bind(*operands, **primitive.get_bind_params(params))
    return list(out) if primitive.multiple_results else [out]


def is_known(x: Any) -> bool:
    """Whether a value is known while tracing."""
    return not isinstance(x, Tracer)


def source_line(eqn: Any, outer: str = "") -> str:
    """``file.py:16 (function)`` of the innermost frame that is the user's own.

    If there is none it is ``outer``, where the equation was called from: the body of a cached
    ``jit`` has frames of its first trace only, up to that ``jit``. Else it is a line of an
    installed library, ``""`` if there is none.
    """
    traceback = eqn.source_info.traceback
    frames = traceback.frames if traceback is not None else ()
    called = [i for i, frame in enumerate(frames) if frame.file_name == _TRACER]
    frames = frames[: max(called, default=len(frames))]
    outside = [frame for frame in frames if not frame.file_name.startswith(_TRACING)]
    own = [frame for frame in outside if not frame.file_name.startswith(_INSTALLED)]
    if not own and (outer or not outside):
        return outer
    frame = (own or outside)[0]
    return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"


def source_scope(eqn: Any) -> str:
    """The ``jax.named_scope`` stack around an equation, ``""`` outside any."""
    scopes = str(eqn.source_info.name_stack).split("/")
    return "/".join(name for name in scopes if name != "vmap()")  # a lifted body is the user's own


def new_primitive(
    name: str,
    *,
    implementation: Callable[..., list[Any]],
    batch: Callable[..., tuple[Sequence[Any], dict[str, Any]]],
) -> Primitive:
    """A primitive that is an ordinary JAX function to all of JAX, and visible in the jaxpr.

    Args:
        name: the primitive's name.
        implementation: ``(*operands, **params) -> list of outputs``, written in JAX. Evaluation,
            shapes, lowering and derivatives all follow from it.
        batch: ``(operands, axes, params) -> (operands, params)``, those of the primitive that does
            the same for a batch, whose outputs have it in front; an axis is None if there is none.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True
    _OWN[primitive] = implementation

    def jvp(primals: Any, tangents: Any, **params: Any) -> Any:
        tangents = [ad.instantiate_zeros(t) for t in tangents]
        return jax.jvp(functools.partial(implementation, **params), list(primals), tangents)

    def abstract(*avals: Any, **params: Any) -> Any:
        shapes = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals)
        outputs = jax.eval_shape(functools.partial(implementation, **params), *shapes)
        return [ShapedArray(s.shape, s.dtype) for s in outputs]

    def batcher(operands: Any, dims: Any, **params: Any) -> tuple[list[Any], list[int]]:
        axes = tuple(d if isinstance(d, int) else None for d in dims)
        operands, params = batch(operands, axes, params)
        outs = primitive.bind(*operands, **params)
        return outs, [0] * len(outs)

    primitive.def_impl(implementation)
    primitive.def_abstract_eval(abstract)
    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = batcher
    mlir.register_lowering(primitive, mlir.lower_fun(implementation, multiple_results=True))
    return primitive
