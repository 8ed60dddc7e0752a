//! Metrics of secrets that are reloaded: certificates and API keys.

use super::{Kind, Metric, label, metric};

/// `stoker_secret_reloads_total`
pub const RELOADS: Metric = metric(
    "stoker_secret_reloads",
    Kind::Counter,
    &[label::SECRET, label::OUTCOME],
    "Reloads of files with certificates or keys; after a failure the previous content stays in use",
);
/// `stoker_secret_last_reload_successful`
pub const LAST_RELOAD: Metric = metric(
    "stoker_secret_last_reload_successful",
    Kind::Gauge,
    &[label::SECRET],
    "1 if the files in use are those on disk, 0 if their last reload failed",
);
/// `stoker_certificate_expiry_timestamp_seconds`
pub const EXPIRY: Metric = Metric {
    unit: Some("seconds"),
    ..metric(
        "stoker_certificate_expiry_timestamp",
        Kind::Gauge,
        &[label::SECRET],
        "End of the validity of a certificate in use, in Unix time",
    )
};

/// All metrics of this module.
pub const ALL: &[Metric] = &[RELOADS, LAST_RELOAD, EXPIRY];
