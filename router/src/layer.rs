//! Layers of the stack, one file each.

pub(crate) mod admission;
pub(crate) mod balance;
pub(crate) mod deadline;
pub(crate) mod gate;
pub(crate) mod hide_cached;
pub(crate) mod model;
pub(crate) mod outlier_detection;
pub(crate) mod resume;
pub(crate) mod tenant_limits;
pub(crate) mod trace;
pub(crate) mod validate;
