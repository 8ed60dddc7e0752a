//! What a worker says about itself in etcd: a JSON object under the prefix and its id.

use serde::{Deserialize, Serialize};
use stoker_proto::v1::{self as proto, ModelInfo};

use crate::discovery::{Address, Candidate, WorkerId};

/// The value of a worker's key. Only the address is needed to use the worker, which tells the rest itself; the
/// rest is for people and tools that read etcd. Fields of later versions are skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Where it can be dialled.
    pub address: Address,
    /// What requests call its model.
    #[serde(default)]
    pub model: String,
    /// Workers of one digest give the same answers.
    #[serde(default)]
    pub digest: String,
    /// How much it can do.
    #[serde(default)]
    pub capacity: Capacity,
    /// Of the worker's program.
    #[serde(default)]
    pub version: String,
    /// Identifies the worker's process.
    #[serde(default)]
    pub instance_id: String,
}

/// `stoker.v1.Capacity`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capacity {
    /// Sequences in one batch.
    pub max_num_seqs: u32,
    /// Tokens in one step.
    pub max_num_batched_tokens: u32,
    /// Blocks of the KV cache.
    pub kv_blocks: u32,
    /// Tokens in one of them.
    pub kv_block_size: u32,
    /// Requests that may wait.
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
    /// What a worker at `address` says, which answers `GetModelInfo` with `info`.
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
        serde_json::to_string(self).expect("text and numbers can always be written")
    }
}

/// What is wrong with a key or its value.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the key has no worker's name after the prefix")]
    Key,
    #[error("the value is no record: {0}")]
    Value(#[from] serde_json::Error),
}

/// The worker that `key` names.
pub(super) fn worker(prefix: &str, key: &[u8]) -> Result<WorkerId, Malformed> {
    let name = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(prefix));
    name.filter(|name| !name.is_empty()).map(WorkerId::new).ok_or(Malformed::Key)
}

/// The candidate that a key and its value announce.
pub(super) fn read(prefix: &str, key: &[u8], value: &[u8]) -> Result<Candidate, Malformed> {
    let id = worker(prefix, key)?;
    Ok(Candidate { id, address: WorkerRecord::from_json(value)?.address.into() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
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
        let candidate = read("/w/", b"/w/127.0.0.1:1/a", json.as_bytes()).unwrap();
        assert_eq!(candidate.id.as_str(), "127.0.0.1:1/a");
        assert_eq!(candidate.address, "host:1");
    }

    /// As release 0.1.0 wrote it.
    const PREVIOUS: &str = r#"{"address":"10.0.0.7:50052","model":"story","digest":"d1","capacity":{"max_num_seqs":64,"max_num_batched_tokens":512,"kv_blocks":128,"kv_block_size":16,"max_num_queued_reqs":1024},"version":"0.1.0"}"#;

    /// As a later release may write it.
    const LATER: &str = r#"{"zone":"b","address":"10.0.0.7:50052","model":"story","digest":"d1","capacity":{"gpus":[{"memory":80}],"max_num_seqs":64,"max_num_batched_tokens":512,"kv_blocks":128,"kv_block_size":16,"max_num_queued_reqs":1024},"version":"0.1.0","instance_id":"","labels":{"pool":"a"}}"#;

    #[test]
    fn records_of_other_releases_can_be_read() {
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
            let candidate = read("/w/", b"/w/a", json.as_bytes()).unwrap();
            assert_eq!(candidate.address, "10.0.0.7:50052");
        }
    }

    #[test]
    fn later_versions_may_say_more_or_less() {
        let more = br#"{"address": "host:1", "zone": {"name": "b"}, "capacity": {"gpus": 8}}"#;
        assert_eq!(read("/w/", b"/w/a", more).unwrap().address, "host:1");
        assert!(read("/w/", b"/w/a", br#"{"address": "host:1"}"#).is_ok());
    }

    #[test]
    fn what_is_no_record_says_why() {
        for (key, value, why) in [
            (&b"/w/a"[..], &b""[..], "EOF"),
            (b"/w/a", b"\xff", "expected value"),
            (b"/w/a", b"[]", "invalid length"),
            (b"/w/a", b"{}", "missing field `address`"),
            (b"/w/a", br#"{"address": "nowhere"}"#, "host:port"),
            (b"/w/a", br#"{"address": 7}"#, "invalid type"),
            (b"/w/", br#"{"address": "host:1"}"#, "no worker's name"),
            (b"/w/\xff", br#"{"address": "host:1"}"#, "no worker's name"),
        ] {
            let error = read("/w/", key, value).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
