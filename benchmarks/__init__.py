"""Commands to run from a checkout, as in ``python -m benchmarks.train``."""

import sys
from pathlib import Path

# A checkout's own pjax_trace/ has no rules/ inside (they are mapped there on installation), so the
# installed package must come first; `python -m` puts the checkout at the head of the path.
_ROOT = str(Path(__file__).resolve().parent.parent)
if sys.path and sys.path[0] in ("", _ROOT):
    sys.path.append(sys.path.pop(0))
