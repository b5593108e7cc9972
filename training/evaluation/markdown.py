"""Format the cells and tables of a report."""

from collections.abc import Mapping, Sequence


def format_interval(interval: Mapping[str, float] | None, whole: bool = True) -> str:
    """Return a value with its interval (without it if not `whole`); "-" if it was not measured."""
    if interval is None:
        return "-"
    digits = 1 if interval["high"] > 10 else 3
    value = f"{interval['value']:.{digits}f}"
    return f"{value} ({interval['low']:.{digits}f}-{interval['high']:.{digits}f})" if whole else value


def format_difference(difference: Mapping[str, float] | None) -> str:
    """Return a difference with its sign, interval and p value; "-" if it was not measured."""
    if difference is None:
        return "-"
    value, low, high = (f"{difference[name]:+.3f}" for name in ("value", "low", "high"))
    p = "< 0.01" if difference["p"] < 0.01 else f"= {difference['p']:.2f}"
    return f"{value} ({low} to {high}), p {p}"


def format_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))
