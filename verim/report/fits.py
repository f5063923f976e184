"""A fitted law, the published laws and the models over the years as lines of text."""

from collections.abc import Sequence

from verim.report.words import quantity, scientific, significant
from verim.scaling.fit import PARAMETERS
from verim.scaling.fit_report import FitReport
from verim.scaling.model_table import PUBLISHED_MODELS
from verim.scaling.published import LAWS

_WORDS = {"alpha": "α", "beta": "β"}


def fit_lines(report: FitReport) -> list[str]:
    """The report of a fit, most important first; warnings last, where the eye ends."""
    fitted, law, columns = report.fitted, report.fitted.law, report.table.columns
    read = ", ".join(f"{role} {name!r}" for role, name in columns._asdict().items() if name is not None)
    lines = [f"{fitted.runs} runs ({read}), {_range(report.range.low, report.range.high)} FLOPs", ""]
    lines.append("L(N, D) = E + A/N^α + B/D^β, with 90 % intervals")
    for name in PARAMETERS:
        low, high = fitted.intervals[name]
        unfixed = "" if fitted.identified[name] else "   these runs do not fix it"
        value = significant(getattr(law, name), 4)
        lines.append(f"  {_WORDS.get(name, name)} = {value:>12}   {significant(low)} to {significant(high)}{unfixed}")
    lines += ["", "Where a budget goes, N ∝ C^a and D ∝ C^b"]
    lines += [f"  {line}" for line in _exponent_lines(report)]
    full, projected = significant(fitted.conditioning_full), significant(fitted.conditioning)
    lines += [
        "",
        f"residuals: {100 * fitted.spread:.3g} % (standard deviation)",
        f"condition number: {projected} for the exponents, which are searched, {full} for all five parameters at once",
    ]
    lines += _left_out_lines(report) + _bias_lines(report)
    if report.plans:
        lines += ["", "Optimum: budget in FLOPs, parameters, tokens, tokens a parameter, loss (90 % of a run)"]
    for plan in report.plans:
        N, D, L = plan.optimum
        lines.append(
            f"  {scientific(plan.C, 3):>14}  {quantity(N):>8}  {quantity(D):>8}  {significant(D / N):>8}  {L:.4f} "
            f"({plan.predicted.low:.4f} to {plan.predicted.high:.4f})"
        )
    if report.warnings:
        lines += ["", *(f"warning: {warning}" for warning in report.warnings)]
    return lines


def _exponent_lines(report: FitReport) -> list[str]:
    exponents, intervals = report.fitted.law.exponents, report.fitted.intervals
    lines = [
        f"from the surface:   a = {exponents.a:.3f} ({_ends(intervals['a'])}), b = {exponents.b:.3f} "
        f"({_ends(intervals['b'])})"
    ]
    if report.exponents_of_minima is not None:
        through = report.exponents_of_minima
        lines.append(f"from IsoFLOP minima: a = {through.exponent:.3f} ({_ends(through.interval)})")
    if report.envelope is not None:
        found = report.envelope
        lines.append(
            f"from the envelope:  a = {found.size.exponent:.3f} ({_ends(found.N_interval)}), "
            f"b = {found.tokens.exponent:.3f} ({_ends(found.D_interval)})"
        )
    return lines


def _left_out_lines(report: FitReport) -> list[str]:
    if not report.left_out:
        return []
    lines = ["", "The law without a budget against that budget's runs: mean error, worst"]
    for error in report.left_out:
        where = "   beyond the others" if error.budget == max(report.budgets) else ""
        lines.append(f"  {scientific(error.budget, 3):>14}  {error.mean:+.2%}  {error.worst:+.2%}{where}")
    return lines


def _bias_lines(report: FitReport) -> list[str]:
    if not report.parabola_bias:
        return []
    worst = max(report.parabola_bias, key=lambda bias: abs(bias.N))
    return [
        f"IsoFLOP parabolas through these sizes would misplace the optimum by up to {100 * worst.N:+.1f} % in N and "
        f"{100 * worst.D:+.1f} % in D, even without noise"
    ]


def law_lines(budgets: Sequence[float]) -> list[str]:
    """The published laws and their optima at `budgets`."""
    lines: list[str] = []
    for name, law in LAWS.items():
        rounded = ", constants rounded as printed" if law.rounded else ""
        lines.append(f"{name}: {law.name}; {law.source}")
        fitted = _range(law.fitted.low, law.fitted.high)
        lines.append(f"  N counts {law.counts.replace('_', '-')} parameters; fitted to {fitted} FLOPs{rounded}")
        for C in budgets:
            N, D, L = law.optimum(C)
            decades = law.fitted.decades_outside(C)
            side = "above" if decades > 0 else "below"
            outside = f"   {abs(decades):.1f} decades {side} the fitted range" if decades else ""
            lines.append(
                f"  {scientific(C, 3):>14} FLOPs: {quantity(N):>8} parameters, {quantity(D):>8} tokens "
                f"({significant(D / N)} a parameter), {L:.3f} {law.unit}{outside}"
            )
        lines.append("")
    return lines[:-1]


def model_lines() -> list[str]:
    """The models over the years."""
    lines = [f"{'model':16} year  parameters    tokens  tokens a parameter  source"]
    for model in PUBLISHED_MODELS:
        ratio = significant(model.tokens_per_parameter)
        lines.append(
            f"{model.name:16} {model.year}  {quantity(model.parameters):>10}  {quantity(model.tokens):>8}  "
            f"{ratio:>18}  {model.source}"
        )
    return lines


def _range(low: float, high: float) -> str:
    return f"{scientific(low)} to {scientific(high)}"


def _ends(interval: tuple[float, float] | None) -> str:
    return "no interval" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
