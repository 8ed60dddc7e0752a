//! The record of a worker in etcd: a JSON object under the prefix and the worker's id.

use serde::{Deserialize, Serialize};
use stoker_proto::v1::{self as proto, ModelInfo};

use crate::discovery::{Address, Candidate, WorkerId};

/// The value of a worker's key. The router needs only the address and reads everything else from
/// the worker itself; the other fields are for operators and tools that read etcd. Unknown fields
/// are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Address to dial.
    pub address: Address,
    /// Name of the model.
    #[serde(default)]
    pub model: String,
    /// Workers with equal digests generate the same responses.
    #[serde(default)]
    pub digest: String,
    /// Capacity of the worker.
    #[serde(default)]
    pub capacity: Capacity,
    /// Version of the worker's program.
    #[serde(default)]
    pub version: String,
    /// Id of the worker's process.
    #[serde(default)]
    pub instance_id: String,
}

/// `stoker.v1.Capacity`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capacity {
    /// Maximum number of sequences in a batch.
    pub max_num_seqs: u32,
    /// Maximum number of tokens in an engine step.
    pub max_num_batched_tokens: u32,
    /// Number of KV cache blocks.
    pub kv_blocks: u32,
    /// Number of tokens per block.
    pub kv_block_size: u32,
    /// Maximum number of waiting sequences.
    pub max_num_queued_reqs: u32,
}

impl From<proto::Capacity> for Capacity {
    fn from(capacity: proto::Capacity) -> Self {
        Self {
            max_num_seqs: capacity.max_num_seqs,
            max_num_batched_tokens: capacity.max_num_batched_tokens,
            kv_blocks: capacity.kv_blocks,
            kv_block_size: capacity.kv_block_size,
            max_num_queued_reqs: capacity.max_num_queued_reqs,
        }
    }
}

impl WorkerRecord {
    /// Creates the record of a worker at `address` from its response to `GetModelInfo`.
    pub fn new(address: Address, info: ModelInfo) -> Self {
        Self {
            address,
            model: info.model,
            digest: info.digest,
            capacity: info.capacity.map(Capacity::from).unwrap_or_default(),
            version: info.version,
            instance_id: info.instance_id,
        }
    }

    /// Parses the value of a key.
    pub(super) fn from_json(value: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(value)
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers can always be serialized")
    }
}

/// Why a key or its value is malformed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the key has no worker id after the prefix")]
    Key,
    #[error("the value is not a worker record: {0}")]
    Value(#[from] serde_json::Error),
}

/// Returns the id of the worker that `key` names.
pub(super) fn worker_id(prefix: &str, key: &[u8]) -> Result<WorkerId, Malformed> {
    let name = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(prefix));
    name.filter(|name| !name.is_empty()).map(WorkerId::new).ok_or(Malformed::Key)
}

/// Parses a key and its value into a candidate.
pub(super) fn parse_candidate(
    prefix: &str,
    key: &[u8],
    value: &[u8],
) -> Result<Candidate, Malformed> {
    let id = worker_id(prefix, key)?;
    Ok(Candidate::named(id, WorkerRecord::from_json(value)?.address.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn records_round_trip() {
        let capacity =
            proto::Capacity { max_num_seqs: 64, kv_blocks: 128, ..proto::Capacity::default() };
        let info = ModelInfo {
            model: "story".into(),
            digest: "d1".into(),
            version: "0.1.0".into(),
            capacity: Some(capacity),
            instance_id: "01a2".into(),
            ..ModelInfo::default()
        };
        let json = WorkerRecord::new("host:1".parse().unwrap(), info).to_json();
        assert_eq!(
            json,
            r#"{"address":"host:1","model":"story","digest":"d1","capacity":{"max_num_seqs":64,"max_num_batched_tokens":0,"kv_blocks":128,"kv_block_size":0,"max_num_queued_reqs":0},"version":"0.1.0","instance_id":"01a2"}"#,
        );
        let candidate = parse_candidate("/w/", b"/w/127.0.0.1:1/a", json.as_bytes()).unwrap();
        assert_eq!(candidate.id.as_str(), "127.0.0.1:1/a");
        assert_eq!(candidate.address, "host:1");
    }

    /// A record that release 0.1.0 wrote.
    const PREVIOUS: &str = r#"{"address":"10.0.0.7:50052","model":"story","digest":"d1","capacity":{"max_num_seqs":64,"max_num_batched_tokens":512,"kv_blocks":128,"kv_block_size":16,"max_num_queued_reqs":1024},"version":"0.1.0"}"#;

    /// A record that a later release might write.
    const LATER: &str = r#"{"zone":"b","address":"10.0.0.7:50052","model":"story","digest":"d1","capacity":{"gpus":[{"memory":80}],"max_num_seqs":64,"max_num_batched_tokens":512,"kv_blocks":128,"kv_block_size":16,"max_num_queued_reqs":1024},"version":"0.1.0","instance_id":"","labels":{"pool":"a"}}"#;

    #[test]
    fn records_of_other_releases_are_parsed() {
        let capacity = Capacity {
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            kv_blocks: 128,
            kv_block_size: 16,
            max_num_queued_reqs: 1024,
        };
        let expected = WorkerRecord {
            address: "10.0.0.7:50052".parse().unwrap(),
            model: "story".into(),
            digest: "d1".into(),
            capacity,
            version: "0.1.0".into(),
            instance_id: String::new(),
        };
        for json in [PREVIOUS, LATER] {
            assert_eq!(WorkerRecord::from_json(json.as_bytes()).unwrap(), expected, "{json}");
            let candidate = parse_candidate("/w/", b"/w/a", json.as_bytes()).unwrap();
            assert_eq!(candidate.address, "10.0.0.7:50052");
        }
    }

    #[test]
    fn unknown_fields_are_ignored_and_only_the_address_is_required() {
        let extended = br#"{"address": "host:1", "zone": {"name": "b"}, "capacity": {"gpus": 8}}"#;
        assert_eq!(parse_candidate("/w/", b"/w/a", extended).unwrap().address, "host:1");
        assert!(parse_candidate("/w/", b"/w/a", br#"{"address": "host:1"}"#).is_ok());
    }

    #[test]
    fn malformed_records_are_rejected_with_a_reason() {
        for (key, value, why) in [
            (&b"/w/a"[..], &b""[..], "EOF"),
            (b"/w/a", b"\xff", "expected value"),
            (b"/w/a", b"[]", "invalid length"),
            (b"/w/a", b"{}", "missing field `address`"),
            (b"/w/a", br#"{"address": "nowhere"}"#, "host:port"),
            (b"/w/a", br#"{"address": 7}"#, "invalid type"),
            (b"/w/", br#"{"address": "host:1"}"#, "no worker id"),
            (b"/w/\xff", br#"{"address": "host:1"}"#, "no worker id"),
        ] {
            let error = parse_candidate("/w/", key, value).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
