"""Routers and workers as processes: connections, resources, etcd, telemetry."""
from .model import INSTANCE, NAMESPACE, RATE, Dashboard, Panel, occurred

# Other programs have metrics of these names too.
OURS = "and on (namespace, job, instance) stoker_build_info{process}"
CONNECTIONS = "stoker_connections{process}"


def each(metric):
    return {"{{instance}}": f"sum by (instance) ({metric}{{process}})"}


def each_rate(counter):
    return {"{{instance}}": f"sum by (instance) (rate({counter}{{process}}{RATE}))"}


def by_cause(counter):
    return {"{{cause}}": occurred(f"sum by (cause) (rate({counter}{{process}}{RATE}))", "cause", CONNECTIONS)}


DASHBOARD = Dashboard(
    name="processes",
    title="Stoker / Processes",
    text="Routers and workers as processes.",
    variables=(NAMESPACE, INSTANCE),
    rows={
        "Resources": (
            Panel("CPU",
                  "Normal is below the CPUs that it may use; a router at its limit delays all streams, so add one.",
                  "short", {"{{instance}}": f"rate(process_cpu_seconds_total{{process}}{RATE}) {OURS}"}),
            Panel("Resident memory",
                  "Normal is steady; growth without more requests calls for a restart and a report.",
                  "bytes", {"{{instance}}": f"process_resident_memory_bytes{{process}} {OURS}"}),
            Panel("Event loop delay, p99",
                  "Normal is milliseconds; above 100 ms the process lacks CPU, and its streams and probes are late.",
                  "s", {"{{instance}}": "histogram_quantile(0.99, sum by (le, instance) "
                                        f"(rate(stoker_event_loop_delay_seconds_bucket{{process}}{RATE})))"}),
            Panel("File descriptors, of the limit",
                  "Normal is below 80 %; near 100 % connections are refused, so raise the limit (ulimit -n).",
                  "percentunit", {"{{instance}}": f"process_open_fds{{process}} / process_max_fds{{process}} {OURS}"}, top=1),
            Panel("Threads",
                  "Normal is constant; growth is a leak to report.",
                  "short", {"{{instance}}": f"process_threads{{process}} {OURS}"}),
            Panel("Time since start",
                  "Normal grows; a fall to 0 is a restart, whose cause is the last line of the log.",
                  "s", {"{{instance}}": f"(time() - process_start_time_seconds{{process}}) {OURS}"}),
        ),
        "Connections": (
            Panel("Open connections",
                  "Normal is below --max-connections; at it, idle connections are closed for new ones.",
                  "short", each("stoker_connections")),
            Panel("Accepted connections",
                  "Normal is low, since gRPC connections are kept; many mean that clients open one for each request.",
                  "cps", each_rate("stoker_connections_accepted_total")),
            Panel("Closed connections by cause",
                  "Normal is 0; `idle` means --max-connections is reached, `write_stall` a client that does not read.",
                  "cps", by_cause("stoker_connections_closed_total")),
            Panel("Errors of accepting",
                  "Normal is 0; more means that file descriptors or memory are exhausted.",
                  "cps", each_rate("stoker_accept_errors_total")),
            Panel("Write stalls",
                  "Normal is 0; more means clients that do not read their responses for --write-stall-timeout.",
                  "cps", each_rate("stoker_write_stalls_total")),
            Panel("Requests refused while received",
                  "Normal is 0; `timeout` means slow clients, `memory` and `surplus` too large requests.",
                  "cps", by_cause("stoker_incomplete_requests_refused_total")),
        ),
        "Around": (
            Panel("Connected to etcd",
                  "Normal is 1; at 0 requests are served but new workers are not found, so look at etcd.",
                  "short", {"{{instance}}": "min by (instance) (stoker_etcd_connected{process})"}, top=1,
                  may_be_empty="workers are found without etcd"),
            Panel("Failures of etcd",
                  "Normal is 0; the log of the process has the cause.",
                  "cps", each_rate("stoker_etcd_failures_total"), may_be_empty="workers are found without etcd"),
            Panel("Dropped spans",
                  "Normal is 0; more means that the collector is down or too slow, which requests do not notice.",
                  "cps", each_rate("stoker_spans_dropped_total")),
            Panel("Scraped",
                  "Normal is 1; a process at 0 is down, or Prometheus cannot reach it.",
                  "short", {"{{job}} {{instance}}": "up{process} and on (namespace, job) "
                                                    "group by (namespace, job) (last_over_time(stoker_build_info{process}[1d]))"},
                  top=1),
            Panel("Versions",
                  "Normal is one version, and two in an upgrade; neighbouring releases work together.",
                  "short", {"{{version}}": "count by (version) (stoker_build_info{process})"}),
        ),
    },
)
