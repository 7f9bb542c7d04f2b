"""Which leaves of the parameters move, and which stay as they are.

Floating-point arrays move; integers, keys and whatever is no array stay. Libraries say more of
theirs: of a Flax NNX module only an `nnx.Param` moves, and an `equinox.nn.State` stays. The user
says the rest, by ``trainable``. Flax is no dependency: a value can be of its types only where it
has been imported.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pjax_trace.errors import InputError

__all__ = ["Leaf", "closed", "is_array", "is_shape", "leaves_of", "opened"]

Trainable = Callable[[str, jax.ShapeDtypeStruct], bool] | Any


def is_shape(leaf: Any) -> bool:
    """Whether a leaf stands for an array, as for `jax.eval_shape`."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of JAX or NumPy, or stands for one."""
    return eqx.is_array(leaf) or is_shape(leaf) or isinstance(leaf, (np.ndarray, np.generic))


def _nnx() -> Any:
    """Flax NNX, if anybody has imported it."""
    return sys.modules.get("flax.nnx")


@jax.tree_util.register_pytree_with_keys_class
class _Opened:
    """An NNX module as a pytree: each variable once, however often the module refers to it."""

    def __init__(self, definition: Any, names: tuple[str, ...], variables: tuple[Any, ...]):
        self.definition = definition
        self.names = names
        self.variables = variables

    def tree_flatten_with_keys(self) -> Any:
        keyed = tuple(zip(map(_Name, self.names), self.variables, strict=True))
        return keyed, (self.definition, self.names)

    @classmethod
    def tree_unflatten(cls, parts: Any, variables: Any) -> "_Opened":
        definition, names = parts
        return cls(definition, names, tuple(variables))


class _Name(NamedTuple):
    """A step of a path that is written as it is."""

    text: str

    def __str__(self) -> str:
        return self.text


def opened(tree: Any) -> Any:
    """The tree with its NNX modules taken apart, which are no pytrees, or hide what is shared."""
    nnx = _nnx()
    if nnx is None:
        return tree

    def split(node: Any) -> Any:
        if not _is_module(node):
            return node
        definition, state = nnx.split(node)
        flat = [*nnx.to_flat_state(state)]
        paths, variables = (tuple(part[i] for part in flat) for i in range(2))
        return _Opened((definition, paths), tuple(map(_path, paths)), variables)

    return jax.tree.map(split, tree, is_leaf=_is_module)


def closed(tree: Any) -> Any:
    """The tree with the modules that `opened` took apart."""
    nnx = _nnx()
    if nnx is None:
        return tree

    def merge(node: Any) -> Any:
        if not isinstance(node, _Opened):
            return node
        definition, paths = node.definition
        state = nnx.from_flat_state(zip(paths, node.variables, strict=True))
        return nnx.merge(definition, state)

    return jax.tree.map(merge, tree, is_leaf=lambda node: isinstance(node, _Opened))


def _is_module(node: Any) -> bool:
    nnx = _nnx()
    return isinstance(node, (nnx.Module, nnx.Pytree))


def _path(path: tuple[Any, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)


class Leaf(NamedTuple):
    """A leaf of the parameters.

    Attributes:
        path: such as ``model.layers[0].weight``.
        value: the leaf.
        why: why it stays; "" if it moves.
    """

    path: str
    value: Any
    why: str


def leaves_of(tree: Any, name: str, trainable: Trainable = None) -> list[Leaf]:
    """The leaves of one opened argument, in order.

    Args:
        tree: the argument.
        name: what it is called.
        trainable: what the user says of it: a predicate of path and shape, or a prefix of the tree
            with booleans in it; None for nothing.

    Raises:
        InputError: if ``trainable`` is neither.
    """
    found = list(_found(tree, name))
    if trainable is None:
        return found
    if callable(trainable) and jax.tree_util.all_leaves([trainable]):
        wanted = [
            bool(why) or _boolean(trainable(path, jax.ShapeDtypeStruct(x.shape, x.dtype)))
            for path, x, why in found
        ]
    else:
        wanted = _spread(trainable, tree, name)
    return [
        leaf if leaf.why or flag else leaf._replace(why="not trainable, as `trainable` says")
        for leaf, flag in zip(found, wanted, strict=True)
    ]


def _found(tree: Any, name: str) -> Iterator[Leaf]:
    """The leaves, and why they stay whatever the user says."""
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_kind):
        parts = [("", node)]
        if isinstance(node, _Opened):
            parts = list(zip(node.names, node.variables, strict=True))
        for inner, part in parts:
            why = _kept(part)
            if part is not node and not _is_variable(part):
                why = "an array of an NNX module, but no nnx.Param"
            for rest, leaf in jax.tree_util.tree_leaves_with_path(part):
                place = name + jax.tree_util.keystr(path) + inner + jax.tree_util.keystr(rest)
                yield Leaf(place, leaf, why or _stays(leaf))


def _is_kind(node: Any) -> bool:
    return isinstance(node, (_Opened, eqx.nn.State)) or _is_variable(node)


def _is_variable(node: Any) -> bool:
    nnx = _nnx()
    return nnx is not None and isinstance(node, nnx.Variable)


def _kept(node: Any) -> str:
    """Why all of a node stays; "" if not because of what it is."""
    if isinstance(node, eqx.nn.State):
        return "part of an equinox.nn.State"
    if _is_variable(node) and not isinstance(node, _nnx().Param):
        return f"an nnx.{type(node).__name__}, and no nnx.Param"
    return ""


def _stays(leaf: Any) -> str:
    """Why a leaf stays by itself."""
    if not is_array(leaf):
        return f"no array, but a Python {type(leaf).__name__}"
    return "" if jnp.issubdtype(leaf.dtype, jnp.inexact) else str(leaf.dtype)


def _boolean(flag: Any) -> bool:
    if isinstance(flag, (bool, np.bool_)):
        return bool(flag)
    raise InputError(
        "project: trainable must say True or False, as a function of a path (such as "
        f"'model.layers[0].weight') and a shape, or as a tree of booleans, and not {flag!r}"
    )


def _spread(prefix: Any, tree: Any, name: str) -> list[bool]:
    """A prefix of a tree, spread over its leaves."""
    wanted = list[bool]()
    try:
        jax.tree.map(
            lambda flag, part: wanted.extend([_boolean(flag)] * len(jax.tree.leaves(part))),
            opened(prefix),
            tree,
        )
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(
            f"project: trainable is no prefix of the parameters in {name}: {error}"
        ) from error
    return wanted
