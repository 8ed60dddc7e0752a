#!/usr/bin/env python3
"""Writes the dashboards, and copies them and the rules of Prometheus into the chart.

    scripts/dashboards            writes deploy/grafana/dashboards and helm/files
    scripts/dashboards --check    fails if one of these files is out of date, if a query names a metric that
                                  docs/metrics.md does not, if an alert has no tests or no section in
                                  docs/observability.md, and if promtool, where it is installed, finds an error
    scripts/dashboards --list     prints every query of panels and rules as JSON
"""
import argparse
import json
import shutil
import sys
from pathlib import Path

from source import cache, check, cluster, processes, promql, requests, worker
from source.grafana import dashboard_json

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROMETHEUS = ROOT / "deploy/prometheus"
# Helm reads no files outside of the chart.
CHART = ROOT / "helm/files"
DASHBOARDS = [module.DASHBOARD for module in (cluster, requests, worker, cache, processes)]


def outputs():
    """Returns the content of every generated file by its path."""
    files = {CHART / "collector.yaml": (ROOT / "deploy/otel/collector.yaml").read_text()}
    files |= {CHART / "rules" / file.name: file.read_text() for file in PROMETHEUS.glob("rules/*.yml")}
    for spec in DASHBOARDS:
        name, text = f"dashboards/{spec.name}.json", dashboard_json(spec)
        files[HERE / name] = text
        # Short, since all files of a chart are part of each release.
        files[CHART / name] = json.dumps(json.loads(text), separators=(",", ":")) + "\n"
    return files


def queries(interval="1m", variables=None):
    """Yields every query of panels and rules, with the values of its variables in their place."""
    for spec in DASHBOARDS:
        for panel in spec.panels():
            for legend, expression in panel.expressions().items():
                yield {"dashboard": spec.name, "panel": panel.title, "legend": legend,
                       "expr": promql.substitute(expression, interval, variables), "traced": panel.traced, "may_be_empty": panel.may_be_empty}
    for rule in check.read_rules(PROMETHEUS / "rules"):
        name = rule.get("alert") or rule["record"]
        yield {"rule": name, "kind": "alert" if "alert" in rule else "record", "expr": rule["expr"]}


def problems(promtool):
    rules = check.read_rules(PROMETHEUS / "rules")
    named = [(query.get("rule") or f"{query['dashboard']}: {query['panel']}", query["expr"]) for query in queries()]
    yield from check.incomplete_panels(DASHBOARDS)
    yield from check.unknown_metrics(named, rules, ROOT / "docs/metrics.md")
    yield from check.incomplete_alerts(rules, PROMETHEUS / "tests", ROOT / "docs/observability.md")
    if promtool:
        yield from check.promtool_errors(promtool, named, PROMETHEUS / "tests", PROMETHEUS / "prometheus.yml")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--interval", default="1m", metavar="TIME", help="range of rates in --list [default: 1m]")
    parser.add_argument("--promtool", help="program promtool, for --check [default: none]")
    options = parser.parse_args()
    if options.list:
        print(json.dumps(list(queries(options.interval)), indent=1))
        return 0

    files = outputs()
    folders = {path.parent for path in files if path.name != "collector.yaml"}
    surplus = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if path not in files]
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    if not options.check:
        for path in stale:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path])
            print(f"{path.relative_to(ROOT)} written")
        for path in surplus:
            path.unlink()
            print(f"{path.relative_to(ROOT)} removed")
        return 0
    found = [f"{path.relative_to(ROOT)} is out of date: run scripts/dashboards" for path in sorted([*stale, *surplus])]
    found += problems(options.promtool and shutil.which(options.promtool))
    for problem in found:
        print(f"scripts/dashboards: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
