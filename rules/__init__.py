"""The rule library: how to project onto the graph of each JAX primitive, one file per family."""

from pjax_trace.rules import activations as activations
from pjax_trace.rules import angle as angle
from pjax_trace.rules import autodiff as autodiff
from pjax_trace.rules import complex as complex
from pjax_trace.rules import complex_functions as complex_functions
from pjax_trace.rules import elementwise as elementwise
from pjax_trace.rules import fourier as fourier
from pjax_trace.rules import linear as linear
from pjax_trace.rules import logic as logic
from pjax_trace.rules import maximum as maximum
from pjax_trace.rules import norms as norms
from pjax_trace.rules import objectives as objectives
from pjax_trace.rules import pooling as pooling
from pjax_trace.rules import ragged as ragged
from pjax_trace.rules import scattered as scattered
from pjax_trace.rules import softmax as softmax
from pjax_trace.rules import solves as solves
from pjax_trace.rules import sorting as sorting
from pjax_trace.rules import staircase as staircase
from pjax_trace.rules import sum_primitives as sum_primitives
from pjax_trace.rules import views as views
