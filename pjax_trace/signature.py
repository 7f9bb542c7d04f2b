"""A call without its arrays: what stays the same from update to update."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pjax_trace.errors import InputError
from pjax_trace.pairs import as_complex, is_complex

__all__ = [
    "Signature",
    "check_parameters",
    "is_moving",
    "is_shape",
    "kind_of",
    "mismatch",
    "shapes_of",
]


class _Array(NamedTuple):
    """An array argument."""

    shape: tuple[int, ...]
    dtype: Any


class _Static(NamedTuple):
    """An argument that is no array; True, 1 and 1.0 are equal, but not the same program."""

    kind: type
    leaf: Any


def kind_of(leaf: Any) -> _Array | _Static:
    """What a leaf is, its elements apart."""
    return _Array(leaf.shape, leaf.dtype) if _is_array(leaf) else _Static(type(leaf), leaf)


@dataclasses.dataclass(frozen=True)
class Signature:
    """A call with its arrays taken out: hashable, so that each kind of call compiles once.

    Attributes:
        structure: of ``(args, kwargs)``.
        static: the arguments that are no arrays; None for those that are.
        moving: which leaves are parameters.
        fixed: which are data.
        names: of all leaves.
        complex: which parameters hold complex numbers, and are pairs of reals in the program.
        shapes: `shapes_of` the parameters; no part of what the call is.
    """

    structure: Any
    static: tuple[_Static | None, ...]
    moving: tuple[int, ...]
    fixed: tuple[int, ...]
    names: tuple[str, ...]
    complex: tuple[bool, ...]
    shapes: Any = dataclasses.field(compare=False)

    @classmethod
    def of(
        cls,
        structure: Any,
        kinds: Sequence[_Array | _Static],
        argnums: Collection[int],
        params: Any,
        fn: Callable[..., Any],
    ) -> "Signature":
        """Of a call to ``fn``, whose parameters are in the arguments ``argnums``."""
        check_parameters(params)
        numbered = jax.tree.unflatten(structure, range(len(kinds)))
        arguments = _argument_names(fn, len(numbered[0]))
        static, names = list[_Static | None](), list[str]()
        moving, fixed = list[int](), list[int]()
        for (path, i), kind in zip(
            jax.tree_util.tree_leaves_with_path(numbered), kinds, strict=True
        ):
            place, number, *inner = path
            positional = place.idx == 0
            root = arguments[number.idx] if positional else number.key
            names.append(root + jax.tree_util.keystr(tuple(inner)))
            own = positional and number.idx in argnums
            # A number that is an argument by itself is data, as under jax.jit.
            number_alone = isinstance(kind, _Static) and kind.kind is float and not inner
            if own and isinstance(kind, _Array) and jnp.issubdtype(kind.dtype, jnp.inexact):
                moving.append(i)
            elif isinstance(kind, _Array) or number_alone:
                fixed.append(i)
            static.append(kind if isinstance(kind, _Static) and not number_alone else None)
        paired = tuple(is_complex(kinds[i]) for i in moving)
        tuples = map(tuple, (static, moving, fixed, names))
        return cls(structure, *tuples, paired, shapes_of(params))

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.structure, self.static, self.moving, self.names))

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return tuple(self.names[i] for i in self.moving)

    @property
    def data_names(self) -> tuple[str, ...]:
        """Of the data."""
        return tuple(self.names[i] for i in self.fixed)

    def arrays(self, leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Those to solve for, and data."""
        parameters, data = [leaves[i] for i in self.moving], [leaves[i] for i in self.fixed]
        # JAX takes NumPy's arrays as they are, but parameters also come back.
        return (
            [x if eqx.is_array(x) or is_shape(x) else jnp.asarray(x) for x in parameters],
            [x if _is_array(x) else jnp.asarray(x) for x in data],
        )

    def rebuild(self, parameters: Sequence[Any], data: Sequence[Any]) -> tuple[tuple, dict]:
        """The arguments, from real arrays of the parameters and from data."""
        leaves: list[Any] = [None if s is None else s.leaf for s in self.static]
        for i, x in zip(self.fixed, data, strict=True):
            leaves[i] = x
        return self.replace(leaves, self.joined(parameters))

    def joined(self, parameters: Sequence[Any]) -> list[Any]:
        """Parameters as the function takes them, from real arrays."""
        return [as_complex(x) if c else x for x, c in zip(parameters, self.complex, strict=True)]

    def replace(self, leaves: Sequence[Any], parameters: Sequence[Any]) -> tuple[tuple, dict]:
        """The arguments of these leaves, with other parameters."""
        new = list(leaves)
        for i, x in zip(self.moving, parameters, strict=True):
            new[i] = x
        return jax.tree.unflatten(self.structure, new)


def is_shape(leaf: Any) -> bool:
    """Whether a leaf stands for an array, as for `jax.eval_shape`."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or is_shape(leaf) or isinstance(leaf, (np.ndarray, np.generic))


def is_moving(leaf: Any) -> bool:
    """Whether a leaf of the parameters is one to solve for."""
    return _is_array(leaf) and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _argument_names(fn: Callable[..., Any], count: int) -> list[str]:
    """What the function calls its positional arguments."""
    try:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in inspect.signature(fn).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        names = []
    return [names[i] if i < len(names) else f"args[{i}]" for i in range(count)]


def check_parameters(params: Any) -> None:
    """Something to solve for, and nothing that looks like it but cannot move."""
    leaves = jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda node: isinstance(node, eqx.Module)
    )
    for path, leaf in leaves:
        if isinstance(leaf, eqx.Module):
            continue  # modules carry integers and flags of their own, which are data
        if isinstance(leaf, (bool, int)) or (
            eqx.is_array_like(leaf) and not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        ):
            raise InputError(
                f"parameter params{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}: "
                "projections move floating-point numbers; convert it to float32, or pass it as "
                "another argument, which is data"
            )
    if not any(map(is_moving, jax.tree.leaves(params))):
        raise InputError(
            "the parameters hold no floating-point array, so there is nothing to solve for"
        )


def shapes_of(params: Any) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """Path, shape and dtype of every array to solve for."""
    moving = eqx.filter(params, is_moving)
    dtype = jax.dtypes.canonicalize_dtype
    return tuple(
        (jax.tree_util.keystr(path), tuple(leaf.shape), dtype(leaf.dtype).name)
        for path, leaf in jax.tree_util.tree_leaves_with_path(moving)
    )


def mismatch(method: str, shapes: Any, expected: Any) -> str:
    """What to say to parameters with other `shapes_of` than those of the state."""
    now, then = ({path: rest for path, *rest in them} for them in (shapes, expected))
    for path in dict.fromkeys((*then, *now)):
        if now.get(path) != then.get(path):
            return (
                f"{method}: parameter params{path} is {now.get(path, 'missing')}, but was "
                f"{then.get(path, 'missing')} in init; start from a new init(params)"
            )
    return f"{method}: the parameters are not those of init; start from a new init(params)"
