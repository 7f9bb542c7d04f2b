"""Fourier transforms, of pairs of reals and of reals: each is one constraint, by XLA's own FFT."""

import dataclasses

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pjax_trace.custom import call, function_p
from pjax_trace.isometry import Isometric
from pjax_trace.registry import (
    Case,
    Isometry,
    register_affine,
    register_isometry,
    register_paired,
    register_rule,
)
from pjax_trace.rule import Params
from pjax_trace.rules.complex import on_pairs

__all__ = ["Fourier"]

_INVERSES = {"FFT": "IFFT", "IFFT": "FFT", "RFFT": "IRFFT", "IRFFT": "RFFT"}


@dataclasses.dataclass(frozen=True)
class Fourier(Isometric):
    """``z = F x``, along the last axes; complex values are pairs of reals, the first axis.

    A transform of pairs is a multiple of an isometry, ``Fᵀ F = c I``. That of reals has two or
    three singular values.

    Args:
        kind: ``"FFT"``, ``"IFFT"``, ``"RFFT"`` or ``"IRFFT"``.
        lengths: of the signal, along each of the axes.
    """

    kind: str
    lengths: tuple[int, ...]

    def apply(self, params: Params, *operands: Array) -> Array:
        (x,) = operands
        if self.kind != "RFFT":
            x = lax.complex(x[0], x[1])
        z = lax.fft(x, self.kind, self.lengths)
        return z if self.kind == "IRFFT" else jnp.stack([jnp.real(z), jnp.imag(z)])

    def back(self, z: Array) -> Array:
        """The inverse transform; of what no signal has as its transform, of the nearest that is.

        "Nearest" counts both members of a pair of conjugates, of which a half spectrum holds one.
        """
        return Fourier(_INVERSES[self.kind], self.lengths).apply({}, z)


def _isometry(rule: Fourier) -> Isometry | None:
    # A half spectrum is one if both members of a pair of conjugates count; what it is made of is
    # none, as it need not be the spectrum of anything real.
    return None if rule.kind == "IRFFT" else Isometry(rule.back, onto=rule.kind != "RFFT")


def _transform(params: Params, pairs: tuple[bool, ...], x: Array) -> Array:
    kind, lengths = params["fft_type"].name, tuple(int(n) for n in params["fft_lengths"])
    if kind != "RFFT" and not pairs[0]:
        x = jnp.stack([jnp.real(x), jnp.imag(x)])
    return call(function_p, Fourier(kind, lengths), x, name="fft")


register_paired(lax.fft_p, _transform)
register_isometry(Fourier, _isometry)
register_affine(Fourier, lambda params, variable: True)
register_rule(
    lax.fft_p,
    on_pairs(of=Fourier("FFT", ())),
    cases=[
        Case(lambda x: jnp.abs(jnp.fft.rfft(x)), ((5,),)),
        Case(lambda x, y: jnp.abs(jnp.fft.fft(lax.complex(x, y))), ((4,), (4,))),
        Case(lambda x: jnp.real(jnp.fft.ifft2(x)), ((2, 3),)),
        Case(lambda x, y: jnp.fft.irfft(lax.complex(x, y)), ((3,), (3,))),
    ],
    note="by the FFT",
)
