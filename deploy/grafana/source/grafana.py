"""Grafana's JSON of a dashboard, through the types of the Grafana foundation SDK."""
import itertools
import json
import string
from urllib.parse import quote

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model

from .model import expand

# Variables that stand for data sources.
METRICS, TRACES = "${datasource}", "${traces}"
SOURCE = model.DataSourceRef(type_val="prometheus", uid=METRICS)


def explore_url():
    """Returns the page that searches traces of the shown time."""
    pane = {
        "datasource": TRACES,
        "queries": [{"refId": "A", "queryType": "search", "service": "stoker-router"}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    encoded = quote(json.dumps({"traces": pane}, separators=(",", ":")))
    for variable in (TRACES, "${__from}", "${__to}"):
        encoded = encoded.replace(quote(variable), variable)
    return "/explore?schemaVersion=1&orgId=1&panes=" + encoded


def dashboard_json(spec):
    built = (
        dashboard.Dashboard(spec.title)
        .uid(f"stoker-{spec.name}")
        .description(spec.text)
        .tags(["stoker"])
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .annotation(firing_alerts())
        .link(dashboards_link())
        .link(traces_link())
        .with_variable(dashboard.DatasourceVariable("datasource").label("Metrics").type("prometheus"))
        .with_variable(dashboard.DatasourceVariable("traces").label("Traces").type("jaeger"))
    )
    for variable in spec.variables:
        built.with_variable(query_variable(variable))
    ids = itertools.count(1)
    for title, panels in spec.rows.items():
        built.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            built.with_panel((stat_panel(panel) if panel.stat else time_series(panel)).id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=1).encode(built.build()) + "\n"


def dashboards_link():
    link = dashboard.DashboardLink("Dashboards").type(model.DashboardLinkType.DASHBOARDS).tags(["stoker"])
    return link.as_dropdown(True).keep_time(True).include_vars(True)


def traces_link():
    link = dashboard.DashboardLink("Traces").type(model.DashboardLinkType.LINK)
    return link.url(explore_url()).icon("external link").target_blank(True)


def firing_alerts():
    return (
        dashboard.AnnotationQuery()
        .name("Firing alerts")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("red")
        .expr('ALERTS{alertname=~"Stoker.+",alertstate="firing"}')
    )


def query_variable(variable):
    # All matches series without the label too, as those of a Prometheus that knows no namespaces.
    return (
        dashboard.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(SOURCE)
        .query(expand(variable.query))
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(text="All", value="$__all"))
    )


def common_parts(panel, builder, height):
    builder.title(panel.title).description(panel.text).unit(panel.unit).datasource(SOURCE)
    builder.span(panel.width).height(height)
    for ref, (legend, expression) in zip(string.ascii_uppercase, panel.expressions().items()):
        query = prometheus.Dataquery().ref_id(ref).datasource(SOURCE).expr(expression)
        builder.with_target(query.legend_format(legend or panel.title).range().exemplar(panel.traced))
    return builder


def stat_panel(panel):
    reduce = common.ReduceDataOptions().calcs(["lastNotNull"])
    built = common_parts(panel, stat.Panel(), 4).reduce_options(reduce)
    return built.graph_mode(kinds.BigValueGraphMode.AREA).color_mode(kinds.BigValueColorMode.NONE)


def time_series(panel):
    built = common_parts(panel, timeseries.Panel(), 8)
    built.line_width(1).fill_opacity(30 if panel.stack else 0).show_points(kinds.VisibilityMode.NEVER)
    built.tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING))
    built.legend(
        common.VizLegendOptions()
        .display_mode(kinds.LegendDisplayMode.LIST)
        .placement(kinds.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    if panel.stack:
        built.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    if panel.bottom is not None:
        built.min(panel.bottom)
    if panel.top is not None:
        built.max(panel.top)
    if panel.traced:
        built.links([traces_link()])
    if panel.workers:
        url = "/d/stoker-worker?${datasource:queryparam}&var-worker=${__field.labels.worker}&${__url_time_range}"
        built.data_links([dashboard.DashboardLink("Worker ${__field.labels.worker}").url(url)])
    return built
