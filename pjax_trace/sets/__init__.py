"""Constraint sets for `pjax_trace.constrain`, and the base class for sets of your own.

A set is a pytree. Its arrays are data of the traced function, and may be traced values.
"""

from pjax_trace.sets.affine import Affine, HalfSpace, HyperPlane, HyperSlab, SumTo
from pjax_trace.sets.assignment import DoublyStochastic, Permutation
from pjax_trace.sets.base import Set
from pjax_trace.sets.boxes import Box, Equal, LInfBall, NonNegative, Support
from pjax_trace.sets.combined import Each, From, Product, Stacked, Union
from pjax_trace.sets.cones import Monotone, SecondOrderCone
from pjax_trace.sets.discrete import AtLeast, AtMost, Binary, Clause, Discrete, Exactly, OneHot
from pjax_trace.sets.matrices import (
    PSD,
    Circulant,
    Hankel,
    NuclearBall,
    Orthogonal,
    Rank,
    SpectralBall,
    SpectralBox,
    Spectraplex,
    Symmetric,
    Toeplitz,
)
from pjax_trace.sets.norms import Ball, L1Ball, L1Sphere, Magnitude, Simplex, Sphere
from pjax_trace.sets.scores import AtMostWrong
from pjax_trace.sets.sparse import GroupSparse, KWinners, NOfM, TopK

__all__ = [
    "Affine",
    "AtLeast",
    "AtMost",
    "AtMostWrong",
    "Ball",
    "Binary",
    "Box",
    "Circulant",
    "Clause",
    "Discrete",
    "DoublyStochastic",
    "Each",
    "Equal",
    "Exactly",
    "From",
    "GroupSparse",
    "HalfSpace",
    "Hankel",
    "HyperPlane",
    "HyperSlab",
    "KWinners",
    "L1Ball",
    "L1Sphere",
    "LInfBall",
    "Magnitude",
    "Monotone",
    "NOfM",
    "NonNegative",
    "NuclearBall",
    "OneHot",
    "Orthogonal",
    "PSD",
    "Permutation",
    "Product",
    "Rank",
    "SecondOrderCone",
    "Set",
    "Simplex",
    "SpectralBall",
    "SpectralBox",
    "Spectraplex",
    "Sphere",
    "Stacked",
    "SumTo",
    "Support",
    "Symmetric",
    "Toeplitz",
    "TopK",
    "Union",
]
