//! A Stoker cluster in one process, and a command line to use it or any other cluster.
//!
//! The router and its workers use gRPC over loopback sockets, as they do between machines; only
//! discovery is in-process.

pub mod admin;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod drain;
pub mod error;
pub mod explain;
pub mod generate;
pub mod output;
pub mod routers;
pub mod serve;
pub mod status;
pub mod table;
pub mod top;
pub mod trace;
pub mod waterfall;
