"""Are the prefix cache and speculative decoding effective, and is the KV cache large enough?"""
from .model import MODEL, NAMESPACE, RATE, WORKER, Dashboard, Panel

HIT = "stoker_worker_prefix_cache_hit_tokens_total"
QUERIED = "stoker_worker_prefix_cache_queried_tokens_total"
DRAFTED = "stoker_worker_draft_tokens_total"
ACCEPTED = "stoker_worker_draft_tokens_accepted_total"
STEPS = "stoker_worker_steps_total"
NO_DRAFTS = "speculative decoding is off, or no step drafted"


def total(counter, by):
    return f"sum by ({by}) (rate({counter}{{worker}}{RATE}))"


def ratio(part, whole, by):
    return f"{total(part, by)} / ({total(whole, by)} > 0)"


DASHBOARD = Dashboard(
    name="cache",
    title="Stoker / Speculation and cache",
    text="What prefix cache and speculative decoding save, and how full the KV caches are.",
    variables=(NAMESPACE, MODEL, WORKER),
    rows={
        "Prefix cache": (
            Panel("Hit ratio by model",
                  "Normal is the share of your prompts that repeat; a drop means new prompts, evictions, or requests that "
                  "reach other workers than before.",
                  "percentunit", {"{{model}}": ratio(HIT, QUERIED, "model")}, top=1),
            Panel("Hit ratio by worker",
                  "Normal is similar among workers; a worker that was just started begins at 0.",
                  "percentunit", {"{{worker}}": ratio(HIT, QUERIED, "worker")}, workers=True, top=1),
            Panel("Prompt tokens",
                  "Normal is that most of repeated prompts is found; computed tokens are the prefill that is left.",
                  "cps", {"found": f"sum(rate({HIT}{{worker}}{RATE}))",
                          "computed": f"sum(rate({QUERIED}{{worker}}{RATE})) - sum(rate({HIT}{{worker}}{RATE}))"},
                  stack=True),
        ),
        "Speculative decoding": (
            Panel("Acceptance",
                  "Normal is steady, and higher for repetitive text; where it is low, --num-speculative-tokens adaptive drafts less.",
                  "percentunit", {"{{model}}": ratio(ACCEPTED, DRAFTED, "model")}, top=1, may_be_empty=NO_DRAFTS),
            Panel("Draft tokens",
                  "Normal is fewer drafts under load, since steps then have no room for them; 0 means that it is off.",
                  "cps", {"accepted": f"sum(rate({ACCEPTED}{{worker}}{RATE}))",
                          "rejected": f"sum(rate({DRAFTED}{{worker}}{RATE})) - sum(rate({ACCEPTED}{{worker}}{RATE}))"},
                  stack=True),
            Panel("Accepted tokens per step",
                  "Normal is above 0 where speculation helps; it is what a step generates beyond one token per sequence.",
                  "short", {"{{worker}}": ratio(ACCEPTED, STEPS, "worker")}, workers=True),
        ),
        "KV cache": (
            Panel("KV blocks",
                  "Normal is that cached blocks fill what sequences leave free; without any left, prefixes are evicted early.",
                  "short", {
                      "in use": "sum(stoker_worker_kv_blocks{worker}) - sum(stoker_worker_kv_blocks_free{worker})",
                      "free, cached": "sum(stoker_worker_kv_blocks_cached{worker})",
                      "free, empty": "sum(stoker_worker_kv_blocks_free{worker}) - sum(stoker_worker_kv_blocks_cached{worker})"},
                  stack=True),
            Panel("KV cache usage by model",
                  "Normal is below 95 %; above, sequences wait, so raise --kv-cache-memory or add workers.",
                  "percentunit", {"{{model}}": "max by (model) (stoker_router_model_kv_cache_usage_ratio{model})"}, top=1),
            Panel("Preemptions by model",
                  "Normal is 0; each one frees blocks of a sequence that is computed again later.",
                  "cps", {"{{model}}": total("stoker_worker_preemptions_total", "model")}),
        ),
    },
)
