"""Which part of a request takes the time: router, queue, prefill, decode or stream?"""
from .model import MODEL, NAMESPACE, RATE, WORKER, Dashboard, Panel, mean, quantile, quantiles

STAGES = {
    "tokenize": "stoker_worker_tokenize_time_seconds",
    "queue": "stoker_worker_queue_time_seconds",
    "prefill": "stoker_worker_prefill_time_seconds",
    "decode": "stoker_worker_decode_time_seconds",
    "stream": "stoker_worker_stream_time_seconds",
}
ROUTER_FIRST = mean("stoker_router_time_to_first_token_seconds", "model")
WORKER_FIRST = mean("stoker_worker_time_to_first_token_seconds", "model")
ADMISSION = mean("stoker_router_admission_wait_seconds", "cluster")


def by_worker(stage):
    return {"{{worker}}": quantile(0.95, STAGES[stage], "worker", "worker")}


DASHBOARD = Dashboard(
    name="requests",
    title="Stoker / Requests",
    text="Which stage of a request takes the time. The stages are the spans of its trace.",
    variables=(NAMESPACE, MODEL, WORKER),
    rows={
        "Stages": (
            Panel("Mean time of each stage",
                  "Normal is mostly decode; queue calls for workers, prefill for shorter prompts or a better prefix cache, "
                  "stream for faster clients.",
                  "s", {"admission": ADMISSION, **{name: mean(stage, "worker") for name, stage in STAGES.items()}},
                  stack=True, width=12),
            Panel("p95 of each stage",
                  "Normal is steady; the stage that grew is the one to look at below, by worker.",
                  "s", {"admission": quantile(0.95, "stoker_router_admission_wait_seconds", "cluster"),
                        **{name: quantile(0.95, stage, "worker") for name, stage in STAGES.items()}}, width=12),
        ),
        "Until the first token": (
            Panel("Time to first token at the router",
                  "Normal is p95 below 2.5 s, the objective; an exemplar leads to the trace of a slow request.",
                  "s", quantiles("stoker_router_time_to_first_token_seconds", "model"), traced=True),
            Panel("Time to first token at workers",
                  "Normal is as at the router; if it is less, the time is spent in admission, routing or the network.",
                  "s", quantiles("stoker_worker_time_to_first_token_seconds", "worker"), traced=True),
            Panel("Outside of workers, mean",
                  "Normal is milliseconds; if admission is long add workers, if the rest is, look at retries and the network.",
                  "s", {"admission": ADMISSION,
                        "routing, retries and network": f"clamp_min({ROUTER_FIRST} - {WORKER_FIRST} - {ADMISSION}, 0)"},
                  stack=True),
            Panel("Queue of workers, p95",
                  "Normal is near 0 and equal among workers; a single long one means unequal load or a slow worker.",
                  "s", by_worker("queue"), workers=True),
            Panel("Prefill, p95",
                  "Normal follows the length of prompts; if one worker is slow, compare its step duration with others.",
                  "s", by_worker("prefill"), workers=True),
            Panel("Tokenize, p95",
                  "Normal is milliseconds; more means very long prompts or a busy CPU.",
                  "s", by_worker("tokenize"), workers=True),
        ),
        "From the first token on": (
            Panel("Decode, p95",
                  "Normal follows the length of responses; at equal lengths look at the inter-token latency.",
                  "s", by_worker("decode"), workers=True),
            Panel("Inter-token latency, p95",
                  "Normal is equal among workers; one that is slower is ejected if it stays so, see its steps.",
                  "s", {"{{worker}}": quantile(0.95, "stoker_worker_inter_token_latency_seconds", "worker", "worker")},
                  workers=True),
            Panel("Stream, p95",
                  "Normal is near 0; seconds mean that clients read slowly, see Write stalls in Processes.",
                  "s", by_worker("stream"), workers=True),
        ),
        "Requests": (
            Panel("Request duration at workers",
                  "Normal follows the length of responses; an exemplar leads to the trace of a slow request.",
                  "s", quantiles("stoker_worker_request_duration_seconds", "worker"), traced=True),
            Panel("Requests by outcome",
                  "Normal is stop and length; anything else is the reason of a failure, see docs/metrics.md.",
                  "reqps", {"{{outcome}}": f"sum by (outcome) (rate(stoker_worker_requests_total{{worker}}{RATE})) > 0"},
                  stack=True),
            Panel("Tokens per request",
                  "Normal is what your clients send; longer prompts and responses explain longer stages.",
                  "short", {
                      kind: f"sum(rate(stoker_worker_{kind}_tokens_total{{worker}}{RATE})) / "
                            f"sum(rate(stoker_worker_requests_total{{worker}}{RATE}))"
                      for kind in ("prompt", "generated")}),
            Panel("Deadlines that could not be met",
                  "Normal is 0; more means that queues are longer than clients wait, so add workers or raise deadlines.",
                  "reqps", {"{{worker}}": "sum by (worker) "
                                          f"(rate(stoker_worker_deadline_rejections_total{{worker}}{RATE}))"},
                  workers=True),
            Panel("Rejected and shed",
                  "Normal is 0; the reason and the limit are in Cluster.",
                  "reqps", {
                      "rejected": f"sum(rate(stoker_router_rejections_total{{cluster}}{RATE}))",
                      "shed": f"sum(rate(stoker_router_shed_total{{cluster}}{RATE}))"}),
            Panel("Attempts beyond the first",
                  "Normal is near 0; every one is time that a client waits, and its reason is in Cluster.",
                  "reqps", {
                      "retries": f"sum(rate(stoker_router_retries_total{{cluster}}{RATE}))",
                      "resumes": f"sum(rate(stoker_router_resumes_total{{cluster}}{RATE}))",
                      "hedges": f"sum(rate(stoker_router_hedges_total{{cluster}}{RATE}))"}),
        ),
    },
)
