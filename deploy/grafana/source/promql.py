"""What the checks need to know of PromQL."""
import re

STRING = r'"(?:[^"\\]|\\.)*"'
KEYWORDS = {"and", "or", "unless", "bool", "offset", "on", "ignoring", "by", "without", "group_left", "group_right",
            "inf", "nan"}


def metrics(expression):
    """Returns the names of metrics in an expression."""
    for part in (STRING,
                 r"\{[^{}]*\}",  # matchers
                 r"\[[^\]]*\]",  # ranges
                 r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"):
        expression = re.sub(part, " ", expression)
    names = re.findall(r"(?<![\w.:$])[A-Za-z_:][\w:]*(?![\w:]|\s*\()", expression)
    return {name for name in names if name.lower() not in KEYWORDS}


def selectors(expression):
    """Yields the name of a metric and the labels that are matched, for every selector with matchers."""
    expression = re.sub(STRING, "", expression)
    for name, matchers in re.findall(r"([A-Za-z_:][\w:]*)\{([^{}]*)\}", expression):
        yield name, set(re.findall(r"\w+(?=\s*(?:=|!))", matchers))


def substitute(expression, interval, variables=None):
    """Returns the expression as Grafana sends it: every variable is All unless it has a value."""
    expression = expression.replace("$__rate_interval", interval)
    return re.sub(r"\$(\w+)", lambda found: (variables or {}).get(found[1], ".*"), expression)
