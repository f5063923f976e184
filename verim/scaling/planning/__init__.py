"""The plan: what to train within a budget, on which devices and how, and what to expect of it.

>>> answer = plan(PlanRequest(flops=1e21, device="h100", count=8))      # doctest: +SKIP
>>> answer.allocation.size.total, answer.allocation.tokens              # doctest: +SKIP
"""

from verim.scaling.planning.answer import Allocation, Answer
from verim.scaling.planning.planner import plan
from verim.scaling.planning.request import PlanRequest
from verim.scaling.planning.trial import trial

__all__ = ["Allocation", "Answer", "PlanRequest", "plan", "trial"]
