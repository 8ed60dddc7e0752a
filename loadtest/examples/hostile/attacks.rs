//! All attacks. One file of `attacks` has those of one subject, and their rates and limits.

mod floods;
mod grpc_messages;
mod half_open;
mod header_blocks;
mod http1;
mod json;
mod malformed_frames;
mod protobuf;
mod slow;

use std::time::Duration;

use rand::{RngExt, rngs::StdRng};

use crate::attack::Attack;

/// Path of the call that computes something.
const GENERATE: &str = "/stoker.v1.Inference/Generate";
/// How long a server has to end a connection that violates the protocol.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns all attacks.
pub fn all() -> Vec<Attack> {
    [
        malformed_frames::ATTACKS,
        header_blocks::ATTACKS,
        grpc_messages::ATTACKS,
        protobuf::ATTACKS,
        json::ATTACKS,
        http1::ATTACKS,
        floods::ATTACKS,
        half_open::ATTACKS,
        slow::ATTACKS,
    ]
    .concat()
}

/// Returns up to `max` random bytes.
fn random_bytes(rng: &mut StdRng, max: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(1..=max)];
    rng.fill(&mut bytes[..]);
    bytes
}

/// Returns one of `choices`, which is not empty.
fn one_of<T: Copy>(rng: &mut StdRng, choices: &[T]) -> T {
    choices[rng.random_range(0..choices.len())]
}
