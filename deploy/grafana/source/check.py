"""What must hold of dashboards and rules, beside that the generated files are up to date."""
import re
import subprocess
import tempfile
from pathlib import Path

import yaml

from . import promql

# Not metrics of Stoker.
COMMON = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
# Labels that Prometheus adds.
TARGET = {"namespace", "job", "instance"}


def documented(text):
    """Returns the labels of all samples that docs/metrics.md lists, by their names."""
    found = {}
    for name, kind, labels in re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram|info) \| ([^|]*)\|", text, re.M):
        labels = set(re.findall(r"\w+", labels))
        if kind == "histogram":
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[name] = labels
    return found


def read_rules(folder):
    """Returns all rules of the files in a folder."""
    return [rule for file in sorted(folder.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]
            for rule in group["rules"]]


def unknown_metrics(queries, rules, metrics_page):
    known = documented(metrics_page.read_text()) | COMMON
    known |= {rule["record"]: {"model"} for rule in rules if "record" in rule}
    for where, expression in queries:
        for name in sorted(promql.metrics(expression) - set(known)):
            yield f"{where}: {metrics_page.name} has no metric {name}"
        for name, labels in promql.selectors(expression):
            for label in sorted(labels - known.get(name, labels) - TARGET):
                yield f"{where}: {name} has no label {label}"


def incomplete_alerts(rules, tests, page):
    """Every alert has a severity, a section in the documentation, a test that it fires and one that it does not."""
    cases = [case for file in tests.glob("*.yml") for test in yaml.safe_load(file.read_text())["tests"]
             for case in test.get("alert_rule_test", [])]
    headings = {heading.lower() for heading in re.findall(r"^#+ (\S+)$", page.read_text(), re.M)}
    for alert in (rule for rule in rules if "alert" in rule):
        name, annotations = alert["alert"], alert.get("annotations", {})
        if alert.get("labels", {}).get("severity") not in ("critical", "warning"):
            yield f"{name}: its severity is neither critical nor warning"
        if not {"summary", "description"} <= set(annotations):
            yield f"{name}: summary or description is missing"
        if annotations.get("runbook") != f"docs/observability.md#{name.lower()}" or name.lower() not in headings:
            yield f"{name}: its runbook is not a section of {page.name}"
        for fires in (True, False):
            if not any(case["alertname"] == name and bool(case["exp_alerts"]) == fires for case in cases):
                yield f"{name}: no test in which it {'fires' if fires else 'does not fire'}"
    for name in {case["alertname"] for case in cases} - {rule.get("alert") for rule in rules}:
        yield f"{name}: there is a test, and no alert"


def incomplete_panels(dashboards):
    for spec in dashboards:
        titles = [panel.title for panel in spec.panels()]
        for panel in spec.panels():
            if not (panel.title and panel.unit and panel.text.startswith("Normal ")):
                yield f"{spec.name}: {panel.title}: a panel needs a title, a unit, and a text that begins with `Normal`"
            if titles.count(panel.title) > 1:
                yield f"{spec.name}: {panel.title} is the title of two panels"


def promtool_errors(promtool, queries, tests, config):
    """Has promtool read the configuration, the rules, and every query as a rule, and run the tests of rules."""
    with tempfile.TemporaryDirectory() as folder:
        panels = Path(folder, "panels.yml")
        # Errors name the group.
        groups = [{"name": f"{where} ({number})", "rules": [{"record": f"query{number}", "expr": expression}]}
                  for number, (where, expression) in enumerate(queries, 1)]
        panels.write_text(yaml.safe_dump({"groups": groups}))
        test_files = sorted(tests.glob("*.yml"))
        for command in (["check", "rules", panels], ["check", "config", config], ["test", "rules", *test_files]):
            done = subprocess.run([promtool, *map(str, command)], capture_output=True, text=True, check=False)
            if done.returncode:
                yield f"promtool {' '.join(command[:2])}:\n{done.stdout}{done.stderr}"
