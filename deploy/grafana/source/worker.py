"""Which worker is slow, full or stalled, and what does it compute?"""
from .model import MODEL, NAMESPACE, RATE, WORKER, Dashboard, Panel, mean, of_worker, quantile

NO_GPU = "no worker has a GPU"


def each(metric, by="worker"):
    return {"{{worker}}": f"sum by ({by}) ({metric}{{worker}})"}


def each_rate(counter):
    return {"{{worker}}": f"sum by (worker) (rate({counter}{{worker}}{RATE}))"}


DASHBOARD = Dashboard(
    name="worker",
    title="Stoker / Workers",
    text="Load, engine and process of each worker.",
    variables=(NAMESPACE, MODEL, WORKER),
    rows={
        "Load": (
            Panel("Running sequences",
                  "Normal is similar among the workers of a model; 0 on one of them means that routers do not use it.",
                  "short", each("stoker_worker_sequences_running"), workers=True),
            Panel("Waiting sequences",
                  "Normal is near 0; waiting with free KV blocks means --max-num-seqs is reached, without, a full cache.",
                  "short", each("stoker_worker_sequences_waiting"), workers=True),
            Panel("Queued tokens",
                  "Normal is what a worker computes in the time that requests may wait; more calls for workers.",
                  "short", each("stoker_worker_tokens_queued"), workers=True),
            Panel("Outstanding tokens",
                  "Normal is similar among the workers of a model; the router sends new requests where it is low.",
                  "short", {"{{worker}}": 'sum by (worker) (stoker_router_worker_outstanding_tokens{cluster,worker=~"$worker"})'},
                  workers=True),
            Panel("KV cache usage",
                  "Normal is below 95 %; at 100 % sequences wait or are preempted, so raise --kv-cache-memory or add workers.",
                  "percentunit", {"{{worker}}": "max by (worker) (stoker_worker_kv_cache_usage_ratio{worker})"},
                  workers=True, top=1),
            Panel("Preemptions",
                  "Normal is 0; each one computes a sequence again, see KV cache usage.",
                  "cps", each_rate("stoker_worker_preemptions_total"), workers=True),
        ),
        "Engine": (
            Panel("Step duration, p95",
                  "Normal is steady; longer steps are longer times between tokens, from larger batches or a slower device.",
                  "s", {"{{worker}}": quantile(0.95, "stoker_worker_step_duration_seconds", "worker", "worker")},
                  workers=True),
            Panel("Step duration, mean",
                  "Normal is equal among workers of a kind; one that is slower shares its machine or is throttled.",
                  "s", {"{{worker}}": mean("stoker_worker_step_duration_seconds", "worker", "worker")}, workers=True),
            Panel("Steps",
                  "Normal is above 0 while sequences run; 0 with running sequences is a stalled engine, whose log has its threads.",
                  "cps", each_rate("stoker_worker_steps_total"), workers=True),
            Panel("Sequences per step, mean",
                  "Normal is the running sequences; at --max-num-seqs further ones wait.",
                  "short", {"{{worker}}": mean("stoker_worker_step_sequences", "worker", "worker")}, workers=True),
            Panel("Tokens per step, mean",
                  "Normal is the sequences, and more while prompts are computed; at --max-num-batched-tokens prefills wait.",
                  "short", {"{{worker}}": mean("stoker_worker_step_tokens", "worker", "worker")}, workers=True),
            Panel("Generated tokens",
                  "Normal grows with sequences per step; counted when a request ends.",
                  "cps", each_rate("stoker_worker_generated_tokens_total"), workers=True),
            Panel("Memory bandwidth",
                  "Normal for decoding is near the device's limit under load; less means small batches or a throttled device.",
                  "Bps", each_rate("stoker_worker_read_bytes_total"), workers=True),
            Panel("Memory bandwidth, of the highest",
                  "Normal under load is near 100 %; a lasting drop means that the device became slower.",
                  "percentunit", {"{{worker}}": "max by (worker) (stoker_worker_memory_bandwidth_utilization_ratio{worker})"},
                  workers=True, top=1),
            Panel("Inter-token latency, p95",
                  "Normal is the step duration; more means that sequences skip steps or are preempted.",
                  "s", {"{{worker}}": quantile(0.95, "stoker_worker_inter_token_latency_seconds", "worker", "worker")},
                  workers=True),
        ),
        "Process": (
            Panel("CPU",
                  "Normal is --threads while it computes on a CPU; less under load means that others use the machine.",
                  "short", {"{{worker}}": of_worker(f"rate(process_cpu_seconds_total{{cluster}}{RATE})")}, workers=True),
            Panel("Resident memory",
                  "Normal is constant after the start, the model and the KV cache; near the limit the process is killed.",
                  "bytes", {"{{worker}}": of_worker("process_resident_memory_bytes{cluster}")}, workers=True),
            Panel("Event loop delay, p99",
                  "Normal is milliseconds; above 100 ms streams and health checks are late, so leave a CPU to the process.",
                  "s", {"{{worker}}": of_worker(
                      f"histogram_quantile(0.99, rate(stoker_event_loop_delay_seconds_bucket{{cluster}}{RATE}))")},
                  workers=True),
        ),
        "GPU": (
            Panel("GPU utilization",
                  "Normal is near 100 % under load; less means small batches or a CPU that is too busy to feed it.",
                  "percentunit", each("stoker_gpu_utilization_ratio"), workers=True, top=1, may_be_empty=NO_GPU),
            Panel("GPU memory",
                  "Normal is constant; growth is another process, since the KV cache is allocated at start.",
                  "percentunit", {"{{worker}}": "sum by (worker) (stoker_gpu_memory_used_bytes{worker}) / "
                                                "sum by (worker) (stoker_gpu_memory_size_bytes{worker})"},
                  workers=True, top=1, may_be_empty=NO_GPU),
            Panel("GPU temperature",
                  "Normal is below the device's limit; near it, clocks fall and steps become slower.",
                  "celsius", each("stoker_gpu_temperature_celsius"), workers=True, may_be_empty=NO_GPU),
            Panel("GPU clock",
                  "Normal is constant under load; a drop is throttling, by power or temperature.",
                  "hertz", each("stoker_gpu_clock_hertz"), workers=True, may_be_empty=NO_GPU),
            Panel("GPU power",
                  "Normal under load is near the power limit; far below it the GPU waits.",
                  "watt", each("stoker_gpu_power_watts"), workers=True, may_be_empty=NO_GPU),
            Panel("GPU features that failed",
                  "Normal is 0; a feature that failed stays disabled until the worker is restarted.",
                  "short", {"{{worker}} {{feature}}": "sum by (worker, feature) (stoker_gpu_failures_total{worker})"},
                  workers=True, may_be_empty="no GPU feature failed"),
        ),
    },
)
