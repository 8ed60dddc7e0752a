//! config.json, and after a byte of 0 generation_config.json.
//!
//! Must hold: no panic; memory is at most 8 MiB and 64 bytes for each byte of the input; an error
//! names its file; and of an accepted configuration, the sizes that the engine computes from it
//! neither overflow nor vanish, and end tokens are in the vocabulary, sorted and unique.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stoker_engine::{
    footprint::Footprint,
    model::Quantization,
    weights::{ModelConfig, fuzz, tensor_shapes},
};
use stoker_fuzz::{bounded, check_error};

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == 0).map(<[u8]>::to_vec);
    let (config, generation) = (parts.next().unwrap_or_default(), parts.next());
    match bounded((8 << 20) + 64 * data.len(), || fuzz::config(config, generation)) {
        Ok(config) => check(&config),
        Err(error) => {
            let error = error.to_string();
            let file = error.starts_with("config.json: ").then_some("config.json: ");
            check_error(&error, file.unwrap_or("generation_config.json: "));
        }
    }
});

fn check(config: &ModelConfig) {
    assert_eq!(config.num_heads % config.num_kv_heads, 0);
    assert_eq!(config.head_dim % 2, 0);
    assert!(config.q_size() >= config.kv_size() && config.kv_size() > 0);
    assert!(config.rms_norm_eps.is_finite() && config.rope_theta.is_finite());
    assert!(config.windows.len() <= config.num_layers);
    assert!((0..config.num_layers).all(|layer| {
        config.window(layer).is_none_or(|window| window.get() < config.context_length)
    }));
    assert!(config.eos_token_ids.is_sorted_by(|a, b| a < b));
    let mut ids = config.eos_token_ids.iter().chain(&config.bos_token_id);
    assert!(ids.all(|id| (*id as usize) < config.vocab_size));
    // Layers are alike, and there may be thousands.
    let few = ModelConfig { num_layers: config.num_layers.min(2), ..config.clone() };
    for (name, shape) in tensor_shapes(&few) {
        let count = shape.iter().try_fold(1_usize, |all, size| all.checked_mul(*size));
        assert!(count.is_some_and(|count| count > 0), "{name} is {shape:?}");
    }
    for quantization in Quantization::ALL {
        let footprint = Footprint::of(&few, quantization);
        assert!(footprint.weight_bytes > 0 && footprint.kv_token_bytes > 0);
    }
}
