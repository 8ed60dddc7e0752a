//! The text below the flags in `bench --help`.

use crate::workloads::Workloads;

const ABLATION: &str = "  Gain of each optimization, from unfused f32 to int8:
    stoker-worker bench --ablation
";

const ABOUT: &str = "\
Each job runs in its own process, which loads the model file; peak memory is that process's.
Prompts are random tokens, the same in every run. Sampling is greedy, and end-of-sequence tokens are
ignored. Rows with speculative decoding (--speculate, the last one of --ablation) decode stories
with the bundled model, padded to the size of --random-weights, or with --model: greedy and at
temperature 1. Steps with and without speculative decoding alternate.

A row's keys, in the table, in CSV and in JSON:
  model, scenario, format,          what is measured
  quantize, device, threads, batch
  run                               number of the repetition, from 1; with --soak the minute
  context                           average context length of a sequence while it decodes
  load_seconds                      from opening the file until the model can run
  prompt_tokens, output_tokens      of all sequences of the row
  cached_prompt_tokens              with --shared-prefix: prompt tokens found in the prefix cache
  ttft_seconds                      time to first token from submission, median over sequences
  tpot_seconds                      time per output token: the median step in which all sequences
                                    decode; with speculative decoding, where a step may yield
                                    several tokens, time divided by tokens
  decode_tokens_per_second          batch / tpot_seconds; with --soak the mean over the minute
  prefill_tokens_per_second         prompt_tokens / the time until all sequences had their first
                                    token; with --long-prompt that prompt's
  peak_rss_bytes                    peak resident memory of the row's process
  read_rate_bytes_per_second        memory read rate of all threads, the mean of two measurements in
                                    that process: before it loads the model, and after its last
                                    step; on a GPU the bytes that a copy in its memory reads and
                                    writes
  bandwidth_utilization             bytes that a step must read (weights once, all keys and values)
                                    times steps per second, divided by the read rate
  launches_per_step                 kernel and graph launches of a GPU per decode step
  gpu_utilization, gpu_power_watts, readings of the NVIDIA driver while all sequences decode: means
  gpu_clock_hertz,
  gpu_memory_clock_hertz
  gpu_memory_used_bytes,            the same: maximums
  gpu_temperature_celsius
";

const END: &str = "\
A value that does not apply is null in JSON and empty in CSV. `overhead %`, in the table only, is
the share of a step spent outside the model's operations.

Exit codes: 0, 1 for a failure, 2 for bad usage.";

/// Width of the names of keys.
const KEY: usize = 34;

/// Returns the text, with the keys of all workloads.
pub(super) fn text() -> String {
    let workloads: Workloads = stoker_shared::config::defaults();
    let keys = workloads.keys().into_iter();
    let keys = keys.map(|key| format!("  {:<width$}{}\n", key.name, key.help, width = KEY - 2));
    let examples = workloads.all().into_iter().flat_map(|workload| workload.examples());
    let examples =
        examples.map(|(title, flags)| format!("  {title}:\n    stoker-worker bench {flags}\n"));
    let (examples, keys): (String, String) = (examples.collect(), keys.collect());
    format!("Examples:\n{examples}{ABLATION}\n{ABOUT}{keys}\n{END}")
}
