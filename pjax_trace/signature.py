"""A call without its arrays: what stays the same from update to update."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pjax_trace import _compat
from pjax_trace.errors import InputError
from pjax_trace.pairs import as_complex, is_complex
from pjax_trace.trainable import Leaf, closed, is_array, is_shape, leaves_of, opened

__all__ = [
    "Numbers",
    "Signature",
    "check_alive",
    "mismatch",
    "needs_more",
    "parameters_in",
    "remember",
    "shapes_of",
    "strong",
]

# As many kinds of calls are remembered, to know the next one of a kind at once.
_REMEMBERED = 64


class _Array(NamedTuple):
    """An array argument."""

    shape: tuple[int, ...]
    dtype: Any


class _Static(NamedTuple):
    """An argument that is no array; True, 1 and 1.0 are equal, but not the same program."""

    kind: type
    leaf: Any


Kinds = tuple[_Array | _Static, ...]


def _kind(leaf: Any) -> _Array | _Static:
    """What a leaf is, its elements apart."""
    return _Array(leaf.shape, leaf.dtype) if is_array(leaf) else _Static(type(leaf), leaf)


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
        kinds: Kinds,
        parameters: Mapping[int, Sequence[Leaf]],
        fn: Callable[..., Any],
    ) -> "Signature":
        """Of a call to ``fn``, with the leaves of those arguments that hold parameters."""
        numbered = jax.tree.unflatten(structure, range(len(kinds)))
        arguments = _argument_names(fn, len(numbered[0]))
        own = {n: iter(leaves) for n, leaves in parameters.items()}
        static, names = list[_Static | None](), list[str]()
        moving, fixed = list[int](), list[int]()
        for (path, i), kind in zip(
            jax.tree_util.tree_leaves_with_path(numbered), kinds, strict=True
        ):
            place, number, *inner = path
            positional = place.idx == 0
            root = arguments[number.idx] if positional else number.key
            names.append(root + jax.tree_util.keystr(tuple(inner)))
            if positional and number.idx in own and not next(own[number.idx]).why:
                moving.append(i)
            elif isinstance(kind, _Array):
                fixed.append(i)
            static.append(kind if isinstance(kind, _Static) else None)
        paired = tuple(is_complex(kinds[i]) for i in moving)
        places = tuple(moving), tuple(fixed)
        shapes = shapes_of(parameters)
        return cls(structure, tuple(static), *places, tuple(names), paired, shapes)

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
        # JAX takes NumPy's arrays as they are, but parameters also come back. So do counters.
        return (
            [strong(x) for x in parameters],
            [_counted(x) if is_array(x) else jnp.asarray(x) for x in data],
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
        return closed(jax.tree.unflatten(self.structure, new))

    def said_by(
        self, fn: Callable[..., Any], leaves: Sequence[Any], parameters: Sequence[Any]
    ) -> str:
        """What a function says of its arguments when it is called with their values."""
        args, kwargs = self.replace(leaves, parameters)
        try:
            fn(*args, **kwargs)
        except InputError as error:
            return f". Here: {error}"
        except Exception:  # which is not what the update failed of
            return ""
        return ""


def strong(x: Any) -> Any:
    """A parameter as it comes back: an array of JAX, without a weak type."""
    if is_shape(x) or (isinstance(x, jax.Array) and not x.weak_type):
        return x
    return jnp.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))


def _counted(x: Any) -> Any:
    """Data as they are, but that integers come back in ``info.aux`` without a weak type."""
    weak = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.integer) and x.weak_type
    return strong(x) if weak else x


def _argument_names(fn: Callable[..., Any], count: int) -> list[str]:
    """What the function calls its positional arguments."""
    try:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in inspect.signature(fn).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        names = []
    return [names[i] if i < len(names) else f"args[{i}]" for i in range(count)]


def parameters_in(
    places: Mapping[int, Any], fn: Callable[..., Any], trainable: Mapping[int, Any]
) -> dict[int, list[Leaf]]:
    """The leaves of the arguments that hold parameters, by the numbers of these arguments.

    Args:
        places: the arguments by their numbers.
        fn: the function whose they are.
        trainable: of each, what the user says of it, as `leaves_of` takes it.

    Raises:
        InputError: if there is nothing to solve for, or something that looks like it but cannot
            move.
    """
    names = _argument_names(fn, max(places) + 1)
    found = {n: leaves_of(opened(tree), names[n], trainable[n]) for n, tree in places.items()}
    leaves = [leaf for those in found.values() for leaf in those]
    check_alive([leaf.path for leaf in leaves], [leaf.value for leaf in leaves])
    # An array that is an argument by itself was not meant to stay, if nobody said so.
    bare = [
        leaf
        for n, those in found.items()
        for leaf in those
        if leaf.why and leaf.path == names[n] and trainable[n] is None
    ]
    if bare or all(leaf.why for leaf in leaves):
        why = "; ".join(f"{leaf.path} is {leaf.why}" for leaf in (bare or leaves)[:8])
        raise InputError(
            f"the parameters hold no floating-point array to solve for{why and ': '}{why}. "
            "Projections move real numbers: convert what should move to float32, and pass what "
            "should not as another argument, which is data (argnums says which hold parameters)"
        )
    return found


def shapes_of(parameters: Mapping[int, Sequence[Leaf]]) -> tuple[tuple[str, Any, str], ...]:
    """Path, shape and dtype of every array to solve for."""
    dtype = jax.dtypes.canonicalize_dtype
    return tuple(
        (leaf.path, tuple(leaf.value.shape), dtype(leaf.value.dtype).name)
        for leaves in parameters.values()
        for leaf in leaves
        if not leaf.why
    )


def needs_more(fn: Callable[..., Any], numbers: Sequence[int]) -> bool:
    """Whether a function has other arguments that it may need than those that are solved for."""
    try:
        parameters = [*inspect.signature(fn).parameters.values()]
    except (TypeError, ValueError):
        return True
    return any(
        p.kind is p.VAR_POSITIONAL
        or (i not in numbers and p.default is p.empty and p.kind is not p.VAR_KEYWORD)
        for i, p in enumerate(parameters)
    )


def check_alive(names: Sequence[str], arrays: Sequence[Any]) -> None:
    """Say which array was given away, if one was."""
    for name, tree in zip(names, arrays, strict=True):
        known = (x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
        if any(_compat.is_known(x) and x.is_deleted() for x in known):
            raise InputError(
                f"{name} is gone: its buffer was given to a computation (donate=True, or "
                "donate_argnums of jax.jit). Go on from what that computation returned"
            )


class Numbers:
    """Python numbers among the arguments: part of the program, until one of them changes.

    A number that decides shapes, or the length of a loop, must be known while tracing. One that
    changes from call to call (a step, a rate) must be data, or each call would compile anew. So
    what changes becomes data, if the function can be compiled with it as such. A float that is an
    argument by itself is data at once, as under ``jax.jit``.
    """

    def __init__(self) -> None:
        self._seen: dict[Any, tuple[Sequence[Any], set[int], set[int]]] = {}

    def kinds(
        self, structure: Any, leaves: Sequence[Any], compiles: Callable[[Kinds], bool]
    ) -> Kinds:
        """What each leaf is; ``compiles`` tries what another answer would lead to."""
        kinds = tuple(map(_kind, leaves))
        places = [i for i, leaf in enumerate(leaves) if type(leaf) in (int, float)]
        if not places:
            return kinds
        free = dict(enumerate(kinds))
        free.update((i, _Array((), jnp.result_type(type(leaves[i])))) for i in places)
        like = structure, tuple(free.values()), tuple(type(leaves[i]) for i in places)
        values = [leaves[i] for i in places]
        if like not in self._seen:
            args, kwargs = jax.tree.unflatten(structure, range(len(leaves)))
            alone = (i for i in (*args, *kwargs.values()) if type(i) is int)
            loose = {i for i in alone if type(leaves[i]) is float}
            remember(self._seen, like, (values, loose, set()))
        first, loose, rigid = self._seen[like]

        def freed(those: Collection[int]) -> Kinds:
            return tuple(free[i] if i in those else kind for i, kind in enumerate(kinds))

        for i, before, now in zip(places, first, values, strict=True):
            if before != now and i not in loose and i not in rigid:
                (loose if compiles(freed({*loose, i})) else rigid).add(i)
        return freed(loose)


def remember(cache: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep something by a key; not more than `_REMEMBERED` of them."""
    if len(cache) == _REMEMBERED:
        cache.clear()
    cache[key] = value


def mismatch(method: str, shapes: Any, expected: Any) -> str:
    """What to say to parameters with other `shapes_of` than those of the state."""
    now, then = ({path: rest for path, *rest in them} for them in (shapes, expected))
    for path in dict.fromkeys((*then, *now)):
        if now.get(path) != then.get(path):
            return (
                f"{method}: parameter {path} is {now.get(path, 'missing')}, but was "
                f"{then.get(path, 'missing')} in init; start from a new init(params)"
            )
    return f"{method}: the parameters are not those of init; start from a new init(params)"
