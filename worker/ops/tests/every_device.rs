//! Properties of every kind of device: a token's bits do not depend on the batch, and products in 8
//! bits are exact.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::num::NonZeroUsize;

use burn::tensor::{DType, Device, Int, Tensor, TensorData, s};
use stoker_ops::{
    Cache, KV_BLOCK, Tokens,
    cpu::int8::Int8,
    draw::Draw,
    graph::Graph,
    noise::Noise,
    ops::{self, CacheKind, Lists, Matrix, Norm, Qkv},
    rope,
};
use support::{Format, Map, On, Values, cpu, devices, has_half_precision, ints, random, tokens};

/// A width for which burn's own product changes its bits, and one that fills no tile.
const WIDTHS: [usize; 2] = [90, 2048];

fn bits<const D: usize>(x: Tensor<D>) -> Vec<u32> {
    x.into_data().iter::<f32>().map(f32::to_bits).collect()
}

fn map(format: Format, n: usize, k: usize) -> Map {
    let values = random([n, k]).into_data().try_to_vec().unwrap();
    Map { matrix: Values { format, values, k }, bias: Some(random([n])) }
}

/// Asserts that single rows of `x` produce the same bits as all rows together.
fn same_alone(x: &Tensor<2>, device: &Device, f: impl Fn(Tensor<2>, &[usize]) -> Tensor<2>) {
    let t = x.dims()[0];
    let all: Vec<usize> = (0..t).collect();
    let together = bits(f(x.on(device), &all));
    for (i, want) in together.chunks_exact(together.len() / t).enumerate() {
        let row = x.clone().slice(s![i..i + 1]).on(device);
        assert_eq!(bits(f(row, &[i])), want, "row {i} of {t} on {device:?}");
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_batch() {
    for device in &devices() {
        for k in WIDTHS {
            for t in [2, 7, 33] {
                let x = random([t, k]);
                let norm = Norm { gain: random([k]), epsilon: 1e-3 }.on(device);
                let residual = random([t, 70]).on(device);
                for format in Format::ALL {
                    let (gate, up) = (map(format, 70, k), map(format, 70, k));
                    let (gate, up) = (gate.on(device), up.on(device));
                    same_alone(&x, device, |x, rows| {
                        let (first, last) = (rows[0], rows[rows.len() - 1]);
                        let residual = residual.clone().slice(s![first..last + 1]);
                        ops::linear_add(x, gate.clone(), residual)
                    });
                    same_alone(&x, device, |x, _| {
                        ops::swiglu(x, norm.clone(), gate.clone(), up.clone())
                    });
                    same_alone(&x, device, |x, _| {
                        let count = x.dims()[0];
                        let rows = ints((0..count as i32).collect(), [count]).on(device);
                        ops::logits(x, rows, norm.clone(), gate.clone())
                    });
                }
            }
        }
    }
}

/// Returns integers in 8 bits, with the maximum in each row.
fn integers(rows: usize, k: usize, seed: u32) -> Vec<i8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 16) % 255) as i32 - 127
    };
    let mut values: Vec<i8> = (0..rows * k).map(|_| next() as i8).collect();
    values.chunks_exact_mut(k).for_each(|row| row[0] = 127);
    values
}

#[test]
fn products_in_8_bits_are_exact() {
    for device in &devices() {
        for (t, n, k) in [(1, 50, 2048), (3, 33, 65), (8, 40, 5632), (17, 70, 640), (70, 200, 2048)]
        {
            let (x, w) = (integers(t, k, 1), integers(n, k, 2));
            let floats = |values: &[i8]| values.iter().map(|v| f32::from(*v)).collect::<Vec<_>>();
            let matrix = Matrix::int8(Int8 { values: w.clone(), scales: vec![1.0; n] }, k, device);
            let zeros = ops::floats(vec![0.0; t * n], [t, n], device);
            let got =
                ops::linear_add(ops::floats(floats(&x), [t, k], device), matrix.into(), zeros);
            let dot = |x: &[i8], w: &[i8]| -> i32 {
                x.iter().zip(w).map(|(x, w)| i32::from(*x) * i32::from(*w)).sum()
            };
            let want: Vec<u32> = x
                .chunks_exact(k)
                .flat_map(|x| w.chunks_exact(k).map(move |w| (dot(x, w) as f32).to_bits()))
                .collect();
            assert_eq!(bits(got), want, "{t} x {n} x {k} on {device:?}");
        }
    }
}

#[test]
fn the_embedding_of_8_bits_is_exact() {
    let (n, k) = (37, 100);
    let values = integers(n, k, 3);
    for device in &devices() {
        let scales: Vec<f32> = (0..n).map(|i| 0.5 + i as f32).collect();
        let table = Matrix::int8(Int8 { values: values.clone(), scales }, k, device);
        let ids = ints(vec![36, 0, 5, 5], [4]).on(device);
        let want: Vec<u32> = [36usize, 0, 5, 5]
            .iter()
            .flat_map(|id| values[id * k..(id + 1) * k].iter().map(move |v| (*v, *id)))
            .map(|(v, id)| (f32::from(v) * (0.5 + id as f32)).to_bits())
            .collect();
        assert_eq!(bits(ops::embed(ids, table)), want, "{device:?}");
    }
}

/// Returns the inputs of a single token of a step.
fn only(tokens: &Tokens, i: usize) -> Tokens {
    let one = |x: &Tensor<1, Int>| x.clone().slice(s![i..i + 1]);
    Tokens {
        positions: one(&tokens.positions),
        slots: one(&tokens.slots),
        rows: one(&tokens.rows),
        tables: tokens.tables.clone(),
    }
}

#[test]
fn a_prompt_has_the_same_bits_whole_and_token_by_token() {
    let (g, group, d, k) = (2, 4, 64, 90);
    let (tokens, blocks) = tokens(&[150, 20], &[0, 130]);
    let (t, h) = (170, g * group);
    let x = random([t, k]);
    let table = rope::table(160, &rope::frequencies(d, 1e4));
    let table = Tensor::<2>::from_data(TensorData::new(table, [160, d]), &cpu());
    let maps = Format::ALL.map(|format| map(format, (h + 2 * g) * d, k));
    let gain = random([k]);
    for device in &devices() {
        let (table, x) = (table.on(device), x.on(device));
        let norm = Norm { gain: gain.on(device), epsilon: 1e-3 };
        let kinds = [CacheKind::F32, CacheKind::F16, CacheKind::F16];
        for (kind, map) in kinds.into_iter().zip(&maps) {
            if kind == CacheKind::F16 && !has_half_precision(device) {
                continue;
            }
            let weights = Qkv { weight: map.on(device), norm: None };
            let run = |x: Tensor<2>, tokens: &Tokens, cache, window| {
                let (q, cache) = ops::project_and_append(
                    x,
                    norm.clone(),
                    weights.clone(),
                    table.clone(),
                    tokens,
                    cache,
                );
                (bits(ops::paged_attention(q, tokens, &cache, window)), cache)
            };
            for window in [None, NonZeroUsize::new(70)] {
                // The second sequence has the same arbitrary cache contents both times.
                let contents = |shape| random(shape).cast(kind_of(kind));
                let cache = Cache {
                    keys: contents([blocks, g, d, KV_BLOCK]),
                    values: contents([blocks, g, KV_BLOCK, d]),
                };
                let (whole, _) = run(x.clone(), &tokens.on(device), cache.on(device), window);
                let mut one_by_one = cache.on(device);
                for (i, want) in whole.chunks_exact(h * d).enumerate() {
                    let row = x.clone().slice(s![i..i + 1]);
                    let (got, cache) = run(row, &only(&tokens, i).on(device), one_by_one, window);
                    one_by_one = cache;
                    assert_eq!(got, want, "token {i}, {kind:?}, window {window:?}, {device:?}");
                }
            }
        }
    }
}

fn kind_of(kind: CacheKind) -> DType {
    match kind {
        CacheKind::F32 => DType::F32,
        CacheKind::F16 => DType::F16,
    }
}

/// Draws from each row on `device`: the token, or `None` if the device is uncertain.
fn drawn(rows: &[(Vec<f32>, Draw)], device: &Device) -> Vec<Option<u32>> {
    let n = rows[0].0.len();
    let logits = rows.iter().flat_map(|(logits, _)| logits.clone()).collect();
    let words = rows.iter().flat_map(|(_, draw)| draw.words()).collect();
    let drawn = ops::draw(
        ops::floats(logits, [rows.len(), n], device),
        ops::ints(words, [rows.len(), Draw::WORDS], device),
    );
    let words: Vec<i32> = drawn.into_data().iter().collect();
    words.chunks_exact(2).map(|row| (row[1] == 0).then_some(row[0] as u32)).collect()
}

#[test]
fn drawn_tokens_match_the_definition() {
    for device in &devices() {
        let (mut certain, mut all) = (0, 0);
        // Sizes around the boundaries of the parts of a row, and that of a vocabulary.
        for n in [1, 2, 255, 2048, 2049, 6_000, 32_000] {
            let row = |position: usize| {
                let logits = random([n]) * 4.0;
                let temperature = [0.0, 0.05, 0.7, 1.0, 3.0][position % 5];
                let draw = Draw { temperature, noise: Noise::new(7, 1, position) };
                (logits.into_data().try_to_vec().unwrap(), draw)
            };
            let rows: Vec<_> = (0..70).map(row).collect();
            for ((logits, draw), got) in rows.iter().zip(drawn(&rows, device)) {
                let want = draw.pick(logits, 0..n as u32);
                assert!(got.is_none_or(|got| got == want), "{got:?}, {want} of {n}, {device:?}");
                assert!(got.is_some() || draw.temperature > 0.0, "a greedy draw is always certain");
                all += 1;
                certain += usize::from(got.is_some());
            }
        }
        assert!(certain * 100 >= all * 99, "{certain} of {all} on {device:?}");
    }
}

#[test]
fn a_device_reports_draws_that_it_cannot_decide() {
    for device in &devices() {
        // Two scores with a given difference; the first is greater in every other row.
        let close = |position: usize| {
            let noise = Noise::new(11, 0, position);
            let apart = 10f64.powi(-(position as i32 % 12)) * [1.0, -1.0][position % 2];
            let mut logits = vec![-20.0f32; 3_000];
            logits[5] = 3.0;
            logits[2_900] = (3.0 + noise.of(5) - noise.of(2_900) - apart) as f32;
            (logits, Draw { temperature: 1.0, noise })
        };
        let rows: Vec<_> = (0..240).map(close).collect();
        let got = drawn(&rows, device);
        for ((logits, draw), got) in rows.iter().zip(&got) {
            let want = draw.pick(logits, 0..3_000);
            assert!(got.is_none_or(|got| got == want), "{got:?} is not {want} on {device:?}");
        }
        let uncertain = got.iter().filter(|got| got.is_none()).count();
        assert!(*device == cpu() || (60..180).contains(&uncertain), "{uncertain} on {device:?}");
    }
}

#[test]
fn logits_that_are_not_finite_are_not_drawn_from() {
    for device in &devices() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 2_500, 2_999] {
                let row = |with: bool| {
                    let mut logits = vec![1.0; 3_000];
                    if with {
                        logits[at] = odd;
                    }
                    logits
                };
                let noise = Noise::new(1, 0, 1);
                let rows = [Draw::GREEDY, Draw { temperature: 1.0, noise }]
                    .map(|draw| [(row(true), draw), (row(false), draw)]);
                let got = drawn(rows.as_flattened(), device);
                let known: Vec<_> = got.iter().map(Option::is_some).collect();
                assert_eq!(known, [false, true, false, true], "{odd} at {at} on {device:?}");
            }
        }
    }
}

#[test]
fn a_graph_reads_the_current_contents_of_its_inputs() {
    for device in &devices() {
        let (t, g, d, k) = (3, 2, 16, 70);
        let (first, blocks) = tokens(&[1, 1, 1], &[5, 40, 200]);
        let (second, _) = tokens(&[1, 1, 1], &[9, 33, 200]);
        let ints = |x: &Tensor<1, Int>| -> Vec<i32> { x.to_data().iter().collect() };
        let lists = |tokens: &Tokens| {
            let tables = tokens.tables.clone().flatten::<1>(0, 1);
            [&tokens.positions, &tokens.slots, &tokens.rows, &tables].map(ints)
        };
        fn slices(lists: &[Vec<i32>; 4]) -> [&[i32]; 4] {
            lists.each_ref().map(Vec::as_slice)
        }
        let (first, second) = (lists(&first), lists(&second));
        let width = first[3].len() / t;
        let x = random([t, k]).on(device);
        let norm = Norm { gain: random([k]), epsilon: 1e-3 }.on(device);
        let table = rope::table(256, &rope::frequencies(d, 1e4));
        let table = ops::floats(table, [256, d], device);
        let weights = Qkv { weight: map(Format::Int8, 3 * g * d, k).on(device), norm: None };
        let empty = Cache::new(blocks, g, d, CacheKind::F32, device);
        let cache = std::cell::RefCell::new(Some(empty));
        let run = |inputs: &Lists| {
            let tokens = Tokens {
                positions: inputs.get(0),
                slots: inputs.get(1),
                rows: inputs.get(2),
                tables: inputs.get(3).reshape([t, width]),
            };
            let (x, norm, weights) = (x.clone(), norm.clone(), weights.clone());
            let held = cache.take().unwrap();
            let (q, held) = ops::project_and_append(x, norm, weights, table.clone(), &tokens, held);
            let y = ops::paged_attention(q, &tokens, &held, None);
            cache.replace(Some(held));
            y
        };
        let mut inputs = Lists::upload(&slices(&first), device);
        let recorded = inputs.clone();
        let graph = match Graph::record(device, || run(&recorded)) {
            Ok(graph) => graph,
            Err(error) => {
                assert_eq!(*device, cpu(), "{error}");
                continue;
            }
        };
        for lists in [&second, &first, &second] {
            inputs.overwrite(&slices(lists));
            let replayed = bits(graph.replay().unwrap().clone());
            assert_eq!(replayed, bits(run(&Lists::upload(&slices(lists), device))));
            // Other work in between must not touch the graph's memory.
            let _other = bits(random([64, 64]).on(device).matmul(random([64, 64]).on(device)));
        }
        let launched = bits(run(&Lists::upload(&slices(&first), device)));
        assert_ne!(bits(graph.replay().unwrap().clone()), launched, "two steps differ");
        // The graph wrote into the cache that plain steps use, and no step copied it.
        assert!(cache.take().unwrap().keys.can_mut());
    }
}

#[test]
fn the_built_in_check_passes() {
    for device in &devices() {
        let checks = stoker_ops::check::all(device);
        assert!(checks.len() > 40);
        for check in checks {
            assert!(check.passed(), "{check:?} on {device:?}");
        }
    }
}
