//! Model digest. Workers with the same digest return the same response to the same request.

use std::fmt::Write;

use stoker_ops::{NUMERICS_VERSION, cpu::int8::Int8};

use super::Quantization;
use crate::{profile::Profile, tokenizer::Tokenizer, weights::ModelFiles};

/// Returns the digest of a simulated model. It covers what determines its responses, not its speed.
pub(super) fn simulated(profile: &Profile, tokenizer: &Tokenizer) -> String {
    let mut digest = Digest(blake3::Hasher::new());
    digest.field("device", b"simulated");
    digest.field("response", &profile.response_tokens.to_le_bytes());
    digest.field("context", &profile.context_length.to_le_bytes());
    digest.field("tokenizer", tokenizer.fingerprint().as_bytes());
    digest.finish()
}

/// Hashes everything that determines a response: numerics, device class, configuration, vocabulary,
/// effective weights.
pub(super) struct Digest(blake3::Hasher);

impl Digest {
    pub(super) fn new(files: &ModelFiles, device_class: &str, quantization: Quantization) -> Self {
        let mut digest = Self(blake3::Hasher::new());
        digest.field("numerics", &NUMERICS_VERSION.to_le_bytes());
        digest.field("device", device_class.as_bytes());
        digest.field("quantization", quantization.name().as_bytes());
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = write!(text, "{:?}", files.config());
        digest.field("config", text.as_bytes());
        digest.field("tokenizer", files.tokenizer().fingerprint().as_bytes());
        let templates = files.chat_templates();
        digest.field("template", templates.plain().unwrap_or_default().as_bytes());
        if !templates.is_empty() {
            digest.field("template engine", stoker_chat_template::ENGINE.as_bytes());
            for (name, text) in templates.iter().chain(templates.special_tokens.iter()) {
                digest.field(name, text.as_bytes());
            }
        }
        digest
    }

    /// Adds a tensor's values after dequantisation. Modules add their tensors in a fixed order.
    pub(super) fn tensor(&mut self, name: &str, values: &[f32]) {
        self.field(name, &[]);
        self.floats(values);
    }

    /// Adds a matrix in 8 bits, or the same numbers in 4 bits.
    pub(super) fn int8(&mut self, name: &str, matrix: &Int8) {
        self.field(name, &[]);
        self.floats(&matrix.scales);
        self.0.update_rayon(bytemuck::cast_slice(&matrix.values));
    }

    /// Hashes values as little-endian bytes on every machine.
    fn floats(&mut self, values: &[f32]) {
        let mut bytes = vec![0u8; size_of_val(values).min(1 << 20)];
        for chunk in values.chunks(1 << 18) {
            let used = &mut bytes[..size_of_val(chunk)];
            for (to, from) in used.as_chunks_mut::<4>().0.iter_mut().zip(chunk) {
                *to = from.to_le_bytes();
            }
            self.0.update_rayon(used);
        }
    }

    pub(super) fn finish(&self) -> String {
        self.0.finalize().to_hex().as_str()[..32].to_owned()
    }

    fn field(&mut self, name: &str, bytes: &[u8]) {
        for part in [name.as_bytes(), bytes] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }
}
