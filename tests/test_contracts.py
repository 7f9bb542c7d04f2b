"""What primitives are parametrised by, in the JAX versions that are supported.

Rules read params by name. One that a new JAX adds may change what a primitive means: that is to be
looked at, and then written down here.
"""

import functools

import jax
import pytest

from pjax_trace.registry import entries

from .test_coverage import arguments, equations

# The names of params, those that not every version has with a question mark, and whose they are;
# primitives that are not here have none.
LAYOUTS = {
    (
        "aggregate_to_topk is_max_k k recall_target reduction_dimension "
        "reduction_input_size_override"
    ): "approx_top_k",
    "broadcast_dimensions shape sharding": "broadcast_in_dim",
    "accuracy": "cbrt cos exp exp2 expm1 log log1p log2 logistic rsqrt sin sqrt tan tanh",
    "dimension": "concatenate",
    "input_dtype": "conj",
    (
        "batch_group_count dimension_numbers feature_group_count lhs_dilation "
        "out_sharding padding precision preferred_element_type rhs_dilation "
        "window_strides"
    ): "conv_general_dilated",
    "new_dtype sharding weak_type": "convert_element_type",
    "axis reverse": "cumlogsumexp cummax cummin cumprod cumsum",
    "const_lengths jaxprs": "custom_linear_solve",
    "dimension_numbers out_sharding precision preferred_element_type": "dot_general",
    "slice_sizes": "dynamic_slice",
    "algorithm lower sort_eigenvalues subset_by_index": "eigh",
    "accuracy?": "erfc",
    "fft_lengths fft_type": "fft",
    "dimension_numbers fill_value indices_are_sorted mode slice_sizes unique_indices": "gather",
    "y": "integer_pow",
    "out_dtype": "mul",
    "padding_config": "pad",
    "axes axis_index_groups": "pmax pmin psum",
    "full_matrices pivoting use_magma": "qr",
    "group_offset out_sharding? precision preferred_element_type ragged_dot_dimension_numbers": (
        "ragged_dot_general"
    ),
    "axes": "reduce_and reduce_or reduce_prod reduce_xor",
    "axes out_sharding?": "reduce_max reduce_min",
    "axes out_sharding": "reduce_sum",
    ("base_dilation padding window_dilation window_dimensions window_strides"): (
        "reduce_window_max reduce_window_min reduce_window_sum"
    ),
    "exponent_bits mantissa_bits": "reduce_precision",
    "padding select_prim window_dimensions window_strides": "select_and_scatter_add",
    (
        "base_dilation padding select_prim window_dilation window_dimensions window_strides"
    ): "select_and_gather_add",
    "dimensions new_sizes sharding": "reshape",
    "levels": "quantize",  # of pjax-trace itself
    "dimensions": "rev squeeze",
    "rounding_method": "round",
    ("dimension_numbers indices_are_sorted mode unique_indices update_consts update_jaxpr"): (
        "scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub"
    ),
    "context_mesh layout sharding unconstrained_dims": "sharding_constraint",
    "limit_indices start_indices strides": "slice",
    "dimension is_stable num_keys": "sort",
    "axis sizes": "split",
    "axis": "stack unstack",
    "algorithm compute_uv full_matrices subset_by_index": "svd",
    "reps": "tile",
    "axis k is_stable?": "top_k",
    "permutation": "transpose",
    "conjugate_a left_side lower transpose_a unit_diagonal": "triangular_solve",
    "perturb_singular": "tridiagonal_solve",
}
KNOWN = {name: frozenset(names.split()) for names, own in LAYOUTS.items() for name in own.split()}


@functools.cache
def found():
    """The names of the params of every primitive with cases, as often as they are seen."""
    names: dict[str, set[frozenset[str]]] = {}
    for primitive, entry in entries().items():
        for case in entry.cases:
            for eqn in equations(jax.make_jaxpr(case.function)(*arguments(case)).jaxpr):
                if eqn.primitive is primitive:
                    names.setdefault(primitive.name, set()).add(frozenset(eqn.params))
    return names


@pytest.mark.parametrize("name", sorted(p.name for p, entry in entries().items() if entry.cases))
def test_params_are_those_that_rules_were_written_for(name):
    expected = KNOWN.get(name, frozenset())
    optional = {x.removesuffix("?") for x in expected if x.endswith("?")}
    needed = {x for x in expected if not x.endswith("?")}
    for names in found()[name]:
        assert needed <= names <= needed | optional, f"JAX {jax.__version__} has other params"
