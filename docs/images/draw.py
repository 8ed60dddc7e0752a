#!/usr/bin/env python3
"""Draws the diagrams of the README and of docs/architecture.md as SVG, each for a light and a dark page.

Run it after a change: `python3 docs/images/draw.py`. It needs nothing but Python.
"""

from pathlib import Path
from xml.sax.saxutils import escape

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
THEMES = {
    "light": {
        "text": "#1f2328",
        "muted": "#59636e",
        "line": "#818b98",
        "plain": ("#ffffff", "#818b98"),
        "router": ("#ddf4ff", "#0969da"),
        "worker": ("#dafbe1", "#1a7f37"),
        "engine": ("#ffffff", "#1a7f37"),
        "group": ("#f6f8fa", "#d1d9e0"),
    },
    "dark": {
        "text": "#f0f6fc",
        "muted": "#9198a1",
        "line": "#9198a1",
        "plain": ("#151b23", "#9198a1"),
        "router": ("#121d2f", "#4493f8"),
        "worker": ("#12261e", "#3fb950"),
        "engine": ("#151b23", "#3fb950"),
        "group": ("#151b23", "#3d444d"),
    },
}


class Drawing:
    """Shapes of one picture, in the colours of one theme."""

    def __init__(self, title, width, height, theme):
        self.title, self.width, self.height = title, width, height
        self.theme, self.shapes = THEMES[theme], []

    def text(self, x, y, words, size=14, anchor="middle", weight=400, colour="text"):
        self.shapes.append(
            f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" '
            f'text-anchor="{anchor}" fill="{self.theme[colour]}">{escape(words)}</text>'
        )

    def box(self, x, y, width, height, kind, title, lines=()):
        fill, stroke = self.theme[kind]
        self.shapes.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="1.5"/>'
        )
        middle = x + width / 2
        top = y + height / 2 + 5 - 9 * len(lines)
        if kind == "group":
            self.text(x + 14, y + 24, title, weight=600, anchor="start")
        else:
            self.text(middle, top, title, weight=600)
            for i, line in enumerate(lines, 1):
                self.text(middle, top + 18 * i, line, size=12, colour="muted")

    def arrow(self, *points, label=None, at=None, both=False, dashed=False):
        start = ' marker-start="url(#arrow)"' if both else ""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        self.shapes.append(
            f'<path d="{path}" fill="none" stroke="{self.theme["line"]}" stroke-width="1.5"'
            f'{dash} marker-end="url(#arrow)"{start}/>'
        )
        if label:
            self.text(*at, label, size=12, colour="muted")

    def svg(self):
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" font-family="{escape(FONT)}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n"
            '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            'markerHeight="7" orient="auto-start-reverse">'
            f'<path d="M0 0L10 5L0 10z" fill="{self.theme["line"]}"/></marker></defs>\n'
        )
        return head + "\n".join(self.shapes) + "\n</svg>\n"


def cluster(theme):
    """The cluster: who talks to whom."""
    d = Drawing("Clients call a router, which balances over workers", 860, 330, theme)
    for i, name in enumerate(["microservice", "microservice", "batch job"]):
        d.box(10, 60 + i * 75, 140, 50, "plain", name)
        d.arrow((150, 85 + i * 75), (270, 140 + i * 20))
    d.text(206, 70, "gRPC", size=12, colour="muted")
    d.text(206, 86, "Generate", size=12, colour="muted")
    lines = ["admission, priorities, tenants", "prefix-cache routing", "retries, resume, deadlines"]
    d.box(270, 100, 220, 120, "router", "stoker-router", lines)
    for i in range(3):
        lines = ["continuous batching", "paged KV cache, kernels"]
        d.box(630, 15 + i * 105, 220, 85, "worker", "stoker-worker", lines)
        d.arrow((490, 140 + i * 20), (630, 57 + i * 105), both=True)
    d.text(548, 86, "gRPC", size=12, colour="muted")
    d.box(310, 20, 140, 44, "plain", "etcd")
    d.arrow((380, 64), (380, 100), dashed=True)
    d.text(388, 86, "discovery", size=12, anchor="start", colour="muted")
    d.box(250, 268, 260, 44, "plain", "Prometheus, OTLP collector")
    d.arrow((380, 220), (380, 268), dashed=True)
    d.text(388, 249, "metrics, traces", size=12, anchor="start", colour="muted")
    return d


ROUTER = [
    ("trace", "span, log line and metrics of the request"),
    ("drain gate", "refuses while the process drains"),
    ("validate", "fields, limits, the tenant's priority"),
    ("deadline", "bounds every wait below"),
    ("admission", "the only queue: priorities, tenants, slots"),
    ("model lookup", "the workers that serve the model"),
    ("resume", "continues a response on another worker"),
    ("balance", "selects a worker by work and prefix cache"),
    ("outlier detection", "failures and latency per worker"),
    ("endpoint", "the call to the worker"),
]
WORKER = [
    ("service", "one gRPC call"),
    ("admit", "tokenises, checks, builds the request"),
    ("engine thread", "owns the device; bounded command channel"),
    ("scheduler", "which tokens run in the next step"),
    ("runner", "batch inputs, recorded graphs"),
    ("model", "one decoder for all families"),
    ("ops", "kernels: cpu/* or cube/*"),
    ("sampling", "one draw per row"),
    ("emit", "text that is certain, stop strings"),
    ("response stream", "events back to the router"),
]


def architecture(theme):
    """The life of a request, by the files that it passes."""
    step, top, height = 58, 70, 44
    total = top + step * 10
    d = Drawing("A request passes the router's layers and the worker's stages", 1000, total, theme)
    d.box(160, 20, 380, total - 30, "group", "router  (router/)")
    d.box(590, 20, 400, total - 30, "group", "worker  (worker/)")
    for i, (name, job) in enumerate(ROUTER):
        y = top - 12 + i * step
        d.box(180, y, 340, height, "router", f"{i + 1}  {name}", [job])
        if i:
            d.arrow((350, y - step + height), (350, y))
    for i, (name, job) in enumerate(WORKER):
        y = top - 12 + i * step
        kind = "engine" if 2 <= i <= 8 else "worker"
        d.box(610, y, 360, height, kind, f"{i + 11}  {name}", [job])
        if i:
            d.arrow((790, y - step + height), (790, y))
    first, last = top + 10, top + 10 + 9 * step
    d.box(10, top - 12, 110, height, "plain", "client")
    d.arrow((120, first), (180, first), both=True)
    d.arrow((520, last - 8), (566, last - 8), (566, first), (610, first))
    d.arrow((610, last + 8), (520, last + 8), dashed=True)
    return d


def main():
    folder = Path(__file__).parent
    for draw in (cluster, architecture):
        for theme in THEMES:
            (folder / f"{draw.__name__}-{theme}.svg").write_text(draw(theme).svg())


if __name__ == "__main__":
    main()
