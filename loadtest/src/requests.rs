//! What is sent: each request is a function of the plan and its index, so that all passes and runs
//! send the same.

pub mod cancellation;
pub mod plan;
pub mod prompts;
pub mod shape;
pub mod trace;
pub mod vocabulary;
