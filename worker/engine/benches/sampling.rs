//! Time of sampling from one row of a large vocabulary, and its ratio to sampling from all tokens.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion};
use stoker_engine::sampling::{Sampling, mix64};

/// Vocabulary size of Qwen2, one of the largest.
const VOCAB: u64 = 152_000;
/// Number of draws for a median.
const DRAWS: usize = 101;

/// A row of normally distributed logits with this standard deviation, and some far above.
fn row(width: f32) -> Vec<f32> {
    let uniform = |n: u64| (mix64(n) >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
    // The sum of four uniform numbers has a standard deviation of 0.58.
    let bell = |token: u64| (0..4).map(|i| uniform(4 * token + i)).sum::<f32>() * width / 0.58;
    let above = |token: u64| if token.is_multiple_of(5_000) { 12.0 } else { 0.0 };
    (0..VOCAB).map(|token| bell(token) + above(token)).collect()
}

/// Sampling options; the first keeps all tokens.
fn samplings() -> Vec<(&'static str, Sampling)> {
    let plain = Sampling::default();
    vec![
        ("plain", plain),
        ("top_p 0.9", Sampling { top_p: 0.9, ..plain }),
        ("top_p 0.99", Sampling { top_p: 0.99, ..plain }),
        ("min_p 0.05", Sampling { min_p: 0.05, ..plain }),
        ("top_p 0.9 min_p 0.05", Sampling { top_p: 0.9, min_p: 0.05, ..plain }),
        ("top_k 50", Sampling { top_k: 50, ..plain }),
        ("top_k 50 top_p 0.9", Sampling { top_k: 50, top_p: 0.9, ..plain }),
    ]
}

fn median(sampling: &Sampling, row: &[f32]) -> Duration {
    let draw = |position| {
        let started = Instant::now();
        black_box(black_box(sampling).pick(black_box(row), position));
        started.elapsed()
    };
    let mut took: Vec<_> = (0..DRAWS).map(draw).collect();
    took.sort_unstable();
    took[DRAWS / 2]
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for (shape, width) in [("flat", 0.3), ("usual", 3.0), ("peaked", 6.0)] {
        let row = row(width);
        let mut group = criterion.benchmark_group(shape);
        for (name, sampling) in samplings() {
            let mut position = 0;
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter(|| {
                    position += 1;
                    sampling.pick(black_box(&row), position)
                });
            });
        }
        group.finish();
        let plain = median(&Sampling::default(), &row);
        for (name, sampling) in samplings() {
            let took = median(&sampling, &row);
            let ratio = took.as_secs_f64() / plain.as_secs_f64();
            println!("{shape}, {name}: {took:.2?}, {ratio:.2} of the plain draw");
        }
    }
    criterion.final_summary();
}
