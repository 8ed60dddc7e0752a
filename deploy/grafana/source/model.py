"""What a dashboard consists of, and expressions that many panels share.

In an expression, `{cluster}`, `{model}`, `{worker}` and `{process}` stand for the label matchers of
the dashboard's variables, `{model,code="OK"}` for these and one more.
"""
import re
from dataclasses import dataclass

RATE = "[$__rate_interval]"
SCOPES = {"cluster": 'namespace=~"$namespace"'}
SCOPES["model"] = SCOPES["cluster"] + ',model=~"$model"'
SCOPES["worker"] = SCOPES["model"] + ',worker=~"$worker"'
SCOPES["process"] = SCOPES["cluster"] + ',instance=~"$instance"'

# Has one series for each router, from its start.
ROUTERS = "stoker_router_requests_in_flight{cluster}"


@dataclass(frozen=True)
class Panel:
    title: str
    # What is normal, and what to do if it is not.
    text: str
    unit: str
    # Expressions by their legends.
    queries: dict
    stat: bool = False
    stack: bool = False
    # The histogram has exemplars, which name traces.
    traced: bool = False
    # Lines are workers, and link to their dashboard.
    workers: bool = False
    bottom: float = 0
    top: float = None
    width: int = 8
    # Why it may be empty although requests are served.
    may_be_empty: str = ""

    def expressions(self):
        return {legend: expand(expression) for legend, expression in self.queries.items()}


@dataclass(frozen=True)
class Variable:
    name: str
    label: str
    query: str


@dataclass(frozen=True)
class Dashboard:
    name: str
    title: str
    text: str
    variables: tuple
    # Panels by the title of their row.
    rows: dict

    def panels(self):
        return [panel for panels in self.rows.values() for panel in panels]


NAMESPACE = Variable("namespace", "Namespace", "label_values(stoker_build_info, namespace)")
MODEL = Variable("model", "Model", "label_values(stoker_router_model_sequences_running{cluster}, model)")
WORKER = Variable("worker", "Worker", "label_values(stoker_worker_sequences_running{model}, worker)")
INSTANCE = Variable("instance", "Process", "label_values(stoker_build_info{cluster}, instance)")


def expand(expression):
    """Returns the expression with the matchers of its scopes."""
    scopes = "|".join(SCOPES)
    return re.sub(rf"\{{({scopes})(?=[,}}])", lambda scope: "{" + SCOPES[scope[1]], expression)


def occurred(expression, label, exists=ROUTERS):
    """Only those values of `label` that occurred, of which there may be many that did not; 0 if none did."""
    return f'{expression} > 0 or on () label_replace(0 * sum({exists}), "{label}", "none", "", "")'


def rate_by(counter, label, scope="cluster"):
    return occurred(f"sum by ({label}) (rate({counter}{{{scope}}}{RATE}))", label)


def quantile(share, histogram, scope, by=""):
    labels = ", ".join(filter(None, ["le", by]))
    return f"histogram_quantile({share}, sum by ({labels}) (rate({histogram}_bucket{{{scope}}}{RATE})))"


def quantiles(histogram, scope):
    return {f"p{round(100 * share)}": quantile(share, histogram, scope) for share in (0.5, 0.95, 0.99)}


def mean(histogram, scope, by=""):
    total = "sum" + (f" by ({by})" if by else "")
    return f"{total} (rate({histogram}_sum{{{scope}}}{RATE})) / {total} (rate({histogram}_count{{{scope}}}{RATE}))"


def of_worker(expression):
    """Gives a metric of a process, which has no label `worker`, that of its worker."""
    return f"{expression} * on (namespace, job, instance) group_left (worker) stoker_worker_cache_config_info{{worker}}"
