"""pjax-trace: train networks, and solve feasibility problems, by projections instead of gradients.

``pjax.project(fn)`` traces ordinary JAX code, maps every primitive to a registered projection rule,
builds a consensus graph, and lowers it to one fused XLA step.
"""

from pjax_trace import losses as losses
from pjax_trace import sets as sets
from pjax_trace import testing as testing
from pjax_trace.acceleration import Acceleration as Acceleration
from pjax_trace.acceleration import Averaging as Averaging
from pjax_trace.acceleration import Momentum as Momentum
from pjax_trace.acceleration import TrustRegion as TrustRegion
from pjax_trace.anderson import Anderson as Anderson
from pjax_trace.constrain import constrain as constrain
from pjax_trace.custom import CustomRule as CustomRule
from pjax_trace.custom import custom_projection as custom_projection
from pjax_trace.errors import InputError as InputError
from pjax_trace.errors import Interrupted as Interrupted
from pjax_trace.errors import MissingRuleError as MissingRuleError
from pjax_trace.errors import NonFiniteError as NonFiniteError
from pjax_trace.errors import PjaxError as PjaxError
from pjax_trace.errors import TraceError as TraceError
from pjax_trace.granularity import Block as Block
from pjax_trace.graph import ConsensusGraph as ConsensusGraph
from pjax_trace.info import Info as Info
from pjax_trace.info import State as State
from pjax_trace.isometry import isometry as isometry
from pjax_trace.linear import Jacobian as Jacobian
from pjax_trace.metric import Metric as Metric
from pjax_trace.nearest_solvers import Dykstra as Dykstra
from pjax_trace.nearest_solvers import Halpern as Halpern
from pjax_trace.point import project_point as project_point
from pjax_trace.project import project as project
from pjax_trace.projected import Projected as Projected
from pjax_trace.quantize import quantize as quantize
from pjax_trace.registry import Case as Case
from pjax_trace.registry import register_function as register_function
from pjax_trace.registry import register_rule as register_rule
from pjax_trace.relaxed import ADMM as ADMM
from pjax_trace.relaxed import HybridInputOutput as HybridInputOutput
from pjax_trace.relaxed import ReflectReflectRelax as ReflectReflectRelax
from pjax_trace.relaxed import RelaxedAveragedReflections as RelaxedAveragedReflections
from pjax_trace.rule import Moment as Moment
from pjax_trace.rule import Projection as Projection
from pjax_trace.rule import Rule as Rule
from pjax_trace.rule import Weights as Weights
from pjax_trace.solve import Solution as Solution
from pjax_trace.solve import nearest as nearest
from pjax_trace.solve import solve as solve
from pjax_trace.solver import Solver as Solver
from pjax_trace.solvers import Accelerated as Accelerated
from pjax_trace.solvers import AlternatingProjections as AlternatingProjections
from pjax_trace.solvers import AlternatingReflections as AlternatingReflections
from pjax_trace.solvers import CyclicDouglasRachford as CyclicDouglasRachford
from pjax_trace.solvers import CyclicProjections as CyclicProjections
from pjax_trace.solvers import DifferenceMap as DifferenceMap
from pjax_trace.solvers import DouglasRachford as DouglasRachford
from pjax_trace.sweep import Sweep as Sweep
from pjax_trace.translation import Affine as Affine
from pjax_trace.translation import Project as Project
from pjax_trace.translation import Refusal as Refusal
from pjax_trace.translation import Refuse as Refuse
from pjax_trace.translation import Rewrite as Rewrite
from pjax_trace.translation import Translation as Translation
from pjax_trace.translation import ViewRule as ViewRule

__version__ = "0.1.0"
