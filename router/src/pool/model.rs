//! A model and its workers.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash},
    sync::Arc,
};

use foldhash::fast::{FixedState, RandomState};
use stoker_proto::v1::{Capacity, ModelInfo};
use stoker_shared::VERSION;

use super::worker::{Serial, Worker};

/// A model with its live workers.
#[derive(Debug)]
pub(crate) struct Model {
    name: String,
    live: Vec<Arc<Worker>>,
    /// Number of workers that serve it, or did when they were last usable.
    known: usize,
    /// Indices into `live`.
    serials: HashMap<Serial, usize, RandomState>,
    /// Hashes of the instance ids in `live`, equal in all routers.
    ids: Vec<u64>,
    /// Tokens of the longest sequence that any of `live` can hold.
    max_sequence_tokens: u64,
}

fn hash_one(value: &impl Hash) -> u64 {
    FixedState::default().hash_one(value)
}

impl Model {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            live: Vec::new(),
            known: 0,
            serials: HashMap::default(),
            ids: Vec::new(),
            max_sequence_tokens: 0,
        }
    }

    pub(super) fn add_known(&mut self) {
        self.known += 1;
    }

    /// Number of live and unusable workers.
    pub(super) fn known(&self) -> usize {
        self.known
    }

    pub(crate) fn add(&mut self, worker: &Arc<Worker>) {
        self.serials.insert(worker.serial, self.live.len());
        self.ids.push(hash_one(&worker.instance));
        self.max_sequence_tokens = self.max_sequence_tokens.max(worker.max_sequence_tokens());
        self.live.push(Arc::clone(worker));
    }

    pub(crate) fn live(&self) -> &[Arc<Worker>] {
        &self.live
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Tokens of the longest sequence that any live worker can hold.
    pub(crate) fn max_sequence_tokens(&self) -> u64 {
        self.max_sequence_tokens
    }

    /// The live worker with this connection.
    pub(crate) fn by_serial(&self, serial: Serial) -> Option<&Arc<Worker>> {
        self.serials.get(&serial).map(|at| &self.live[*at])
    }

    /// Returns the owner of `hash` by rendezvous hashing. All routers that know the same workers
    /// agree on it, and a worker that joins or leaves changes only the owner of its own hashes.
    pub(crate) fn rendezvous_owner(&self, hash: u64) -> Option<&Arc<Worker>> {
        let mixed = |id: &u64| hash_one(&(id ^ hash));
        let (at, _) = self.ids.iter().enumerate().max_by_key(|(_, id)| mixed(id))?;
        self.live.get(at)
    }

    /// Returns the combined info of all workers: the sum of their capacities, and the digest if all
    /// workers have the same.
    pub(crate) fn info(&self) -> Option<ModelInfo> {
        let (first, rest) = self.live.split_first()?;
        let mut info = ModelInfo {
            version: VERSION.into(),
            worker: String::new(),
            instance_id: String::new(),
            ..first.info.clone()
        };
        for worker in rest {
            info.context_length = info.context_length.max(worker.info.context_length);
            if worker.info.digest != info.digest {
                info.digest.clear();
            }
            if let (Some(sum), Some(one)) = (&mut info.capacity, worker.info.capacity) {
                *sum = add(*sum, one);
            }
        }
        Some(info)
    }
}

fn add(sum: Capacity, one: Capacity) -> Capacity {
    Capacity {
        max_num_seqs: sum.max_num_seqs.saturating_add(one.max_num_seqs),
        max_num_batched_tokens: sum
            .max_num_batched_tokens
            .saturating_add(one.max_num_batched_tokens),
        kv_blocks: sum.kv_blocks.saturating_add(one.kv_blocks),
        kv_block_size: sum.kv_block_size,
        max_num_queued_reqs: sum.max_num_queued_reqs.saturating_add(one.max_num_queued_reqs),
        max_sequence_tokens: sum.max_sequence_tokens.max(one.max_sequence_tokens),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::pool::worker::tests::worker;

    #[tokio::test]
    async fn routers_agree_on_owners_and_a_worker_that_leaves_moves_only_its_own_hashes() {
        let of = |names: &[u32]| {
            let mut model = Model::new("m");
            names.iter().for_each(|name| model.add(&worker(&name.to_string(), "m", "d")));
            model
        };
        let owner = |model: &Model, hash: u64| model.rendezvous_owner(hash).unwrap().id.clone();
        let (one, other, fewer) = (of(&[0, 1, 2, 3]), of(&[3, 1, 0, 2]), of(&[0, 1, 3]));
        let mut owners = HashMap::new();
        for hash in (0..400).map(|i: u64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)) {
            let at = owner(&one, hash);
            assert_eq!(owner(&other, hash), at);
            assert!(at.as_str() == "2" || owner(&fewer, hash) == at);
            *owners.entry(at).or_insert(0) += 1;
        }
        assert!(owners.len() == 4 && owners.values().all(|n| (60..140).contains(n)), "{owners:?}");
        assert!(of(&[]).rendezvous_owner(7).is_none());
    }

    #[tokio::test]
    async fn the_digest_is_reported_only_if_all_workers_have_the_same() {
        let mut model = Model::new("m");
        model.add(&worker("0", "m", "d"));
        model.add(&worker("1", "m", "d"));
        assert_eq!(model.info().unwrap().digest, "d");
        model.add(&worker("2", "m", "other"));
        assert_eq!(model.info().unwrap().digest, "");
    }
}
