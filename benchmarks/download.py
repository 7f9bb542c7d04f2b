"""Data sets from OpenML, by scikit-learn's fetcher, for those who ask for it."""

import sys
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32

from benchmarks.formats import DataError, note

__all__ = ["fetch"]

_OPENML = {"mnist": ("mnist_784", 1), "cifar10": ("CIFAR_10", 1), "higgs": ("higgs", 2)}


def fetch(
    name: str, data_dir: Path | None, missing: DataError
) -> tuple[Float32[np.ndarray, "samples features"], Int32[np.ndarray, "samples"]]:
    """Inputs and labels in OpenML's order, kept below ``data_dir``; says on stderr what is fetched.

    Args:
        name: of the data set.
        data_dir: the folder to keep it in.
        missing: why it is fetched; raised where there is no such data set on OpenML.

    Raises:
        DataError: if it cannot be fetched.
    """
    if name not in _OPENML:
        raise DataError(f"{missing}; OpenML does not have it, so --download cannot fetch it")
    from sklearn.datasets import fetch_openml

    title, version = _OPENML[name]
    print(f"fetching {title}, version {version}, from openml.org into {data_dir}", file=sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of every attempt that fails.
            x, y = fetch_openml(
                title,
                version=version,
                data_home=str(data_dir),
                as_frame=False,
                parser="liac-arff",
                return_X_y=True,
                n_retries=1,
            )
    except Exception as error:  # Of the network, of the server, of the parser.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{title} cannot be fetched from openml.org: {reason}") from error
    x, y = np.asarray(x, np.float32), np.asarray(y).astype(np.float64).astype(np.int32)
    whole = np.all(np.isfinite(x), axis=1)
    if not whole.all():
        note(f"{(~whole).sum()} rows of OpenML's {title} have missing values and are left out")
    return x[whole], y[whole]
