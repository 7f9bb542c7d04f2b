"""Every elementwise primitive against brute force in float64 NumPy, and what is rewritten."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.scipy import special

import pjax_trace as pjax
from pjax_trace.registry import entries, translate
from pjax_trace.rule import Weights
from pjax_trace.rules import elementwise
from pjax_trace.translation import Project, Refusal, Refuse
from tests.rules.oracle import brute_force, points, worst_excess

INF = np.inf


def inside(end, other):
    return float(np.nextafter(np.float32(end), np.float32(other)))


TINY = float(np.finfo(np.float32).tiny)
POSITIVE, UNIT = (TINY, 1e30), (inside(-1, 0), inside(1, 0))


def in_float64(f):
    """A JAX function as one of float64 NumPy arrays."""

    def evaluated(x):
        with jax.enable_x64(True):
            return np.asarray(jax.jit(f)(np.asarray(x, np.float64)))

    return evaluated


# The function in NumPy, and the ends of its domain.
ORACLES = {
    lax.tanh_p: (np.tanh,),
    lax.logistic_p: (lambda x: np.exp(-np.logaddexp(0, -x)),),
    lax.exp_p: (np.exp,),
    lax.exp2_p: (np.exp2,),
    lax.expm1_p: (np.expm1,),
    lax.log_p: (np.log, *POSITIVE),
    lax.log1p_p: (np.log1p, inside(-1, 0), 1e30),
    lax.sqrt_p: (np.sqrt, *POSITIVE),
    lax.rsqrt_p: (lambda x: x**-0.5, *POSITIVE),
    lax.cbrt_p: (np.cbrt,),
    lax.sinh_p: (np.sinh,),
    lax.cosh_p: (np.cosh,),
    lax.asin_p: (np.arcsin, *UNIT),
    lax.acos_p: (np.arccos, *UNIT),
    lax.atan_p: (np.arctan,),
    lax.asinh_p: (np.arcsinh,),
    lax.acosh_p: (np.arccosh, inside(1, 2), 1e30),
    lax.atanh_p: (np.arctanh, *UNIT),
    lax.erf_p: (in_float64(special.erf),),
    lax.erfc_p: (in_float64(special.erfc),),
    lax.erf_inv_p: (in_float64(special.erfinv), *UNIT),
    lax.abs_p: (np.abs,),
    lax.square_p: (np.square,),
}


def params_of(primitive):
    """The params that this version of JAX gives the primitive."""
    return jax.make_jaxpr(getattr(lax, str(primitive)))(0.5).eqns[0].params


def rule_of(primitive, params, *data):
    """The rule that a primitive gets where only its first operand is variable."""
    x = jax.ShapeDtypeStruct((500,), jnp.float32)
    same = [jax.ShapeDtypeStruct(x.shape, y.dtype) for y in data]
    variable = (True, *(False for _ in data))
    outcome = translate(primitive, params, [x, *same], variable)
    assert isinstance(outcome, Project) and outcome.params == params
    return outcome.rule


def excess(
    rule, f, domain, count=500, decades=(-3, 3), oracle=None, params=None, data=(), period=0.0
):
    """The worst excess over random points."""
    sample = points(f, count, 0, decades)
    # The moved point is Σ ω x' / Σ ω, without rounding for powers of two.
    sample[2] = np.exp2(np.round(np.log2(sample[2])))

    def project(x, z, wx, wz):
        weights = Weights((wx, *(None for _ in data)), wz)
        return rule.project(params or {}, (x, *data), z, weights)

    moments, out, _ = jax.jit(project)(*sample)
    moved = np.clip(moments[0].first / moments[0].mass, *domain or (-INF, INF))  # 1e-38 underflows
    assert not np.isnan(out).any()
    exact = [a.astype(np.float64) for a in sample]
    nearest = (oracle or brute_force)(f, *exact, *domain)
    return worst_excess(f, moved, nearest, *exact, period)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("primitive", ORACLES, ids=str)
def test_nearest_points(primitive):
    f, *domain = ORACLES[primitive]
    params = params_of(primitive)
    assert excess(rule_of(primitive, params), f, domain, params=params) <= 1e-4


@pytest.mark.parametrize("exponent", [3, 4, 5, -1, -2, -3])
def test_integer_powers(exponent):
    params = {"y": exponent}
    rule = rule_of(lax.integer_pow_p, params)
    assert rule is rule_of(lax.integer_pow_p, params)  # compiled once for all of one exponent
    f = lambda x: x ** float(exponent)  # noqa: E731
    assert excess(rule, f, (), params=params) <= 1e-4


@pytest.mark.parametrize("exponent", [1.5, 0.75, 0.25, -1.5, 0.5])
def test_powers_that_are_data(exponent):
    data = (jnp.float32(exponent),)
    f = lambda x: x**exponent  # noqa: E731
    assert excess(rule_of(lax.pow_p, {}, *data), f, POSITIVE, data=data) <= 1e-4


@pytest.mark.parametrize("exponent", [2.0, 3.0, -1.0])
def test_powers_that_are_integers_in_disguise(exponent):
    data = (jnp.float32(exponent),)
    f = lambda x: x**exponent  # noqa: E731
    assert excess(rule_of(lax.pow_p, {}, *data), f, (), data=data) <= 1e-4


@pytest.mark.parametrize("primitive", [lax.sin_p, lax.cos_p, lax.tan_p], ids=str)
def test_waves(primitive):
    f = {lax.sin_p: np.sin, lax.cos_p: np.cos, lax.tan_p: np.tan}[primitive]

    def oracle(_, x0, z0, wx, wz):
        return x0 + brute_force(lambda x: f(x + x0[:, None]), 0 * x0, z0, wx, wz, -4, 4)

    decades = (-3, 2) if primitive is lax.tan_p else (-3, 3)
    params = params_of(primitive)
    rule = rule_of(primitive, params)
    assert excess(rule, f, (), 400, decades, oracle, params, period=np.pi) <= 1e-4


def test_tan_goes_to_the_nearer_branch():
    f = lambda x: jnp.tan(x)  # noqa: E731
    (x,), z = pjax.project_point(f, (jnp.array([1.5, -1.5]),), jnp.array([-9.0, 9.0]))
    np.testing.assert_allclose(x, [1.6806, -1.6806], atol=1e-2)
    np.testing.assert_allclose(z, jnp.tan(x), rtol=1e-5)


@pytest.mark.parametrize(
    ("function", "equal"),
    [
        (lambda x: x**1, lambda x: x),
        (lambda x: lax.integer_pow(x, 2), jnp.square),
        (lambda x: 2.0**x, lambda x: jnp.exp(jnp.log(2.0) * x)),
        (lambda x: lax.pow(x, 2), jnp.square),
    ],
)
def test_other_ways_to_write_it(function, equal):
    x0, z0 = jnp.array([-1.5, 0.3, 2.0]), jnp.array([0.5, 2.0, -1.0])
    (x,), z = pjax.project_point(function, (x0,), z0)
    (other,), _ = pjax.project_point(equal, (x0,), z0)
    np.testing.assert_allclose(x, other, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(z, function(x), rtol=1e-5)


def test_a_power_of_two_variables_is_an_exponential_of_a_product():
    def fit(w, y):
        return pjax.losses.squared_error(jnp.power(jnp.exp(w["a"]), w["b"]), y)

    w = {"a": jnp.array([0.5, 1.0]), "b": jnp.array([1.0, 0.5])}
    y = jnp.array([2.0, 1.2])
    w, _ = pjax.project(fit, steps=100, schedule="parallel")(w, y)
    assert np.isfinite(w["a"]).all()
    np.testing.assert_allclose(jnp.exp(w["a"] * w["b"]), y, rtol=0.1)


def test_weights_by_element_and_float64():
    params = params_of(lax.tanh_p)
    rule = rule_of(lax.tanh_p, params)
    assert rule.elementwise
    with jax.enable_x64(True):
        x, z, wx, wz = (np.asarray(a, np.float64) for a in points(np.tanh, 300, 1, (-2, 2)))
        moments, out, distance = rule.project(params, (jnp.asarray(x),), z, Weights((wx,), wz))
        moved = moments[0].first / wx
        assert moved.dtype == out.dtype == distance.dtype == jnp.float64
        nearest = brute_force(np.tanh, x, z, wx, wz)
        assert worst_excess(np.tanh, moved, nearest, x, z, wx, wz) <= 1e-4


@pytest.mark.parametrize("primitive", ORACLES, ids=str)
def test_what_a_sweep_hands_over_is_the_adjoint(primitive):
    f, low, high = (*ORACLES[primitive], -INF, INF)[:3]
    params = params_of(primitive)
    x = np.linspace(max(low, -2.9), min(high, 2.9), 402)[1:-1].astype(np.float32)
    residual = jax.random.normal(jax.random.key(0), x.shape)
    jacobian = rule_of(primitive, params).linear(params, (x,), 0)
    h = 1e-6 * np.minimum(np.minimum(x - low, high - x), 1)
    slope = (f(x.astype(float) + h) - f(x.astype(float) - h)) / (2 * h)
    np.testing.assert_allclose(jacobian.transpose(residual), slope * residual, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(jacobian.squares(), slope**2, rtol=1e-3, atol=1e-5)


def test_a_sweep_hands_over_the_adjoint_by_the_first_operand_alone():
    """Data operands are held; slopes that are not finite count as nothing."""
    x, y = jnp.array([2.0, 0.0, 0.5]), jnp.array([3.0, 0.5, -1.0])
    jacobian = rule_of(lax.pow_p, {}, y).linear({}, (x, y), 0)
    np.testing.assert_allclose(jacobian.transpose(jnp.array([1.0, 1.0, 2.0])), [12, 0, -8])
    np.testing.assert_allclose(jacobian.transpose(jnp.zeros(3)), [0, 0, 0])
    np.testing.assert_allclose(jacobian.squares(), [144, 0, 16], rtol=1e-6)


def test_only_the_first_operand_may_be_a_variable():
    some = jax.ShapeDtypeStruct((3,), jnp.float32)
    for name in ("nextafter_p", "igamma_p"):
        assert isinstance(translate(getattr(lax, name), {}, [some] * 2, (True, True)), Refuse)
    rule = rule_of(lax.pow_p, {}, jnp.ones(3))
    assert rule.movable == 1


def test_all_that_is_registered_has_cases():
    for primitive in elementwise.CURVES:
        assert entries()[primitive].cases
    for name in elementwise.REFUSED:
        if hasattr(lax, name):
            entry = entries()[getattr(lax, name)]
            assert entry.cases and isinstance(entry.translation, Refusal)
