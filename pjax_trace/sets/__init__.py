"""Constraint sets for `pjax_trace.constrain`, and the base class for sets of your own.

A set is a pytree. Its arrays are data of the traced function, and may be traced values.
"""

from pjax_trace.sets.affine import Affine, HalfSpace, HyperPlane, HyperSlab, SumTo
from pjax_trace.sets.base import Set
from pjax_trace.sets.boxes import Box, Equal, LInfBall, NonNegative, Support
from pjax_trace.sets.cones import Monotone, SecondOrderCone
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

__all__ = [
    "Affine",
    "HalfSpace",
    "HyperPlane",
    "HyperSlab",
    "SumTo",
    "Set",
    "Box",
    "Equal",
    "LInfBall",
    "NonNegative",
    "Support",
    "Monotone",
    "SecondOrderCone",
    "PSD",
    "Circulant",
    "Hankel",
    "NuclearBall",
    "Orthogonal",
    "Rank",
    "SpectralBall",
    "SpectralBox",
    "Spectraplex",
    "Symmetric",
    "Toeplitz",
    "Ball",
    "L1Ball",
    "L1Sphere",
    "Magnitude",
    "Simplex",
    "Sphere",
]
