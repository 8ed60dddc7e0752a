//! Sampling on the device and replay of recorded graphs, which only GPUs do, do not change outputs.
//! The tests pass on the CPU as well.

use stoker_engine::{
    EngineConfig, Logprobs, Request, Sampling,
    kv_cache::{Block, BlockPool},
    runner::{BatchEntry, Runner},
    step_output::StepOutput,
};
use stoker_ops::{KV_BLOCK, draw::Draw, fallback::GpuFeature as Fallback, noise::Noise};

use crate::support::{Client, ROOMY, bundled_models, device, request, run};

/// Limits so small that a graph is recorded for each batch size.
const SMALL: EngineConfig = EngineConfig { max_num_seqs: 4, max_num_batched_tokens: 64, ..ROOMY };

#[test]
fn sampling_on_the_device_equals_sampling_on_the_host() {
    for model in bundled_models() {
        let prompt = |i: u32| (0..1 + i * 7).map(|j| (i * 131 + j * 17 + 3) % 500).collect();
        let plain = |i: u32| {
            let temperature = [0.0, 1.0, 0.7, 2.0][i as usize % 4];
            let sampling = Sampling { seed: i.into(), temperature, ..Sampling::default() };
            let prompt: Vec<u32> = prompt(i);
            request(&prompt, sampling, 40)
        };
        let requests: Vec<_> = (0..9).map(plain).collect();
        // Requests with log probabilities are sampled on the host, which then has the logits.
        let logprobs = Logprobs { output: true, prompt: false, top: 0 };
        let with_logprobs: Vec<_> =
            requests.iter().map(|r| Request { logprobs, ..r.clone() }).collect();
        let ids = |requests: &[Request]| -> Vec<Vec<u32>> {
            run(&model, SMALL, requests).iter().map(Client::ids).collect()
        };
        assert_eq!(ids(&requests), ids(&with_logprobs), "{}", model.quantization);
        if !device().is_cpu() {
            let mixed: Vec<_> =
                requests.iter().zip(&with_logprobs).flat_map(|(a, b)| [a, b]).collect();
            let mixed: Vec<_> = mixed.into_iter().cloned().collect();
            let together = ids(&mixed);
            let (one, other): (Vec<_>, Vec<_>) =
                together.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).unzip();
            assert_eq!(one, other, "side by side, {}", model.quantization);
        }
    }
}

/// Maximum number of tokens that a sequence of [`steps`] grows by.
const MAX_GROWTH: usize = 36;

/// Runs a prefill step of all sequences, then twelve steps with tokens of varying subsets.
fn steps(runner: &mut Runner, tables: &[Vec<Block>]) -> Vec<StepOutput> {
    let lengths: Vec<usize> = (0..tables.len()).map(|i| 1 + i * 29).collect();
    let ids: Vec<Vec<u32>> = lengths
        .iter()
        .map(|length| (0..length + MAX_GROWTH).map(|j| (j * 37 % 501) as u32).collect())
        .collect();
    let draw = |row: usize, position: usize| {
        let temperature = [0.0, 0.8][row % 2];
        Draw { temperature, noise: Noise::new(3, row as u32, position) }
    };
    let draws: Vec<Vec<Draw>> =
        (0..ids.len()).map(|row| (1..=ids[row].len()).map(|at| draw(row, at)).collect()).collect();
    let entry = |row: usize, start: usize, count: usize, logits: usize| BatchEntry {
        ids: &ids[row][start..start + count],
        start,
        table: &tables[row],
        logits,
        draws: &draws[row][start + count - logits..start + count],
    };
    let prompts: Vec<_> = (0..tables.len()).map(|row| entry(row, 0, lengths[row], 1)).collect();
    let mut outputs = vec![runner.run(&prompts)];
    // Each sequence continues at its end, since cache slots that were never written hold anything.
    let mut ends = lengths.clone();
    for step in 0..12 {
        // All sequences, then fewer, so that sizes and order vary.
        let count = tables.len() - step % tables.len();
        let rows: Vec<_> = (0..count).map(|i| (i + step) % tables.len()).collect();
        // One token, or several as with drafts.
        let tokens = |row: usize| 1 + (row + step) % 3;
        let entries: Vec<_> =
            rows.iter().map(|row| entry(*row, ends[*row], tokens(*row), tokens(*row))).collect();
        outputs.push(runner.run(&entries));
        rows.into_iter().for_each(|row| ends[row] += tokens(row));
    }
    outputs
}

#[test]
fn a_recorded_graph_gives_the_outputs_of_its_kernels() {
    for model in bundled_models() {
        let tables = |pool: &BlockPool| -> Vec<Vec<Block>> {
            (0..5)
                .map(|row| pool.allocate((1 + row * 29 + MAX_GROWTH).div_ceil(KV_BLOCK)).unwrap())
                .collect()
        };
        let (launched, recorded) = (BlockPool::new(64), BlockPool::new(64));
        let want = steps(&mut Runner::new(model.clone(), 64), &tables(&launched));
        let mut runner = Runner::new(model.clone(), 64);
        runner.prepare(5);
        let got = steps(&mut runner, &tables(&recorded));
        assert_eq!(got, want, "{}", model.quantization);
        let known = device().is_cpu() || !Fallback::Graphs.is_on() || runner.num_graphs() > 0;
        assert!(known && Fallback::Graphs.failures() == 0, "nothing was recorded");
    }
}
