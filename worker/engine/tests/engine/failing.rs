//! A model with non-finite logits for one token: its requests fail, and others are unaffected.

use std::{fs, path::Path};

use safetensors::SafeTensors;
use stoker_engine::{
    Engine, EngineConfig, Event, Model, Request, RequestError, Sampling, model::Quantization,
};

use crate::support::{Client, ROOMY, load_as, request, run, with_choices, write_random};

const HIDDEN: usize = 128;
const VOCAB: usize = 1024;
/// The token whose activations overflow.
const POISON: u32 = 700;
/// The element of the residual stream that is zero for every other token.
const COLUMN: usize = 5;

/// A model of finite weights in which [`POISON`] has infinite inputs to attention: the first norm
/// overflows one element, which is zero for every other token.
fn poisoned_model(quantization: Quantization) -> Model {
    let folder = tempfile::tempdir().unwrap();
    // Untied, since a tied head would affect the logits of all sequences.
    write_random(folder.path(), HIDDEN, 192, false);
    poison(&folder.path().join("model.safetensors"));
    load_as(folder.path(), quantization)
}

fn poison(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut set = |name: &str, index: usize, value: f32| {
        // Tensor data starts after the header's length and the header.
        let start = 8 + header + metadata.info(name).unwrap().data_offsets.0 + 2 * index;
        bytes[start..start + 2].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
    };
    for id in 0..VOCAB {
        let value = if id == POISON as usize { 100.0 } else { 0.0 };
        set("model.embed_tokens.weight", id * HIDDEN + COLUMN, value);
    }
    set("model.layers.0.input_layernorm.weight", COLUMN, 3e38);
    fs::write(path, bytes).unwrap();
}

/// Requests without the token: sampled and greedy, short and over several blocks, one and several
/// choices.
fn healthy() -> Vec<Request> {
    let sampling = |seed| Sampling { temperature: 0.7, seed, ..Sampling::default() };
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let long: Vec<u32> = (0..45).map(|i| 3 + 7 * i).collect();
    vec![
        request(&[5, 6, 7], greedy, 20),
        request(&long, sampling(1), 12),
        with_choices(2, request(&long[..20], sampling(2), 10)),
        request(&long[..16], sampling(3), 30),
    ]
}

/// Requests with the token: at the end, in the middle, and of nothing else.
fn poisoned_requests() -> Vec<Request> {
    let mut long: Vec<u32> = (0..40).map(|i| 9 + 5 * i).collect();
    long[20] = POISON;
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    [vec![8, POISON], long, vec![POISON; 33]].map(|prompt| request(&prompt, greedy, 10)).into()
}

/// The token ids of the first two choices.
fn ids(client: &Client) -> [Vec<u32>; 2] {
    [client.ids_of(0), client.ids_of(1)]
}

fn error(client: &Client) -> Option<RequestError> {
    client.events().into_iter().find_map(|event| match event {
        Event::Failed(error) => Some(error),
        _ => None,
    })
}

fn assert_failed(client: &Client, prompt: usize) {
    // The position is that of the first token to be sampled.
    let error = error(client);
    assert!(
        matches!(error, Some(RequestError::NotFinite { position, .. }) if position == prompt),
        "{error:?} after a prompt of {prompt}"
    );
    assert_eq!(client.events().len(), 1, "the error is the only event");
}

#[test]
fn non_finite_logits_fail_their_request_and_no_other() {
    // Few tokens a step and few blocks: requests wait for blocks and are prefilled in chunks.
    let tight = EngineConfig { max_num_seqs: 4, max_num_batched_tokens: 24, kv_blocks: 7, ..ROOMY };
    for quantization in Quantization::ALL {
        let model = poisoned_model(quantization);
        let (healthy, poisoned) = (healthy(), poisoned_requests());
        let alone: Vec<_> = healthy
            .iter()
            .map(|request| run(&model, ROOMY, std::slice::from_ref(request)).remove(0))
            .collect();
        for client in &alone {
            assert_eq!(error(client), None, "{quantization}");
        }
        let mixed: Vec<_> = poisoned.iter().chain(&healthy).chain(&poisoned).cloned().collect();
        for config in [ROOMY, tight] {
            let together = run(&model, config, &mixed);
            for (number, (client, request)) in together.iter().zip(&mixed).enumerate() {
                match number.checked_sub(poisoned.len()).and_then(|healthy| alone.get(healthy)) {
                    Some(alone) => assert_eq!(ids(client), ids(alone), "{quantization}, {number}"),
                    None => assert_failed(client, request.prompt.len()),
                }
            }
        }
    }
}

#[test]
fn blocks_of_a_failed_request_are_not_read() {
    const BLOCKS: usize = 4;
    let config =
        EngineConfig { max_num_seqs: 2, max_num_batched_tokens: 64, kv_blocks: BLOCKS, ..ROOMY };
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    for quantization in Quantization::ALL {
        let model = poisoned_model(quantization);
        // All positions of all blocks but the last one.
        let everywhere = vec![POISON; BLOCKS * stoker_ops::KV_BLOCK - 1];
        let poisoned = request(&everywhere, greedy, 1);
        for prompt in [1, 15, 16, 17, 40] {
            let prompt: Vec<u32> = (0..prompt).map(|i| 11 + 3 * i).collect();
            let healthy = request(&prompt, greedy, 20);
            let mut engine = Engine::new(model.clone(), config);
            let clients = [&poisoned, &healthy].map(|request| {
                let client = Client::default();
                engine.submit(request.clone(), Box::new(client.clone())).unwrap();
                while engine.step() {}
                client
            });
            assert_failed(&clients[0], everywhere.len());
            let cached = (prompt.len() + 19) / stoker_ops::KV_BLOCK;
            assert_eq!(
                engine.load().cached_blocks,
                cached,
                "no block of the failed request is cached"
            );
            let alone = run(&model, config, &[healthy]).remove(0);
            assert_eq!(clients[1].ids(), alone.ids(), "{quantization}, {}", prompt.len());
            assert_eq!(alone.ids().len(), 20);
        }
    }
}
