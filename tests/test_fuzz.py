"""A part of the fuzz in the suite; ``python -m tests.fuzz`` runs all of it."""

import dataclasses

import jax
import numpy as np
import pytest

import pjax_trace as pjax
from tests import fuzz

# Compiling the nearest points of all curves would take longer than all the rest.
FEW = [f"jnp.{f}({{0}})" for f in ("tanh", "abs", "square")] + ["jax.nn.relu({0})"]


@pytest.mark.parametrize("numbers", [range(3), pytest.param(range(3, 10), marks=pytest.mark.slow)])
def test_random_programs(numbers):
    tally = fuzz.fuzz(1, numbers, compiled=0, curves=FEW, small=False)
    reports = [f"{program}\n{message}" for _, _, program, message in tally.failures]
    assert not reports, "\n\n".join(reports)
    assert tally.refused.total() <= 0.2 * len(numbers)


@pytest.fixture
def as_people_write():
    """With JAX's own promotion of types and dimensions."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("as_people_write")
@pytest.mark.parametrize("numbers", [range(5), range(5, 10)])
def test_what_people_write(numbers):
    tally = fuzz.fuzz(1, numbers, compiled=0, small=False, more=True)
    reports = [f"{program}\n{message}" for _, _, program, message in tally.failures]
    assert not reports, "\n\n".join(reports)
    assert not tally.refused


@pytest.mark.slow
@pytest.mark.usefixtures("as_people_write")
@pytest.mark.parametrize("more", [False, True])
def test_whole_updates(more):
    fuzz.check_compiled(fuzz.generate(1, 0, FEW, more))


@pytest.mark.slow
@pytest.mark.usefixtures("as_people_write")
def test_what_people_write_is_drawn():
    """Objectives that are scalars, with other things beside; complex parameters; all that runs."""
    programs = [fuzz.generate(2, n, FEW, more=True) for n in range(6)]
    assert {p.form for p in programs} >= {"scalar", "aux"}
    for program in programs[:2]:
        result = program.function(*program.arguments)
        if program.has_aux:
            result = result[0]
        assert np.all(np.isfinite(np.hstack([np.ravel(x) for x in jax.tree.leaves(result)])))


def test_programs_are_the_same_every_time():
    assert str(fuzz.generate(3, 5)) == str(fuzz.generate(3, 5))
    assert str(fuzz.generate(3, 5)) != str(fuzz.generate(3, 6))


def test_a_program_prints_as_code_that_runs():
    program = fuzz.generate(1, 1, FEW)
    scope = {}
    exec(str(program).rpartition("\n")[0], scope)
    arguments = [scope[i.name] for i in program.inputs]
    for mine, own in zip(scope["fit"](*arguments)[1], program.function(*arguments)[1], strict=True):
        np.testing.assert_array_equal(mine, own)


def example(*ops):
    """A program of one parameter; every operation reads the one before."""
    names = ["w0", *(f"v{i}" for i in range(len(ops)))]
    steps = [fuzz.Op(names[i + 1], code, (names[i],)) for i, code in enumerate(ops)]
    loss = fuzz.Op("o0", "pjax.losses.squared_error({0}, jnp.ones(3, jnp.float32))", (names[-1],))
    start = fuzz.Input("w0", np.array([0.5, -1.25, 2.0], np.float32), True)
    return fuzz.Program((start,), tuple(steps), (loss,))


def test_a_wrong_projection_is_found_and_shrunk():
    @pjax.custom_projection
    def double(x):
        return 2.0 * x

    @double.defprojection
    def infeasible(operands, out, weights):
        return operands, out

    program = example("-{0}", "jnp.flip({0})", "pjax.double({0})", "jnp.abs({0})")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pjax, "double", double, raising=False)
        assert fuzz.failure_of(program).kind == "infeasible"
        small, failure = fuzz.shrink(program)
    assert [op.code for op in small.ops] == ["pjax.double({0})"]
    assert failure.kind == "infeasible"
    assert "pjax.double" in str(small)


def test_a_projection_that_is_not_nearest_is_found():
    @pjax.custom_projection
    def double(x):
        return 2.0 * x

    @double.defprojection
    def far(operands, out, weights):
        moved = operands[0] + 100.0
        return (moved,), 2.0 * moved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pjax, "double", double, raising=False)
        assert fuzz.failure_of(example("pjax.double({0})")) is not None


def test_a_refusal_is_no_failure():
    program = example("jax.lax.bessel_i0e({0})")
    with pytest.raises(fuzz.Refused, match="bessel_i0e"):
        fuzz.check(program)
    assert fuzz.failure_of(program) is None


def test_a_crash_is_a_failure():
    program = example("{0} * 2.0")
    broken = dataclasses.replace(program, ops=(fuzz.Op("v0", "jnp.ones(2) @ {0}", ("w0",)),))
    assert fuzz.failure_of(broken).kind.startswith("crash in trace")


def test_what_rounding_alone_makes_is_no_failure():
    program = example("{0} - jax.lax.stop_gradient({0}) + 0.7615942", "jax.nn.standardize({0}, 0)")
    fuzz.check(program)
    spread = fuzz.rounding(program, 1, np.zeros(3, np.float32))
    assert 1e-6 < spread < 1e-3
    assert fuzz.rounding(example("2.0 * {0}"), 1, np.array([1.0, -2.5, 4.0])) < 1e-5
