//! The gRPC API of Stoker, compiled from `proto/stoker/v1`. The proto files document it.
//!
//! ```
//! use prost::Message;
//! use stoker_proto::v1::{GenerateRequest, Sampling, generate_request::Input};
//!
//! let request = GenerateRequest {
//!     input: Some(Input::Prompt("Once upon a time".into())),
//!     sampling: Some(Sampling { temperature: Some(0.5), ..Default::default() }),
//!     ..Default::default()
//! };
//! let bytes = request.encode_to_vec();
//! assert_eq!(GenerateRequest::decode(&bytes[..])?, request);
//! # Ok::<(), prost::DecodeError>(())
//! ```

pub mod codec;
pub mod duration;
mod fields;

/// Version 1 of the API: `Inference` and `Control`, and `Admin` on a listener of its own.
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, reason = "generated; see the proto files")]
    #![allow(clippy::all, clippy::unwrap_used, reason = "generated")]
    tonic::include_proto!("stoker.v1");
}

/// The compiled file descriptors, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/stoker_descriptor.bin"));

/// The services for clients, as health checks name them.
pub const SERVICES: [&str; 2] = ["stoker.v1.Inference", "stoker.v1.Control"];

/// The service for operators, on its own listener.
pub const ADMIN: &str = "stoker.v1.Admin";
