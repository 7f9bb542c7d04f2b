"""Convolutions, row by row, against loops over their definition in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax_trace as pjax
from pjax_trace import _compat
from pjax_trace.copies import Copies
from pjax_trace.rules.windows import Convolution, Window
from tests.problems import copies_of, free_of, problem_of


def conv(lhs, rhs, spec=None, **options):
    """Shapes in the layouts NC… and OI…, the options, and the layouts that the user has."""
    rank = len(lhs) - 2
    letters = "XYZ"[:rank]
    plain = (f"NC{letters}", f"OI{letters}", f"NC{letters}")
    options = {
        "window_strides": (1,) * rank,
        "padding": ((0, 0),) * rank,
        "lhs_dilation": (1,) * rank,
        "rhs_dilation": (1,) * rank,
        "feature_group_count": 1,
        "batch_group_count": 1,
        **options,
    }
    return lhs, rhs, plain, spec or plain, options


CONVOLUTIONS = {
    "valid": conv((2, 2, 4), (3, 2, 2)),
    "padded": conv((2, 1, 3, 3), (2, 1, 2, 3), padding=((1, 0), (1, 1))),
    "channels last": conv(
        (1, 2, 2, 3), (3, 2, 2, 2), ("NYXC", "XIOY", "CYNX"), padding=((0, 1), (1, 0))
    ),
    "strides": conv((1, 1, 5, 4), (2, 1, 3, 2), window_strides=(2, 2), padding=((1, 1), (0, 0))),
    "transposed": conv((1, 2, 3), (1, 2, 3), lhs_dilation=(2,), padding=((2, 1),)),
    "dilated": conv((1, 1, 5, 3), (1, 1, 2, 2), rhs_dilation=(3, 1), padding=((1, 1), (0, 1))),
    "feature groups": conv((1, 4, 3), (6, 2, 2), feature_group_count=2, padding=((1, 0),)),
    "depthwise": conv((2, 3, 2, 2), (3, 1, 2, 2), feature_group_count=3, padding=((1, 0), (0, 0))),
    "batch groups": conv((4, 1, 3), (4, 1, 2), batch_group_count=2),
    "three dimensions": conv((1, 1, 2, 2, 2), (2, 1, 1, 2, 2), padding=((0, 0), (0, 1), (1, 0))),
    "no dimension": conv((2, 3), (2, 3)),
    "gaps": conv((1, 1, 8), (2, 1, 2), window_strides=(3,)),
    "taps in padding": conv((2, 1, 1, 2), (1, 1, 3, 3), padding=((1, 1), (1, 1))),
    "rows in padding": conv((1, 1, 2), (2, 1, 2), padding=((3, 2),)),
    "cut off": conv((1, 1, 5), (1, 1, 2), padding=((-1, -2),)),
    "transposed with gaps": conv((1, 1, 3), (1, 1, 2), lhs_dilation=(3,), padding=((0, 1),)),
}


def pairs(lhs, rhs, options):
    """The definition: (n, o, …) → the elements of x and of w that it multiplies."""
    groups, batches = options["feature_group_count"], options["batch_group_count"]
    split = zip(lhs[2:], rhs[2:], options["padding"], options["lhs_dilation"], strict=True)
    sizes = []
    for (s, t, (low, high), base), dilation, stride in zip(
        split, options["rhs_dilation"], options["window_strides"], strict=True
    ):
        sizes.append((low + (s - 1) * base + 1 + high - (t - 1) * dilation - 1) // stride + 1)
    batch = lhs[0] // batches
    found = {}
    for n, o, *p in itertools.product(range(batch), range(rhs[0]), *map(range, sizes)):
        image = n + batch * (o // (rhs[0] // batches))
        channel = rhs[1] * (o // (rhs[0] // groups))
        row = []
        for i, *t in itertools.product(range(rhs[1]), *map(range, rhs[2:])):
            place = []
            for d, tap in enumerate(t):
                at = p[d] * options["window_strides"][d] + tap * options["rhs_dilation"][d]
                at -= options["padding"][d][0]
                if at % options["lhs_dilation"][d] == 0:
                    place.append(at // options["lhs_dilation"][d])
            if len(place) == len(t) and all(
                0 <= s < size for s, size in zip(place, lhs[2:], strict=True)
            ):
                row.append(((image, channel + i, *place), (o, i, *t)))
        found[n, o, *p] = row
    return found, (batch, rhs[0], *sizes)


def nearest(x, w, b, z, weights):
    """One row ``z = x·w + b`` by bisection; a weight that is infinite does not move."""
    wx, ww, wb, wz = weights
    rho = 1 / wz + 1 / wb
    if np.isinf(ww) or np.isinf(wx):
        moving, factor, weight = (w, x, ww) if np.isinf(wx) else (x, w, wx)
        lam = (z - b - x @ w) / (rho + factor @ factor / weight)
        moving = moving + factor * lam / weight
        x, w = (x, moving) if np.isinf(wx) else (moving, w)
        return x, w, b + lam / wb, z - lam / wz
    kappa, r = np.sqrt(wx * ww), np.sqrt(ww / wx)
    low, high = -1.0, 1.0
    for _ in range(100):
        t = 0.5 * (low + high)
        xs, ws = (x + t * r * w) / (1 - t * t), (w + t / r * x) / (1 - t * t)
        low, high = (t, high) if xs @ ws + b < z - kappa * t * rho else (low, t)
    return xs, ws, b + kappa * t / wb, z - kappa * t / wz


def layout(array, before, after):
    return np.transpose(array, [before.index(letter) for letter in after])


QUICK = {"channels last", "strides", "transposed", "feature groups", "batch groups", "gaps"}
CASES = [
    *(
        pytest.param(name, "xw", marks=[pytest.mark.slow] * (name not in QUICK))
        for name in CONVOLUTIONS
    ),
    *((name, variable) for name in ("strides", "rows in padding") for variable in "xw"),
    *((name, "xwb") for name in ("channels last", "batch groups")),
]


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("name", "variable"), CASES)
def test_rows_against_loops(name, variable):
    """One projection of the layer, without copies and with, and what its readers get to see."""
    lhs, rhs, plain, spec, options = CONVOLUTIONS[name]
    rng = np.random.default_rng(len(name))
    rows, shape = pairs(lhs, rhs, options)
    arrays = {"x": rng.normal(size=lhs), "w": rng.normal(size=rhs), "b": rng.normal(size=rhs[0])}
    z = 3 * rng.normal(size=shape)
    weight = {"x": 0.7, "w": 3.0, "b": 1.3, "z": 2.0}

    def layer(params, data):
        read = {**params, **data}
        x = jnp.transpose(read["x"], [plain[0].index(a) for a in spec[0]])
        w = jnp.transpose(read["w"], [plain[1].index(a) for a in spec[1]])
        out = lax.conv_general_dilated(x, w, dimension_numbers=spec, **options)
        if "b" in params:
            bias = read["b"].reshape([-1 if a == "C" else 1 for a in spec[2]])
            out = out + jnp.broadcast_to(bias, out.shape)
        pjax.constrain(out, pjax.sets.Equal(0.5))
        return out

    with _compat.enable_x64(True):
        params = {k: jnp.asarray(arrays[k]) for k in variable}
        data = {k: jnp.asarray(arrays[k]) for k in "xw" if k not in variable}
        paths = {f"params['{k}']": weight[k] for k in variable}
        metric = pjax.Metric(outputs=weight["z"], paths=paths)
        traced = problem_of(layer, params, data, metric=metric)
        names = [v.name for v in traced.graph.variables]
        constraint = traced.graph.constraints[0]
        assert constraint.rule.family == "sum" and len(traced.graph.constraints) == 2

        total = {k: np.zeros(a.shape) for k, a in arrays.items()}
        count = {k: np.zeros(a.shape) for k, a in arrays.items()}
        moved_z, value = np.zeros(shape), np.zeros(shape)
        for at, row in rows.items():
            xs = np.array([arrays["x"][i] for i, _ in row])
            ws = np.array([arrays["w"][j] for _, j in row])
            bias = arrays["b"][at[1]] if "b" in variable else 0.0
            value[at] = xs @ ws + bias
            if not row and "b" not in variable:
                moved_z[at] = 0  # a constant
                continue
            four = [weight[k] if k in variable else np.inf for k in "xwb"]
            new_x, new_w, new_b, moved_z[at] = nearest(xs, ws, bias, z[at], (*four, weight["z"]))
            for (i, j), a, b in zip(row, new_x, new_w, strict=True):
                for k, index, new in (("x", i, a), ("w", j, b)):
                    total[k][index] += new
                    count[k][index] += 1
            total["b"][at[1]] += new_b
            count["b"][at[1]] += 1
        expected = {
            k: np.where(count[k] > 0, total[k] / np.maximum(count[k], 1), arrays[k])
            for k in variable
        }

        (out_view,) = [o for _, o in traced.graph.constraints[1].reads]
        env = dict(zip(traced.graph.variables, traced.values, strict=True))
        got = layout(np.asarray(traced.look(out_view, env)), spec[2], plain[2])
        np.testing.assert_allclose(got, value, atol=1e-12)

        # With a bias the constraint ends in the user's layout, else in the canonical one.
        target = layout(z, plain[2], spec[2]) if "b" in variable else np.moveaxis(z, 1, -1)
        start = [
            jnp.asarray(target) if v is constraint.out else x
            for v, x in zip(traced.graph.variables, traced.values, strict=True)
        ]
        for space in (free_of(traced), copies_of(traced)):
            c = next(c for c in space.problem.graph.constraints if c.name == constraint.name)
            (group,) = [g for g in space.groups if c in g]
            point, distances = jax.jit(lambda p, s=space, g=group: s.project(p, g))(
                space.expand(tuple(start))
            )
            assert np.isfinite(distances).all()
            if isinstance(space, Copies):
                # The other colour makes the copies agree.
                moved = dict(zip(names, space.collapse(point), strict=True))
            else:
                moved = dict(zip(names, point, strict=True))
                seen = traced.look(out_view, {v: moved[v.name] for v in out_view.bases})
                np.testing.assert_allclose(
                    layout(np.asarray(seen), spec[2], plain[2]), moved_z, atol=1e-9
                )
            for k in variable:
                np.testing.assert_allclose(moved[f"params['{k}']"], expected[k], atol=1e-9)


@pytest.mark.parametrize(
    "windows",
    [
        (Window(9, 3, 2, 1, 1),),
        (Window(5, 3, 1, 1, 1), Window(6, 2, 3, 0, 1)),
        (Window(4, 2, 1, 2, -1, 2, 3), Window(1), Window(3, 3, 1, 2, 2)),
    ],
    ids=["one", "two", "three"],
)
def test_patches_need_not_be_made(windows):
    """All that least squares need of them, against the patches that the copies of a row are."""
    map_ = Convolution(3, 1, 2, 4, windows)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=map_.shapes[0]), jnp.float32)
    target = jnp.asarray(rng.normal(size=(math.prod(map_.shape[:-1]), 4)), jnp.float32)
    design = map_.design(1, images)
    patches = design.matrix()
    taps = tuple(window.taps for window in windows)
    copies = map_.private_copies(images, 0)[..., 0, :].reshape((-1, *taps, 2))
    made = np.moveaxis(np.asarray(copies), -1, 1).reshape(patches.shape)
    np.testing.assert_array_equal(patches.made(), made)
    np.testing.assert_allclose(patches.squares(), np.sum(np.square(made), 0), rtol=1e-6)
    np.testing.assert_allclose(patches.transposed_times(target), made.T @ target, atol=1e-4)
    rows = rng.permutation(len(made))[:5]
    np.testing.assert_array_equal(patches.take(rows), made[rows])
    kernel = jnp.asarray(rng.normal(size=(made.shape[1], 4)), jnp.float32)
    out = map_.apply(images, design.restore(kernel))
    np.testing.assert_allclose(design.target(out), made @ kernel, atol=1e-4)
