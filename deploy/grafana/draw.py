#!/usr/bin/env python3
"""Draws the panels of every dashboard from a Prometheus, one picture each, to look at them without Grafana.

    scripts/dashboards --draw http://127.0.0.1:9090 --out FOLDER

Runs every query of panels and rules. Exits with 1, and names the panel or the rule, if a query fails, or, with
--require-data, if it returns nothing and that is not expected.
"""
import argparse
import json
import math
import sys
import textwrap
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from generate import DASHBOARDS, queries

COLUMNS = 3
# Units of panels: the symbol, and the step between prefixes.
UNITS = {"s": ("s", 1000), "bytes": ("B", 1000), "Bps": ("B/s", 1000), "reqps": ("req/s", 1000), "cps": ("/s", 1000),
         "short": ("", 1000), "hertz": ("Hz", 1000), "watt": ("W", 1000), "celsius": ("°C", 1000)}


class QueryError(Exception):
    pass


class Prometheus:
    def __init__(self, url, start, end, step):
        self.url, self.range = url.rstrip("/"), {"start": start, "end": end, "step": step}

    def series(self, expression):
        """Returns the labels and the points of every series that the expression has in the range."""
        parameters = urllib.parse.urlencode({"query": expression, **self.range}).encode()
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query_range", parameters, timeout=60) as response:
                result = json.load(response)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise QueryError(json.load(error).get("error", error)) from error
        except urllib.error.URLError as error:
            sys.exit(f"deploy/grafana/draw.py: {self.url}: {error.reason}")
        found = [(one["metric"], [(float(at), float(value)) for at, value in one["values"]]) for one in result]
        return [one for one in found if any(not math.isnan(value) for _, value in one[1])]


def label(legend, labels):
    for name, value in labels.items():
        legend = legend.replace("{{" + name + "}}", value)
    return legend


def quantity(unit):
    """Returns a formatter of numbers of a unit, with a prefix."""
    if unit == "percentunit":
        return lambda value, _=None: f"{100 * value:g} %"
    symbol, step = UNITS[unit]

    def text(value, _=None):
        prefixes = ["", "k", "M", "G", "T"]
        while abs(value) >= step and len(prefixes) > 1:
            value, prefixes = value / step, prefixes[1:]
        if unit == "s" and 0 < abs(value) < 1:
            return f"{1000 * value:.3g} ms"
        return f"{value:.3g} {prefixes[0]}{symbol}".strip()
    return text


def draw_panel(axes, panel, lines, start):
    axes.set_title(panel.title, fontsize=9, loc="left", weight="bold")
    axes.text(0, -0.2, textwrap.fill(panel.text, 110), fontsize=5.5, va="top", transform=axes.transAxes, color="#666")
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(FuncFormatter(quantity(panel.unit)))
    if not lines:
        axes.text(0.5, 0.5, "no data", ha="center", transform=axes.transAxes, color="#a00")
        return
    times = sorted({at for _, points in lines for at, _ in points})
    shown = [at - start for at in times]
    values = [[dict(points).get(at, math.nan) for at in times] for _, points in lines]
    names = [name or panel.title for name, _ in lines]
    if panel.stack:
        axes.stackplot(shown, [[0 if math.isnan(v) else v for v in line] for line in values], labels=names, alpha=0.7)
    else:
        for name, line in zip(names, values):
            axes.plot(shown, line, label=name, linewidth=1)
    if panel.stat:
        axes.text(0.98, 0.9, quantity(panel.unit)(values[0][-1]), fontsize=16, ha="right", va="top", transform=axes.transAxes)
    axes.legend(fontsize=6, frameon=False, ncols=3, loc="upper left")
    low, high = axes.get_ylim()
    if panel.bottom == 0:
        low, high = 0, panel.top or (high if any(map(any, values)) else 1)
    # Room for the legend.
    axes.set_ylim(low, high + 0.2 * (high - low))


def draw(spec, lines, start, path):
    height = math.ceil(len(spec.panels()) / COLUMNS)
    figure, axes = plt.subplots(height, COLUMNS, figsize=(15, 2.9 * height), squeeze=False)
    figure.suptitle(spec.title, fontsize=12, x=0.02, ha="left")
    for place in axes.flat[len(spec.panels()):]:
        place.axis("off")
    for place, panel in zip(axes.flat, spec.panels()):
        draw_panel(place, panel, lines.get((spec.name, panel.title), []), start)
    figure.tight_layout(h_pad=2.5, rect=(0, 0, 1, 0.985))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of Prometheus")
    parser.add_argument("--out", type=Path, default=Path("target/dashboards"), help="folder [default: target/dashboards]")
    parser.add_argument("--start", type=float, help="Unix time [default: 15 minutes ago]")
    parser.add_argument("--end", type=float, help="Unix time [default: now]")
    parser.add_argument("--interval", default="1m", metavar="TIME", help="range of rates [default: 1m]")
    parser.add_argument("--require-data", action="store_true")
    options = parser.parse_args()
    end = options.end or time.time()
    start = options.start or end - 900
    prometheus = Prometheus(options.url, start, end, max(1, (end - start) // 200))

    lines, failed, empty = {}, [], []
    for query in queries(options.interval):
        name = f"rule {query['rule']}" if "rule" in query else f"{query['dashboard']}: {query['panel']}: {query['legend']}"
        try:
            found = prometheus.series(query["expr"])
        except QueryError as error:
            failed.append(f"{name}: {error}\n    {query['expr']}")
            continue
        # An alert returns something only while it fires.
        if not found and query.get("kind") != "alert" and not query.get("may_be_empty"):
            empty.append(f"{name}: no data\n    {query['expr']}")
        if "panel" in query:
            panel = lines.setdefault((query["dashboard"], query["panel"]), [])
            panel += [(label(query["legend"], labels), points) for labels, points in found]
    options.out.mkdir(parents=True, exist_ok=True)
    for spec in DASHBOARDS:
        path = options.out / f"{spec.name}.png"
        draw(spec, lines, start, path)
        print(path)
    problems = failed + (empty if options.require_data else [])
    for problem in problems:
        print(f"deploy/grafana/draw.py: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
