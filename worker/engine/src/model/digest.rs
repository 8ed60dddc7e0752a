//! The digest that makes workers interchangeable: same digest, same answer to the same request.

use std::fmt::Write;

use stoker_ops::NUMERICS_VERSION;

use super::Quantization;
use crate::{simulate::Profile, tokenizer::Tokenizer, weights::ModelFiles};

/// Names a simulated model by what decides its answers; how fast they come does not.
pub(super) fn simulated(profile: &Profile, tokenizer: &Tokenizer) -> String {
    let mut digest = Digest(blake3::Hasher::new());
    digest.field("device", b"simulated");
    digest.field("answer", &profile.answer_tokens.to_le_bytes());
    digest.field("tokenizer", tokenizer.fingerprint().as_bytes());
    digest.finish()
}

/// Hashes what decides an answer: numerics, device class, configuration, vocabulary, effective weights.
pub(super) struct Digest(blake3::Hasher);

impl Digest {
    pub(super) fn new(files: &ModelFiles, quantization: Quantization) -> Self {
        let mut digest = Self(blake3::Hasher::new());
        digest.field("numerics", &NUMERICS_VERSION.to_le_bytes());
        digest.field("device", b"cpu");
        digest.field("quantization", quantization.name().as_bytes());
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = write!(text, "{:?}", files.config());
        digest.field("config", text.as_bytes());
        digest.field("tokenizer", files.tokenizer().fingerprint().as_bytes());
        digest.field("template", files.chat_template().unwrap_or_default().as_bytes());
        digest
    }

    /// Adds a tensor as it is used, after dequantisation. Modules read in a fixed order.
    pub(super) fn tensor(&mut self, name: &str, values: &[f32]) {
        self.field(name, &[]);
        let mut bytes = [0u8; 4096];
        for chunk in values.chunks(bytes.len() / size_of::<f32>()) {
            let used = &mut bytes[..size_of_val(chunk)];
            for (to, from) in used.as_chunks_mut::<4>().0.iter_mut().zip(chunk) {
                *to = from.to_le_bytes();
            }
            self.0.update(used);
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
