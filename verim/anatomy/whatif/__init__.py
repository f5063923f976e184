"""What a training step would take on other hardware: predicted from shapes alone, back-tested where it can be run."""

from verim.anatomy.whatif.calibration import Setting, measure, rates_here
from verim.anatomy.whatif.fitted import FittedRates, Measured, fit
from verim.anatomy.whatif.forecast import Forecast, Span, forecast
from verim.anatomy.whatif.rates import Estimate, Rates, TableRates
from verim.anatomy.whatif.work import ops_of, step_of

__all__ = [
    "Estimate",
    "FittedRates",
    "Forecast",
    "Measured",
    "Rates",
    "Setting",
    "Span",
    "TableRates",
    "fit",
    "forecast",
    "measure",
    "ops_of",
    "rates_here",
    "step_of",
]
