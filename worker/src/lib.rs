//! The worker: one model on one device behind gRPC.
