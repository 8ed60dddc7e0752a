//! A Stoker cluster in one process, and a command line to use it or any other cluster.
//!
//! The router and its workers talk real gRPC over loopback sockets, as they would between machines; only
//! discovery stays inside the process.

pub mod cli;
pub mod cluster;
pub mod error;
pub mod generate;
pub mod output;
pub mod serve;
