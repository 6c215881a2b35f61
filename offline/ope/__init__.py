"""Off-policy evaluation: what logged episodes say of a policy that did not act in them."""

from offline.ope.errors import OpeError as OpeError
from offline.ope.evaluation import evaluate as evaluate
from offline.ope.settings import ESTIMATORS as ESTIMATORS
from offline.ope.settings import Estimate as Estimate
from offline.ope.settings import Evaluation as Evaluation
from offline.ope.settings import OpeSettings as OpeSettings
from offline.ope.target import PolicyTarget as PolicyTarget
from offline.ope.target import Target as Target
