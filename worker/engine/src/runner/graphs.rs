//! Graphs of decode steps of some sizes: a GPU starts hundreds of kernels with one call.
//!
//! Graphs are recorded before the first request, the largest first. Each is verified against its
//! kernels launched one by one. A step that is smaller than a recorded one is padded to it.

use stoker_ops::{
    KV_BLOCK,
    fallback::GpuFeature,
    graph::{self, Graph, GraphError},
};

use super::{
    BatchEntry,
    inputs::{BatchInputs, DeviceInputs},
    network::{CachedNetwork, Output},
};

/// Maximum number of sequences in a graph, which bounds the memory of graphs. Larger steps are
/// launched kernel by kernel.
const MAX_SEQUENCES: usize = 128;
/// Minimum width of tables in blocks, and the factor between two widths. Attention skips blocks
/// past a sequence's end.
const MIN_WIDTH: usize = 8;
const WIDTH_FACTOR: usize = 4;
/// Maximum number of bytes for the splits of attention in a graph, which owns them.
const ATTENTION_BYTES: usize = 64 << 20;

/// Size of a decode step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Number of sequences, each with one token.
    sequences: usize,
    /// Number of blocks in each sequence's table.
    width: usize,
}

impl Size {
    /// Returns the sizes to record for up to `sequences` with tables of up to `longest` blocks, the
    /// largest first: 1, 2, 4, 8, and then multiples of eight, which fill tiles of eight rows.
    /// `attention_floats` is the size of a sequence's attention output in floats.
    pub(super) fn all(sequences: usize, longest: usize, attention_floats: usize) -> Vec<Self> {
        let max = sequences.min(MAX_SEQUENCES);
        let counts = [1, 2, 4].into_iter().chain((8..).step_by(8));
        let mut sizes = Vec::new();
        for count in counts {
            let mut width = MIN_WIDTH;
            loop {
                // Splits hold the attention output of a sequence once for each eight blocks.
                let bytes = count * attention_floats * size_of::<f32>() * width.div_ceil(MIN_WIDTH);
                if bytes <= ATTENTION_BYTES {
                    sizes.push(Self { sequences: count, width });
                }
                if width >= longest {
                    break;
                }
                width *= WIDTH_FACTOR;
            }
            if count >= max {
                break;
            }
        }
        sizes.reverse();
        sizes
    }
}

/// Recorded steps, the largest first.
#[derive(Default)]
pub(super) struct Graphs(Vec<RecordedStep>);

struct RecordedStep {
    size: Size,
    inputs: DeviceInputs,
    graph: Graph<Box<dyn FnMut() -> Output>, Output>,
}

/// Reason for which a step cannot be recorded.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("{0}")]
    Graph(#[from] GraphError),
    #[error("a recorded step of {sequences} sequences returns other logits than its kernels")]
    Mismatch { sequences: usize },
    #[error("cannot read the output of a recorded step: {0}")]
    Read(String),
}

impl Graphs {
    /// Records steps of all `sizes` on a cache of `blocks` blocks that is not in use yet.
    pub(super) fn record(
        &mut self,
        network: &CachedNetwork,
        sizes: &[Size],
        blocks: usize,
    ) -> Result<(), RecordError> {
        for size in sizes.iter().filter(|size| size.sequences <= blocks * KV_BLOCK) {
            self.0.push(RecordedStep::new(network, *size, blocks)?);
        }
        tracing::debug!(count = self.0.len(), "steps recorded");
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Runs a decode step, with drafts or without, if a graph of its size or a larger one is
    /// recorded. Every token must need its logits. `spare` is a block that is never read.
    pub(super) fn run(&mut self, entries: &[BatchEntry], spare: usize) -> Option<Output> {
        if entries.iter().any(|entry| entry.ids.len() != entry.logits) {
            return None;
        }
        let tokens = entries.iter().map(|entry| entry.ids.len()).sum();
        let width = entries.iter().map(|entry| entry.table.len()).max()?;
        let fits = |recorded: &&mut RecordedStep| {
            recorded.size.sequences >= tokens && recorded.size.width >= width
        };
        let recorded = self.0.iter_mut().rev().find(fits)?;
        let Size { sequences, width } = recorded.size;
        recorded.inputs.overwrite(&BatchInputs::padded(entries, sequences, width, spare));
        match recorded.graph.replay() {
            Ok(output) => Some(output.clone()),
            Err(error) => {
                GpuFeature::Graphs.failed(&error);
                self.0.clear();
                None
            }
        }
    }
}

impl RecordedStep {
    fn new(network: &CachedNetwork, size: Size, blocks: usize) -> Result<Self, RecordError> {
        let Size { sequences, width } = size;
        let step = |seed| BatchInputs::synthetic(sequences, width, blocks, seed);
        let upload = |seed| {
            let _access = graph::shared_access();
            DeviceInputs::upload(&step(seed), &network.device)
        };
        let mut inputs = upload(0);
        let (held, within) = (inputs.clone(), network.clone());
        let work: Box<dyn FnMut() -> Output> = Box::new(move || within.run(&held, true));
        let graph = Graph::record(&network.device, work)?;

        let _access = graph::shared_access();
        // Inputs differ from those of the recording, so that the graph must read them.
        inputs.overwrite(&step(1));
        let replayed = bits(graph.replay()?)?;
        let launched = bits(&network.run(&DeviceInputs::upload(&step(1), &network.device), true))?;
        if replayed != launched {
            return Err(RecordError::Mismatch { sequences });
        }
        Ok(Self { size, inputs, graph })
    }
}

/// Returns everything that a step outputs, as bits.
fn bits((logits, drawn): &Output) -> Result<(Vec<u32>, Vec<i32>), RecordError> {
    let read = |error: &dyn std::fmt::Display| RecordError::Read(error.to_string());
    let logits = logits.clone().try_into_data().map_err(|error| read(&error))?;
    let drawn = match drawn {
        Some(drawn) => {
            drawn.clone().try_into_data().map_err(|error| read(&error))?.iter().collect()
        }
        None => Vec::new(),
    };
    Ok((logits.iter::<f32>().map(f32::to_bits).collect(), drawn))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(sequences: usize, longest: usize) -> Vec<(usize, usize)> {
        let sizes = Size::all(sequences, longest, 2048);
        sizes.iter().map(|size| (size.sequences, size.width)).collect()
    }

    #[test]
    fn every_step_within_the_limits_fits_into_a_size() {
        assert_eq!(all(1, 5), [(1, 8)]);
        assert_eq!(all(3, 9), [(4, 32), (4, 8), (2, 32), (2, 8), (1, 32), (1, 8)]);
        let sizes = all(64, 128);
        assert_eq!((sizes.len(), sizes[0], sizes[32]), (33, (64, 128), (1, 8)));
        assert_eq!(all(65, 8)[0], (72, 8));
        assert_eq!(all(4096, 8)[0], (128, 8));
    }

    #[test]
    fn sizes_with_a_large_attention_are_not_recorded() {
        let widest = |sequences| {
            let of_one = |size: &&(usize, usize)| size.0 == sequences;
            all(64, 8192).iter().filter(of_one).map(|size| size.1).max()
        };
        assert_eq!((widest(1), widest(64)), (Some(8192), Some(512)));
    }
}
