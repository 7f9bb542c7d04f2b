"""Which arguments of a function are solved for, and what they hold."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array

from pjax_trace.errors import InputError
from pjax_trace.pairs import as_complex, is_complex
from pjax_trace.signature import parameters_in
from pjax_trace.trainable import Leaf, closed, opened

__all__ = ["Arguments"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What `project` is told of the arguments of a function.

    Attributes:
        fn: the function.
        argnums: the number of the argument to solve for, or the numbers of several.
        trainable: which of their arrays move.
    """

    fn: Callable[..., Any]
    argnums: int | tuple[int, ...]
    trainable: Any

    @property
    def name(self) -> str:
        """What the function is called."""
        return getattr(self.fn, "__name__", "the function")

    @property
    def several(self) -> bool:
        """Whether the parameters are a tuple of arguments."""
        return isinstance(self.argnums, tuple)

    def places(self, params: Any) -> dict[int, Any]:
        """The parameters by position among the function's arguments, in their order."""
        params = params if self.several else (params,)
        return dict(sorted(zip(self.numbers, params, strict=True), key=lambda place: place[0]))

    def leaves(self, params: Any) -> dict[int, list[Leaf]]:
        """What the arguments with parameters hold, by their numbers."""
        said = self.trainable
        by_place = self.several and isinstance(said, tuple)
        trainable = self.places(said) if by_place else dict.fromkeys(self.numbers, said)
        return parameters_in(self.places(params), self.fn, trainable)

    def combine(self, params: Any, arrays: Sequence[Array]) -> Any:
        """Parameters with other arrays."""
        leaves = [leaf for those in self.leaves(params).values() for leaf in those]
        own = iter(arrays)

        def moved(old: Any) -> Any:
            new = next(own)
            return as_complex(new) if is_complex(old) else new

        structure = jax.tree.structure(opened(self.places(params)))
        new = closed(structure.unflatten(x if why else moved(x) for _, x, why in leaves))
        # The parameters in the order of argnums; the arrays were in that of the arguments.
        return tuple(new[n] for n in self.numbers) if self.several else new[self.numbers[0]]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the arguments to solve for."""
        return self.argnums if isinstance(self.argnums, tuple) else (self.argnums,)

    def parameters_of(self, args: tuple) -> Any:
        """The arguments to solve for, among all of a call.

        Raises:
            InputError: if there are too few.
        """
        if len(args) <= max(self.numbers):
            raise InputError(
                f"{self.name} takes its parameters as "
                f"argument {max(self.numbers)}, but was called with {len(args)} arguments"
            )
        chosen = tuple(args[i] for i in self.numbers)
        return chosen if self.several else chosen[0]

    def insert(self, params: Any, rest: tuple) -> tuple:
        """All arguments of a call, from those to solve for and the others."""
        own = params if self.several else (params,)
        places = dict(zip(self.numbers, own, strict=True))
        others = iter(rest)
        count = len(places) + len(rest)
        return tuple(places[i] if i in places else next(others) for i in range(count))
