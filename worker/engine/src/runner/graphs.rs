//! Decode steps of some sizes, recorded: a GPU starts hundreds of kernels with one call.
//!
//! They are recorded before the first request, the largest first, and each is compared with its kernels launched one by
//! one. A step that is smaller than a recorded one is filled up to it.

use stoker_ops::{
    KV_BLOCK,
    fallback::GpuFeature,
    graph::{self, Graph, GraphError},
};

use super::{
    BatchEntry,
    forward::{Network, Output},
    step::{Inputs, Step},
};

/// Steps of more sequences than this are launched, so that there is an end to what is kept.
const MOST_SEQUENCES: usize = 128;
/// The narrowest tables, in blocks, and by how much the next are wider. Past a sequence's end attention does nothing.
const NARROWEST: usize = 8;
const WIDER: usize = 4;
/// Bytes that the splits of attention may take in a graph, which keeps them.
const ATTENTION_BYTES: usize = 64 << 20;

/// How large a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Sequences, each with a token.
    sequences: usize,
    /// Blocks in the table of each.
    width: usize,
}

impl Size {
    /// Those to record for up to `sequences` with tables of up to `longest`, the largest first: 1, 2, 4, 8, and then as many as
    /// fill tiles of eight rows. `attention_row` is what a sequence's attention gives, in floats.
    pub(super) fn all(sequences: usize, longest: usize, attention_row: usize) -> Vec<Self> {
        let most = sequences.min(MOST_SEQUENCES);
        let counts = [1, 2, 4].into_iter().chain((8..).step_by(8));
        let mut sizes = Vec::new();
        for count in counts {
            let mut width = NARROWEST;
            loop {
                // A split holds what a sequence's attention gives once more for each eight blocks.
                let bytes = count * attention_row * size_of::<f32>() * width.div_ceil(NARROWEST);
                if bytes <= ATTENTION_BYTES {
                    sizes.push(Self { sequences: count, width });
                }
                if width >= longest {
                    break;
                }
                width *= WIDER;
            }
            if count >= most {
                break;
            }
        }
        sizes.reverse();
        sizes
    }
}

/// The steps that are recorded, the largest first.
#[derive(Default)]
pub(super) struct Graphs(Vec<Recorded>);

struct Recorded {
    size: Size,
    inputs: Inputs,
    graph: Graph<Box<dyn FnMut() -> Output>, Output>,
}

/// Why steps are launched kernel by kernel.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("{0}")]
    Graph(#[from] GraphError),
    #[error("a recorded step of {sequences} sequences gives other logits than its kernels do")]
    Wrong { sequences: usize },
    #[error("reading what a recorded step gives: {0}")]
    Read(String),
}

impl Graphs {
    /// Records steps of all `sizes` on a cache of `blocks` that nobody uses yet.
    pub(super) fn record(
        &mut self,
        network: &Network,
        sizes: &[Size],
        blocks: usize,
    ) -> Result<(), Unusable> {
        for size in sizes.iter().filter(|size| size.sequences <= blocks * KV_BLOCK) {
            self.0.push(Recorded::new(network, *size, blocks)?);
        }
        tracing::debug!(count = self.0.len(), "steps recorded");
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Runs a step in which every token wants its logits, as they do where sequences decode, with drafts or without, if one of
    /// its size or a larger one is recorded. `spare` is a block that nobody reads.
    pub(super) fn run(&mut self, parts: &[BatchEntry], spare: usize) -> Option<Output> {
        if parts.iter().any(|part| part.ids.len() != part.logits) {
            return None;
        }
        let tokens = parts.iter().map(|part| part.ids.len()).sum();
        let width = parts.iter().map(|part| part.table.len()).max()?;
        let fits = |recorded: &&mut Recorded| {
            recorded.size.sequences >= tokens && recorded.size.width >= width
        };
        let recorded = self.0.iter_mut().rev().find(fits)?;
        let Size { sequences, width } = recorded.size;
        recorded.inputs.overwrite(&Step::padded(parts, sequences, width, spare));
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

impl Recorded {
    fn new(network: &Network, size: Size, blocks: usize) -> Result<Self, Unusable> {
        let Size { sequences, width } = size;
        let step = |seed| Step::made_up(sequences, width, blocks, seed);
        let upload = |seed| {
            let _using = graph::using();
            Inputs::upload(&step(seed), &network.device)
        };
        let mut inputs = upload(0);
        let (held, within) = (inputs.clone(), network.clone());
        let work: Box<dyn FnMut() -> Output> = Box::new(move || within.run(&held, true));
        let graph = Graph::record(&network.device, work)?;

        let _using = graph::using();
        // With other inputs than those it was recorded with: it must look at them.
        inputs.overwrite(&step(1));
        let replayed = bits(graph.replay()?)?;
        let launched = bits(&network.run(&Inputs::upload(&step(1), &network.device), true))?;
        if replayed != launched {
            return Err(Unusable::Wrong { sequences });
        }
        Ok(Self { size, inputs, graph })
    }
}

/// Everything that a step gives.
fn bits((logits, drawn): &Output) -> Result<(Vec<u32>, Vec<i32>), Unusable> {
    let read = |error: &dyn std::fmt::Display| Unusable::Read(error.to_string());
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
    fn sizes_whose_attention_is_large_are_left_out() {
        let widest = |sequences| {
            let of_one = |size: &&(usize, usize)| size.0 == sequences;
            all(64, 8192).iter().filter(of_one).map(|size| size.1).max()
        };
        assert_eq!((widest(1), widest(64)), (Some(8192), Some(512)));
    }
}
