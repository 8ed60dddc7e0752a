//! Labels of metrics. [`ALL`] documents their values.

/// Name of a model.
pub const MODEL: &str = "model";
/// Name of a gRPC status.
pub const CODE: &str = "code";
/// Status of a request that succeeded, a value of [`CODE`].
pub const OK: &str = "OK";
/// Reason of a failure.
pub const REASON: &str = "reason";
/// Why a connection was closed, or a request was rejected before it was complete.
pub const CAUSE: &str = "cause";
/// Result of a request or a hedge.
pub const OUTCOME: &str = "outcome";
/// State of a worker in the router.
pub const STATE: &str = "state";
/// Limit of admission control.
pub const LIMIT: &str = "limit";
/// Id of a worker.
pub const WORKER: &str = "worker";
/// Version of Stoker.
pub const VERSION: &str = "version";
/// Optional feature of a GPU.
pub const FEATURE: &str = "feature";
/// Positions of one block of the KV cache.
pub const BLOCK_SIZE: &str = "block_size";
/// Blocks of the KV cache.
pub const NUM_BLOCKS: &str = "num_blocks";
/// Class of a device.
pub const CLASS: &str = "class";
/// Name of a device.
pub const DEVICE: &str = "device";
/// Format of weights.
pub const QUANTIZATION: &str = "quantization";
/// Digest of a model.
pub const DIGEST: &str = "digest";
/// Which certificate or file of keys.
pub const SECRET: &str = "secret";
/// Tenant of a request.
pub const TENANT: &str = "tenant";

/// Every label with its values.
pub const ALL: &[(&str, &str)] = &[
    (MODEL, "A served model, or `(unknown)` for all others"),
    (CODE, "Name of a gRPC status, for instance `RESOURCE_EXHAUSTED`"),
    (
        REASON,
        "The value of `google.rpc.ErrorInfo.reason`: `INVALID`, `UNKNOWN_MODEL`, `OVERLOADED`, \
         `UNAVAILABLE`, `DRAINING`, `WORKER_LOST`, `WORKER_STALLED`, `INTERRUPTED`, \
         `DEADLINE_EXCEEDED`, `TOO_LATE` (the deadline could not be met), `EXCEEDS_WORKER` (a \
         limit of one worker, not of the model), `MISMATCH` (the worker is not the one that the \
         router expected), `PREEMPTED` (moved off a worker without free KV blocks), \
         `ENGINE_PANICKED`, `QUARANTINED` (the same content made two engines panic), \
         `UNAUTHENTICATED` (no valid API key), `PERMISSION_DENIED` and `RATE_LIMITED` (the rules of \
         a tenant), `ROUTING_REFUSED` (the worker does not accept this router), `CANCELLED`, `UNSUPPORTED`, \
         `INTERNAL`; for ejections `failures`, `slow_first_token`, `slow_tokens` or `probe`",
    ),
    (
        CAUSE,
        "For connections `age` (`--max-connection-age-grace` passed), `handshake` (no preface within `--request-read-timeout`), `idle` (closed \
         for a new connection, `--max-connections`), `tls` (no TLS handshake: the log has the cause) or `write_stall` (the peer did not read, \
         `--write-stall-timeout`); for requests `memory` (`--max-request-memory`), `timeout` \
         (`--request-read-timeout`) or `surplus` (more bytes than one message)",
    ),
    (
        OUTCOME,
        "For requests `stop`, `length`, or the reason of a failure, as in `reason`; for hedges \
         the attempt that produced the first token, `first` or `second`; for reloads `success` or \
         `failure`",
    ),
    (STATE, "`live`, `ejected`, `stalled` (no progress or no reports), `draining` or `gone`"),
    (
        LIMIT,
        "`queue` (`--queue-size`), `tenant_queue` (`--tenant-queue-size`), `tenant` \
         (`--tenant-max-concurrent-streams`), `queue_timeout` (`--queue-timeout` passed in the \
         queue), `estimated_wait` (the estimated wait exceeded that or the deadline), `memory` \
         (`--max-request-memory`, `--tenant-max-request-memory`); of a tenant `requests`, `tokens` \
         or `streams`",
    ),
    (WORKER, "Id of a worker (`--worker-id`)"),
    (VERSION, "Version of Stoker"),
    (FEATURE, "`tensor-cores` or `graphs`"),
    (BLOCK_SIZE, "Number of positions in a block"),
    (NUM_BLOCKS, "Number of blocks"),
    (CLASS, "`cpu`, or the class of a GPU, whose workers resume each other's responses"),
    (DEVICE, "Name of the device"),
    (QUANTIZATION, "As in `--quantize`"),
    (DIGEST, "Digest of weights and numerics, as in `GetModelInfo`"),
    (
        SECRET,
        "`server` (`--tls-cert`, `--tls-key`, `--tls-client-ca`), `workers` (`--worker-ca` and the \
         client certificate for workers), `etcd` (`--etcd-ca` and the client certificate for etcd), \
         `api_keys` (`--api-keys`)",
    ),
    (TENANT, "A tenant of `--api-keys`, or `(other)` beyond the first 1,000"),
];

/// Values of [`REASON`], but for ejections. All values of a label are known before they occur: their
/// counters are served as 0 from the start, since Prometheus does not see a rise from no series to
/// the first event.
pub const REASONS: &[&str] = &[
    "INVALID",
    "UNKNOWN_MODEL",
    "OVERLOADED",
    "UNAVAILABLE",
    "DRAINING",
    "WORKER_LOST",
    "WORKER_STALLED",
    "INTERRUPTED",
    "DEADLINE_EXCEEDED",
    "TOO_LATE",
    "EXCEEDS_WORKER",
    "MISMATCH",
    "PREEMPTED",
    "ENGINE_PANICKED",
    "QUARANTINED",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "RATE_LIMITED",
    "ROUTING_REFUSED",
    "CANCELLED",
    "UNSUPPORTED",
    "INTERNAL",
];
/// Values of [`REASON`] for ejections.
pub const EJECTIONS: &[&str] = &["failures", "slow_first_token", "slow_tokens", "probe"];
/// Values of [`CAUSE`] for connections that were closed.
pub const CONNECTION_CAUSES: &[&str] = &["age", "handshake", "idle", "tls", "write_stall"];
/// Values of [`CAUSE`] for requests that were rejected before they were complete.
pub const REQUEST_CAUSES: &[&str] = &["memory", "timeout", "surplus"];
/// Values of [`OUTCOME`] for reloads.
pub const RELOADS: &[&str] = &["success", "failure"];
/// Values of [`LIMIT`].
pub const LIMITS: &[&str] =
    &["queue", "tenant_queue", "tenant", "queue_timeout", "estimated_wait", "memory"];
/// Values of [`LIMIT`] for tenants.
pub const TENANT_LIMITS: &[&str] = &["requests", "tokens", "streams"];
/// Values of [`OUTCOME`] for hedges.
pub const HEDGES: &[&str] = &["first", "second"];
/// Values of [`OUTCOME`] for requests, beside [`REASONS`].
pub const FINISHED: &[&str] = &["stop", "length"];
/// Values of [`CODE`] that a request can end with.
pub const CODES: &[&str] = &[
    "OK",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
];

/// The label value for all models that are not served, since clients may request any name.
pub const UNKNOWN_MODEL: &str = "(unknown)";
