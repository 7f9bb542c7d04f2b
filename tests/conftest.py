"""What every test runs under: fixed examples, strict promotion, a data folder if there is one."""

import collections
import gc
import importlib.metadata
import os

# Thousands of small programs are compiled and each is run once: compile them quickly. It must be
# said before JAX starts; what is in XLA_FLAGS already counts. (JAX dies of flags it does not know.)
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)

from pathlib import Path

import hypothesis
import jax
import pytest

# Traces are many small objects that live on; looking through them again and again takes long.
gc.set_threshold(50_000, 20, 20)

# The same examples in every run: what is green here is green there.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of the cases of each test that is thinned(n), all but one in n are slow."""
    seen = collections.Counter()
    for item in items:
        thinned = item.get_closest_marker("thinned")
        if thinned is not None:
            if seen[item.location[0], item.originalname] % thinned.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[item.location[0], item.originalname] += 1


@pytest.fixture
def loose_promotion():
    """For tests that run optax.adam, which raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: $PJAX_TRACE_DATA, or shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PJAX_TRACE_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no real data: set PJAX_TRACE_DATA to a folder with mnist/ in it")
    return folder
