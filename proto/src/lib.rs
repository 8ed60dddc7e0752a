//! The gRPC contract of Stoker, compiled from proto/stoker/v1.
