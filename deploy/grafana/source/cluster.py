"""Is it broken for clients, and is it the routers, the queue or the workers?"""
from .model import MODEL, NAMESPACE, RATE, Dashboard, Panel, quantile, quantiles, rate_by

REQUESTS = "stoker_router_requests_total"
CLIENT_FAULT = "CANCELLED|INVALID_ARGUMENT|NOT_FOUND|UNIMPLEMENTED|UNAUTHENTICATED"
FAILED = f'sum(rate({REQUESTS}{{model,code!~"OK|{CLIENT_FAULT}"}}{RATE}))'
COUNTED = f'sum(rate({REQUESTS}{{model,code!~"{CLIENT_FAULT}"}}{RATE}))'
SUCCESS = f"1 - {FAILED} / ({COUNTED} > 0)"
FIRST_TOKEN = "stoker_router_time_to_first_token_seconds"
WORKERS = "stoker_router_workers"

DASHBOARD = Dashboard(
    name="cluster",
    title="Stoker / Cluster",
    text="Whether clients get what they request, and which part of the cluster is at fault if not.",
    variables=(NAMESPACE, MODEL),
    rows={
        "Now": (
            Panel("Success ratio",
                  "Normal is above 99.9 %; below, Requests by result has the status, and Rejections the reason.",
                  "percentunit", {"": SUCCESS}, stat=True, width=4, bottom=None),
            Panel("Requests",
                  "Normal is what your clients send; if it drops to 0, look at clients, the network and routers.",
                  "reqps", {"": f"sum(rate({REQUESTS}{{model}}{RATE}))"}, stat=True, width=4),
            Panel("First token, p95",
                  "Normal is below 2.5 s, the objective; above, Requests shows the stage that takes the time.",
                  "s", {"": quantile(0.95, FIRST_TOKEN, "model")}, stat=True, width=4),
            Panel("Live workers",
                  "Normal is all workers that you run; with fewer, Workers by state shows what they are instead.",
                  "short", {"": f'min(sum without (state) ({WORKERS}{{cluster,state="live"}}))'},
                  stat=True, width=4),
            Panel("Requests shed",
                  "Normal is 0; above, Shed by limit names the limit, and workers or limits must be added.",
                  "reqps", {"": f"sum(rate(stoker_router_shed_total{{cluster}}{RATE}))"},
                  stat=True, width=4),
            Panel("Alerts",
                  "Normal is 0; otherwise, docs/observability.md says what to do about each alert.",
                  "short", {"": 'count(ALERTS{alertname=~"Stoker.+",alertstate="firing"}) or vector(0)'},
                  stat=True, width=4),
        ),
        "Clients": (
            Panel("Requests by result",
                  "Normal is OK, and some CANCELLED if clients leave; for another status look at Rejections, Retries "
                  "and Resumes.",
                  "reqps", {"{{code}}": f"sum by (code) (rate({REQUESTS}{{model}}{RATE})) > 0"}, stack=True),
            Panel("Success ratio over time",
                  "Normal is above 99.9 % (faults of clients are left out); a drop at the time of a change points at it.",
                  "percentunit", {"success": SUCCESS}, bottom=None, top=1),
            Panel("Burn rate of the error budget",
                  "Normal is below 1; above 14.4 the budget of 30 days lasts 2 days, so act at once (from "
                  "deploy/prometheus/rules/slo.yml).",
                  "short", {
                      "last hour": 'max(stoker:request_errors:ratio_rate1h{cluster}) / 0.001',
                      "last 6 hours": 'max(stoker:request_errors:ratio_rate6h{cluster}) / 0.001'}),
            Panel("Time to first token",
                  "Normal is steady with p95 below 2.5 s; if it grows, Requests shows whether queue, prefill or router "
                  "does.",
                  "s", quantiles(FIRST_TOKEN, "model"), traced=True),
            Panel("Inter-token latency",
                  "Normal is steady and close to the step duration; if it grows, look at batch size and step duration of "
                  "workers.",
                  "s", quantiles("stoker_router_inter_token_latency_seconds", "model")),
            Panel("Request duration",
                  "Normal follows the length of responses; if it grows with equal lengths, compare the stages in Requests.",
                  "s", quantiles("stoker_router_request_duration_seconds", "model"), traced=True),
            Panel("Mean time per output token",
                  "Normal is like the inter-token latency; much more means that streams pause, for instance to be resumed.",
                  "s", quantiles("stoker_router_time_per_output_token_seconds", "model")),
            Panel("Tokens",
                  "Normal follows the requests; fewer generated tokens at equal requests mean slower workers.",
                  "short", {
                      "prompt, per second": f"sum(rate(stoker_router_prompt_tokens_total{{model}}{RATE}))",
                      "generated, per second": f"sum(rate(stoker_router_generated_tokens_total{{model}}{RATE}))"}),
            Panel("Rejections by reason",
                  "Normal is 0; OVERLOADED calls for workers, INVALID and UNKNOWN_MODEL for a look at clients.",
                  "reqps", {"{{reason}}": rate_by("stoker_router_rejections_total", "reason")}, stack=True),
        ),
        "Admission": (
            Panel("Requests in flight",
                  "Normal is below --max-concurrent-streams with an empty queue; a queue that grows means too few workers.",
                  "short", {
                      "in flight": "sum(stoker_router_requests_in_flight{cluster})",
                      "in the admission queue": "sum(stoker_router_requests_queued{cluster})"}),
            Panel("Wait for admission",
                  "Normal is near 0; seconds mean that all slots are taken, so add workers or raise limits.",
                  "s", quantiles("stoker_router_admission_wait_seconds", "cluster")),
            Panel("Shed by limit",
                  "Normal is 0; the limit says what is exhausted, see the labels in docs/metrics.md.",
                  "reqps", {"{{limit}}": rate_by("stoker_router_shed_total", "limit")}, stack=True),
            Panel("Memory of requests",
                  "Normal is far below --max-request-memory; near it requests are shed, so raise it or limit prompts.",
                  "bytes", {"{{instance}}": "sum by (instance) (stoker_router_request_memory_bytes{cluster})"}),
            Panel("Refused while they were received",
                  "Normal is 0; `timeout` means slow clients, `memory` and `surplus` too large requests.",
                  "reqps", {"{{cause}}": rate_by("stoker_incomplete_requests_refused_total", "cause")}),
            Panel("Running and waiting sequences",
                  "Normal is running with few waiting; waiting for long means that batches or KV caches are full.",
                  "short", {
                      "{{model}} running": "max by (model) (stoker_router_model_sequences_running{model})",
                      "{{model}} waiting": "max by (model) (stoker_router_model_sequences_waiting{model})"}),
        ),
        "Workers": (
            Panel("Workers by state",
                  "Normal is all live; for ejected see Ejections, for stalled the worker's log, for gone whether it runs.",
                  "short", {"{{state}}": f"max by (state) ({WORKERS}{{cluster}})"}),
            Panel("Ejections by reason",
                  "Normal is 0; repeated ejections mean a worker that fails or is slow, see Workers.",
                  "cps", {"{{reason}}": rate_by("stoker_router_ejections_total", "reason")}),
            Panel("Retries by reason",
                  "Normal is near 0; OVERLOADED means that workers are full, UNAVAILABLE that they are lost.",
                  "cps", {"{{reason}}": rate_by("stoker_router_retries_total", "reason")}),
            Panel("Resumes by reason",
                  "Normal is 0, and DRAINING in an upgrade; WORKER_LOST and WORKER_STALLED call for the worker's log.",
                  "cps", {"{{reason}}": rate_by("stoker_router_resumes_total", "reason")}),
            Panel("Time to resume",
                  "Normal is below 1 s, and for a stalled worker --stall-timeout; more means that no worker has room.",
                  "s", quantiles("stoker_router_resume_duration_seconds", "cluster"),
                  may_be_empty="no stream was resumed"),
            Panel("Hedges and unresumable streams",
                  "Normal is near 0; unresumable streams fail with their worker, so raise --resume-memory.",
                  "cps", {
                      "hedges": f"sum(rate(stoker_router_hedges_total{{cluster}}{RATE}))",
                      "unresumable": f"sum(rate(stoker_router_unresumable_streams_total{{cluster}}{RATE}))"}),
        ),
    },
)
