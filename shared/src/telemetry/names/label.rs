//! Labels of metrics. [`ALL`] says what they may be.

/// A model.
pub const MODEL: &str = "model";
/// A gRPC status.
pub const CODE: &str = "code";
/// Why something failed.
pub const REASON: &str = "reason";
/// Why a connection was closed, or a request refused, before anything was served.
pub const CAUSE: &str = "cause";
/// How something ended.
pub const OUTCOME: &str = "outcome";
/// What a worker is to the router.
pub const STATE: &str = "state";
/// A limit of admission.
pub const LIMIT: &str = "limit";
/// A worker.
pub const WORKER: &str = "worker";
/// A version of Stoker.
pub const VERSION: &str = "version";
/// A part of a GPU.
pub const FEATURE: &str = "feature";

/// Each with its values.
pub const ALL: &[(&str, &str)] = &[
    (MODEL, "One that is served, or `(unknown)` for all others together"),
    (CODE, "A gRPC status by its name, for instance `RESOURCE_EXHAUSTED`"),
    (
        REASON,
        "As `google.rpc.ErrorInfo.reason` has it: `INVALID`, `UNKNOWN_MODEL`, `OVERLOADED`, `UNAVAILABLE`, `DRAINING`, \
         `WORKER_LOST`, `WORKER_STALLED`, `INTERRUPTED`, `DEADLINE_EXCEEDED`, `TOO_LATE` (a deadline that could not \
         be met), `EXCEEDS_WORKER` (a limit of one worker, not of the model), `MISMATCH` (a worker that is not the \
         one that the router took it for), `PREEMPTED` (moved off a worker that had no KV blocks left for it), \
         `ENGINE_PANICKED`, `QUARANTINED` (the same content made two engines panic), `ROUTING_REFUSED` (a worker does not \
         accept this router), `CANCELLED`, `UNSUPPORTED`, \
         `INTERNAL`; of an ejection `failures`, `slow_first_token`, \
         `slow_tokens` or `probe`",
    ),
    (
        CAUSE,
        "Of a connection `handshake` (nothing came, `--request-read-timeout`), `idle` (the place was needed, \
         `--max-connections`) or `write_stall` (the peer took nothing, `--write-stall-timeout`); of a request `memory` \
         (`--max-request-memory`), `timeout` (`--request-read-timeout`) or `surplus` (more came than one message)",
    ),
    (
        OUTCOME,
        "Of a request `stop`, `length`, or why it failed, as in `reason`; of a hedge whose token came first, `first` \
         or `second`",
    ),
    (STATE, "`live`, `ejected`, `stalled` (still, or silent), `draining` or `gone`"),
    (
        LIMIT,
        "`queue` (`--queue-size`), `tenant_queue` (`--tenant-queue-size`), `tenant` (`--tenant-max-concurrent-streams`), `queue_timeout` (waited for \
         `--queue-timeout` in vain), `estimated_wait` (would have waited longer than that, or than its deadline), `memory` \
         (`--max-request-memory`)",
    ),
    (WORKER, "The id of a worker (`--worker-id`)"),
    (VERSION, "Of Stoker"),
    (FEATURE, "`tensor-cores` or `graphs`"),
];

/// Stands for every model that is not served, since clients may ask for any name.
pub const UNKNOWN_MODEL: &str = "(unknown)";
