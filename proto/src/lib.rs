//! The gRPC contract of Stoker, compiled from `proto/stoker/v1`. The protos are the documentation.

pub mod codec;
pub mod duration;

/// Version 1 of the contract: `Inference` and `Control`.
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, reason = "generated; the protos carry the comments")]
    #![allow(clippy::all, clippy::unwrap_used, reason = "generated")]
    tonic::include_proto!("stoker.v1");
}

/// The compiled file descriptors, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/stoker_descriptor.bin"));

/// Every gRPC service name of the contract, as health checks name them.
pub const SERVICES: [&str; 2] = ["stoker.v1.Inference", "stoker.v1.Control"];
