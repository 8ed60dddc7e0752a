//! What only a GPU does, drawing tokens and replaying recorded steps, changes nothing. On the CPU these hold as well.

use stoker_engine::{
    EngineConfig, Logprobs, Request, Sampling,
    blocks::{Block, BlockPool},
    runner::{BatchEntry, Runner, StepOutput},
};
use stoker_ops::{KV_BLOCK, draw::Draw, fallback::GpuFeature as Fallback, noise::Noise};

use crate::support::{Client, ROOMY, device, request, run, stories_in_all};

/// Few sequences: of each size of a step something is recorded.
const FEW: EngineConfig = EngineConfig { max_num_seqs: 4, max_num_batched_tokens: 64, ..ROOMY };

#[test]
fn a_token_is_the_same_wherever_it_is_drawn() {
    for model in stories_in_all() {
        let prompt = |i: u32| (0..1 + i * 7).map(|j| (i * 131 + j * 17 + 3) % 500).collect();
        let plain = |i: u32| {
            let temperature = [0.0, 1.0, 0.7, 2.0][i as usize % 4];
            let sampling = Sampling { seed: i.into(), temperature, ..Sampling::default() };
            let prompt: Vec<u32> = prompt(i);
            request(&prompt, sampling, 40)
        };
        let requests: Vec<_> = (0..9).map(plain).collect();
        // Whoever wants to know how likely tokens are gets them from the host, which has the logits.
        let told = Logprobs { output: true, prompt: false, top: 0 };
        let asked: Vec<_> =
            requests.iter().map(|r| Request { logprobs: told, ..r.clone() }).collect();
        let ids = |requests: &[Request]| -> Vec<Vec<u32>> {
            run(&model, FEW, requests).iter().map(Client::ids).collect()
        };
        assert_eq!(ids(&requests), ids(&asked), "{}", model.quantization);
        if !device().is_cpu() {
            let mixed: Vec<_> = requests.iter().zip(&asked).flat_map(|(a, b)| [a, b]).collect();
            let mixed: Vec<_> = mixed.into_iter().cloned().collect();
            let together = ids(&mixed);
            let (one, other): (Vec<_>, Vec<_>) =
                together.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).unzip();
            assert_eq!(one, other, "side by side, {}", model.quantization);
        }
    }
}

/// Tokens that a sequence of [`steps`] may grow by.
const LONGER: usize = 36;

/// Runs some steps: prompts of these sequences, then some tokens of those that are chosen each time.
fn steps(runner: &mut Runner, tables: &[Vec<Block>]) -> Vec<StepOutput> {
    let lengths: Vec<usize> = (0..tables.len()).map(|i| 1 + i * 29).collect();
    let ids: Vec<Vec<u32>> = lengths
        .iter()
        .map(|length| (0..length + LONGER).map(|j| (j * 37 % 501) as u32).collect())
        .collect();
    let draw = |row: usize, position: usize| {
        let temperature = [0.0, 0.8][row % 2];
        Draw { temperature, noise: Noise::new(3, row as u32, position) }
    };
    let draws: Vec<Vec<Draw>> =
        (0..ids.len()).map(|row| (1..=ids[row].len()).map(|at| draw(row, at)).collect()).collect();
    let part = |row: usize, start: usize, count: usize, wanted: usize| BatchEntry {
        ids: &ids[row][start..start + count],
        start,
        table: &tables[row],
        logits: wanted,
        draws: &draws[row][start + count - wanted..start + count],
    };
    let prompts: Vec<_> = (0..tables.len()).map(|row| part(row, 0, lengths[row], 1)).collect();
    let mut outcomes = vec![runner.run(&prompts)];
    // Each goes on where it stands: a place that was never written may hold anything.
    let mut ends = lengths.clone();
    for step in 0..12 {
        // All of them, then fewer and fewer: other sizes, and another order.
        let count = tables.len() - step % tables.len();
        let rows: Vec<_> = (0..count).map(|i| (i + step) % tables.len()).collect();
        // One token, or as many as somebody drafted.
        let tokens = |row: usize| 1 + (row + step) % 3;
        let parts: Vec<_> =
            rows.iter().map(|row| part(*row, ends[*row], tokens(*row), tokens(*row))).collect();
        outcomes.push(runner.run(&parts));
        rows.into_iter().for_each(|row| ends[row] += tokens(row));
    }
    outcomes
}

#[test]
fn a_recorded_step_gives_what_its_kernels_give() {
    for model in stories_in_all() {
        let tables = |pool: &BlockPool| -> Vec<Vec<Block>> {
            (0..5)
                .map(|row| pool.take((1 + row * 29 + LONGER).div_ceil(KV_BLOCK)).unwrap())
                .collect()
        };
        let (launched, recorded) = (BlockPool::new(64), BlockPool::new(64));
        let want = steps(&mut Runner::new(model.clone(), 64), &tables(&launched));
        let mut runner = Runner::new(model.clone(), 64);
        runner.prepare(5);
        let got = steps(&mut runner, &tables(&recorded));
        assert_eq!(got, want, "{}", model.quantization);
        let known = device().is_cpu() || !Fallback::Graphs.is_on() || runner.recorded() > 0;
        assert!(known && Fallback::Graphs.failures() == 0, "nothing was recorded");
    }
}
