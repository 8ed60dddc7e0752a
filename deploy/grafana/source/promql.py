"""What the checks need to know of PromQL."""
import re

KEYWORDS = {"and", "or", "unless", "bool", "offset", "on", "ignoring", "by", "without", "group_left", "group_right",
            "inf", "nan"}


def metrics(expression):
    """Returns the names of metrics in an expression."""
    for part in (r'"(?:[^"\\]|\\.)*"',  # strings
                 r"\{[^{}]*\}",  # matchers
                 r"\[[^\]]*\]",  # ranges
                 r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"):
        expression = re.sub(part, " ", expression)
    names = re.findall(r"(?<![\w.:$])[A-Za-z_:][\w:]*(?![\w:]|\s*\()", expression)
    return {name for name in names if name.lower() not in KEYWORDS}


def substitute(expression, interval, variables=None):
    """Returns the expression as Grafana sends it: every variable is All unless it has a value."""
    expression = expression.replace("$__rate_interval", interval)
    return re.sub(r"\$(\w+)", lambda found: (variables or {}).get(found[1], ".*"), expression)
