"""The rule library: how to project onto the graph of each JAX primitive, one file per family."""

from pjax_trace.rules import activations as activations
from pjax_trace.rules import complex as complex
from pjax_trace.rules import composites as composites
from pjax_trace.rules import discrete as discrete
from pjax_trace.rules import elementwise as elementwise
from pjax_trace.rules import extremum as extremum
from pjax_trace.rules import linear as linear
from pjax_trace.rules import sums as sums
from pjax_trace.rules import views as views
