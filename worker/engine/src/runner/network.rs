//! The network with its KV caches on a device.

use std::{cell::RefCell, rc::Rc};

use burn::tensor::{Device, Int, Tensor};
use stoker_ops::{
    Cache,
    ops::{self, CacheKind},
};

use super::inputs::DeviceInputs;
use crate::model::{Decoder, Model};

/// Output of the network: logits `[logits_indices, vocab]`, and the draws, if the device draws.
pub(super) type Output = (Tensor<2>, Option<Tensor<2, Int>>);

/// The network with its caches. Graphs hold a clone.
#[derive(Clone)]
pub(super) struct CachedNetwork {
    /// The device of the caches.
    pub(super) device: Device,
    decoder: Rc<Decoder>,
    /// KV caches, written in place: this must be the only handle.
    caches: Rc<RefCell<Vec<Cache>>>,
    shape: CacheShape,
    /// Number of floats that attention outputs for a sequence; each of its splits needs the same.
    pub(super) attention_floats: usize,
}

/// Shape of the KV caches.
#[derive(Clone, Copy)]
struct CacheShape {
    layers: usize,
    blocks: usize,
    heads: usize,
    head_dim: usize,
    kind: CacheKind,
}

impl CacheShape {
    /// Allocates zeroed caches.
    fn allocate(self, device: &Device) -> Vec<Cache> {
        let Self { layers, blocks, heads, head_dim, kind } = self;
        (0..layers).map(|_| Cache::new(blocks, heads, head_dim, kind, device)).collect()
    }
}

impl CachedNetwork {
    /// Allocates zeroed caches of `blocks`.
    pub(super) fn new(decoder: Decoder, model: &Model, device: Device, blocks: usize) -> Self {
        let config = &model.config;
        let shape = CacheShape {
            layers: config.num_layers,
            blocks,
            heads: config.num_kv_heads,
            head_dim: config.head_dim,
            kind: model.quantization.cache_kind(),
        };
        Self {
            decoder: Rc::new(decoder),
            caches: Rc::new(RefCell::new(shape.allocate(&device))),
            device,
            shape,
            attention_floats: config.num_heads * config.head_dim,
        }
    }

    /// Replaces the caches by zeroed ones.
    pub(super) fn reset_caches(&self) {
        self.caches.take();
        self.caches.replace(self.shape.allocate(&self.device));
    }

    /// Runs a step, kernel by kernel.
    pub(super) fn run(&self, inputs: &DeviceInputs, draws: bool) -> Output {
        let caches = self.caches.take();
        let (logits, written) =
            self.decoder.forward(inputs.ids(), &inputs.tokens(), caches, inputs.logits_indices());
        self.caches.replace(written);
        let drawn = draws.then(|| ops::draw(logits.clone(), inputs.draws()));
        (logits, drawn)
    }
}
