"""The graphs of eight models, printed as they were when their texts were written.

What a model compiles to changes on purpose only. Then, and after a look at what is different:

    python -m tests.test_pinned
"""

from pathlib import Path

import pytest

import pjax_trace as pjax
from tests.models import LABELS, MODELS

FOLDER = Path(__file__).parent / "pinned"
NAMES = (
    *("mlp", "CNN", "ternary weights", "stacked layers"),
    *("LSTMCell", "tied Embedding", "transformer", "Flax norms"),
)


def path_of(name):
    return FOLDER / f"{name.replace(' ', '_')}.txt"


def printed(name):
    """The graphs of a sweep and of the parallel schedule, without source lines."""
    model = MODELS[name]()

    def fit(parameters, x, y):
        return pjax.losses.cross_entropy(model.apply(parameters, x), y)

    texts = []
    for schedule in ("sweep", "parallel"):
        graph = pjax.project(fit, schedule=schedule).trace(model.parameters, model.x, LABELS)
        # What belongs to a node is on lines that are indented farther.
        lines = [line for line in str(graph).splitlines() if not line.startswith(" " * 6)]
        texts.append("\n".join([schedule, *lines]))
    return "\n\n".join(texts) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_graphs_are_what_they_were(name):
    assert printed(name) == path_of(name).read_text()


def test_all_texts_are_compared():
    assert sorted(FOLDER.iterdir()) == sorted(map(path_of, NAMES))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in NAMES:
        path_of(name).write_text(printed(name))
