//! Metrics of the router. All but the inter-token latency are updated once per request.

use std::{ops::Deref, sync::Arc, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use stoker_shared::{
    ServiceError,
    metrics::{LabeledCounters, Metric, TracedHistogram, counters, observe_traced},
    names::{label, router as names},
};

/// A label with a value from a fixed set.
pub(crate) type StaticLabel = [(&'static str, &'static str); 1];
/// The label with the name of a model.
pub(crate) type ModelLabel = [(&'static str, Arc<str>); 1];
/// The label with the name of a tenant.
type TenantLabel = [(&'static str, Arc<str>); 1];
type Histograms = Family<ModelLabel, Histogram, Metric>;
type TracedHistograms = Family<ModelLabel, TracedHistogram, Metric>;

/// Handle to all metrics. Clones share them; cloning is cheap, since every request clones one per
/// layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics(Arc<Counts>);

/// Metric families behind a `Metrics` handle.
#[derive(Debug)]
pub(crate) struct Counts {
    requests: Family<(ModelLabel, StaticLabel), Counter>,
    rejections: LabeledCounters,
    retries: LabeledCounters,
    resumes: LabeledCounters,
    resume_time: Histogram,
    unresumable: Counter,
    hedges: LabeledCounters,
    in_flight: Gauge,
    queued: Gauge,
    shed: LabeledCounters,
    ejections: LabeledCounters,
    prompt_tokens: Family<ModelLabel, Counter>,
    generated_tokens: Family<ModelLabel, Counter>,
    duration: TracedHistograms,
    admission_wait: Histogram,
    first_token: TracedHistograms,
    next_token: Histograms,
    inter_token: Histograms,
    tenant_requests: Family<TenantLabel, Counter>,
    tenant_limited: Family<(TenantLabel, StaticLabel), Counter>,
    tenant_prompt_tokens: Family<TenantLabel, Counter>,
    tenant_generated_tokens: Family<TenantLabel, Counter>,
}

/// Result of one request, for the metrics.
#[derive(Debug)]
pub(crate) struct RequestSummary {
    /// Full name of the model, if the lookup found one.
    pub(crate) model: Option<Arc<str>>,
    /// Name of the gRPC status code.
    pub(crate) code: &'static str,
    pub(crate) prompt_tokens: u64,
    pub(crate) tokens: u64,
    /// Time from arrival to the first token.
    pub(crate) first_token: Option<Duration>,
    /// Time from arrival to the end.
    pub(crate) total: Duration,
    /// Id of its trace, if that is exported.
    pub(crate) trace: Option<String>,
}

impl Deref for Metrics {
    type Target = Counts;

    fn deref(&self) -> &Counts {
        &self.0
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            rejections: counters(label::REASON, label::REASONS),
            retries: counters(label::REASON, label::REASONS),
            resumes: counters(label::REASON, label::REASONS),
            resume_time: names::RESUME_TIME.histogram(),
            unresumable: Counter::default(),
            hedges: counters(label::OUTCOME, label::HEDGES),
            in_flight: Gauge::default(),
            queued: Gauge::default(),
            shed: counters(label::LIMIT, label::LIMITS),
            ejections: counters(label::REASON, label::EJECTIONS),
            prompt_tokens: Family::default(),
            generated_tokens: Family::default(),
            duration: Family::new_with_constructor(names::DURATION),
            admission_wait: names::ADMISSION_WAIT.histogram(),
            first_token: Family::new_with_constructor(names::FIRST_TOKEN_TIME),
            next_token: Family::new_with_constructor(names::TOKEN_TIME),
            inter_token: Family::new_with_constructor(names::INTER_TOKEN),
            tenant_requests: Family::default(),
            tenant_limited: Family::default(),
            tenant_prompt_tokens: Family::default(),
            tenant_generated_tokens: Family::default(),
        }
    }
}

impl Metrics {
    /// Registers all metrics that are not computed at a scrape.
    pub(crate) fn register(&self, registry: &mut Registry) {
        names::REQUESTS.register(registry, self.requests.clone());
        names::REJECTIONS.register(registry, self.rejections.clone());
        names::RETRIES.register(registry, self.retries.clone());
        names::RESUMES.register(registry, self.resumes.clone());
        names::RESUME_TIME.register(registry, self.resume_time.clone());
        names::UNRESUMABLE_STREAMS.register(registry, self.unresumable.clone());
        names::HEDGES.register(registry, self.hedges.clone());
        names::IN_FLIGHT.register(registry, self.in_flight.clone());
        names::QUEUED.register(registry, self.queued.clone());
        names::SHED.register(registry, self.shed.clone());
        names::EJECTIONS.register(registry, self.ejections.clone());
        names::PROMPT_TOKENS.register(registry, self.prompt_tokens.clone());
        names::GENERATED_TOKENS.register(registry, self.generated_tokens.clone());
        names::DURATION.register(registry, self.duration.clone());
        names::ADMISSION_WAIT.register(registry, self.admission_wait.clone());
        names::FIRST_TOKEN_TIME.register(registry, self.first_token.clone());
        names::TOKEN_TIME.register(registry, self.next_token.clone());
        names::INTER_TOKEN.register(registry, self.inter_token.clone());
        names::TENANT_REQUESTS.register(registry, self.tenant_requests.clone());
        names::TENANT_LIMITED.register(registry, self.tenant_limited.clone());
        names::TENANT_PROMPT_TOKENS.register(registry, self.tenant_prompt_tokens.clone());
        names::TENANT_GENERATED_TOKENS.register(registry, self.tenant_generated_tokens.clone());
    }

    /// Serves the metrics of `model` from now on, at 0 before its first request.
    pub(crate) fn add_model(&self, model: &str) {
        let model: ModelLabel = [(label::MODEL, model.into())];
        for code in label::CODES {
            drop(self.requests.get_or_create(&(model.clone(), [(label::CODE, *code)])));
        }
        drop(self.prompt_tokens.get_or_create(&model));
        drop(self.generated_tokens.get_or_create(&model));
        drop(self.duration.get_or_create(&model));
        drop(self.first_token.get_or_create(&model));
    }

    /// Serves the metrics of a tenant from now on, at 0 before its first request.
    pub(crate) fn add_tenant(&self, tenant: &Arc<str>) {
        let tenant: TenantLabel = [(label::TENANT, Arc::clone(tenant))];
        drop(self.tenant_requests.get_or_create(&tenant));
        drop(self.tenant_prompt_tokens.get_or_create(&tenant));
        drop(self.tenant_generated_tokens.get_or_create(&tenant));
        for limit in label::TENANT_LIMITS {
            let labels = (tenant.clone(), [(label::LIMIT, *limit)]);
            drop(self.tenant_limited.get_or_create(&labels));
        }
    }

    /// Counts a request of a tenant that is within its limits.
    pub(crate) fn tenant_admitted(&self, tenant: &Arc<str>) {
        self.tenant_requests.get_or_create(&[(label::TENANT, Arc::clone(tenant))]).inc();
    }

    /// Counts a request of a tenant that is refused because of a limit of its own.
    pub(crate) fn tenant_limited(&self, tenant: &Arc<str>, limit: &'static str) {
        let tenant: TenantLabel = [(label::TENANT, Arc::clone(tenant))];
        self.tenant_limited.get_or_create(&(tenant, [(label::LIMIT, limit)])).inc();
    }

    /// Counts the tokens of a request of a tenant.
    pub(crate) fn tenant_used(&self, tenant: &Arc<str>, prompt: u64, generated: u64) {
        let tenant: TenantLabel = [(label::TENANT, Arc::clone(tenant))];
        self.tenant_prompt_tokens.get_or_create(&tenant).inc_by(prompt);
        self.tenant_generated_tokens.get_or_create(&tenant).inc_by(generated);
    }

    /// Counts a request as in flight until the guard is dropped.
    pub(crate) fn in_flight(&self) -> GaugeGuard {
        GaugeGuard::new(&self.in_flight)
    }

    /// Counts a request as queued until the guard is dropped.
    pub(crate) fn queued(&self) -> GaugeGuard {
        GaugeGuard::new(&self.queued)
    }

    /// Returns the number of queued requests.
    pub(crate) fn queue_length(&self) -> u32 {
        u32::try_from(self.queued.get()).unwrap_or_default()
    }

    /// Records that a request got a slot after `waited`.
    pub(crate) fn admitted(&self, waited: Duration) {
        self.admission_wait.observe(waited.as_secs_f64());
    }

    /// Returns the histogram of times between two events with tokens of `model`.
    pub(crate) fn inter_token(&self, model: &Arc<str>) -> Histogram {
        self.inter_token.get_or_create(&[(label::MODEL, Arc::clone(model))]).clone()
    }

    /// Counts a retry on another worker because of `error`.
    pub(crate) fn retried(&self, error: &ServiceError) {
        self.retries.get_or_create(&[(label::REASON, error.reason())]).inc();
    }

    /// Counts a stream that resumed on another worker, `took` after `error`.
    pub(crate) fn resumed(&self, error: &ServiceError, took: Duration) {
        self.resumes.get_or_create(&[(label::REASON, error.reason())]).inc();
        self.resume_time.observe(took.as_secs_f64());
    }

    /// Counts a stream that can no longer be resumed.
    pub(crate) fn unresumable(&self) {
        self.unresumable.inc();
    }

    /// Counts a hedged request by the attempt (`winner`) that sent the first token.
    pub(crate) fn hedged(&self, winner: &'static str) {
        self.hedges.get_or_create(&[(label::OUTCOME, winner)]).inc();
    }

    /// Counts a request that failed before a worker accepted it.
    pub(crate) fn rejected(&self, error: &ServiceError) {
        self.rejections.get_or_create(&[(label::REASON, error.reason())]).inc();
    }

    /// Counts a request that admission refused because of `limit`.
    pub(crate) fn shed(&self, limit: &'static str) {
        self.shed.get_or_create(&[(label::LIMIT, limit)]).inc();
    }

    /// Counts an ejection of a worker.
    pub(crate) fn ejected(&self, reason: &'static str) {
        self.ejections.get_or_create(&[(label::REASON, reason)]).inc();
    }

    /// Records the result of a finished request.
    pub(crate) fn finished(&self, summary: RequestSummary) {
        let model = summary.model.unwrap_or_else(|| label::UNKNOWN_MODEL.into());
        let model: ModelLabel = [(label::MODEL, model)];
        if summary.prompt_tokens > 0 {
            self.prompt_tokens.get_or_create(&model).inc_by(summary.prompt_tokens);
        }
        if summary.tokens > 0 {
            self.generated_tokens.get_or_create(&model).inc_by(summary.tokens);
        }
        if let Some(first) = summary.first_token {
            let histogram = self.first_token.get_or_create(&model);
            observe_traced(&histogram, first.as_secs_f64(), summary.trace.as_deref());
            drop(histogram);
            if summary.tokens > 1 {
                let rest = summary.total.saturating_sub(first).as_secs_f64();
                let each = rest / (summary.tokens - 1) as f64;
                self.next_token.get_or_create(&model).observe(each);
            }
        }
        if summary.code == label::OK {
            let histogram = self.duration.get_or_create(&model);
            observe_traced(&histogram, summary.total.as_secs_f64(), summary.trace.as_deref());
            drop(histogram);
        }
        self.requests.get_or_create(&(model, [(label::CODE, summary.code)])).inc();
    }
}

/// Increments a gauge until it is dropped.
#[derive(Debug)]
pub(crate) struct GaugeGuard(Gauge);

impl GaugeGuard {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};
    use stoker_shared::{memory::MemoryBudget, metrics::exposition};

    use super::*;
    use crate::{collectors, pool::Pool};

    fn summary(model: Option<&str>, code: &'static str) -> RequestSummary {
        RequestSummary {
            model: model.map(Into::into),
            code,
            prompt_tokens: 5,
            tokens: 11,
            first_token: Some(Duration::from_millis(200)),
            total: Duration::from_millis(1_200),
            trace: Some("abc".into()),
        }
    }

    /// Returns the text exposition of `metrics`.
    fn exposition_of(metrics: &Metrics) -> String {
        let mut registry = Registry::default();
        let pool =
            Pool::follow(stream::pending().boxed().into(), Duration::MAX, Default::default(), None);
        metrics.register(&mut registry);
        collectors::register(&mut registry, &pool, &MemoryBudget::new(0));
        exposition(&registry)
    }

    #[tokio::test]
    async fn exactly_the_named_metrics_are_exposed() {
        let metrics = Metrics::default();
        metrics.finished(summary(Some("m"), label::OK));
        metrics.inter_token(&"m".into()).observe(0.1);
        metrics.rejected(&ServiceError::Cancelled);
        metrics.retried(&ServiceError::Cancelled);
        metrics.resumed(&ServiceError::Cancelled, Duration::ZERO);
        metrics.hedged("first");
        metrics.shed("memory");
        metrics.ejected("failures");
        metrics.add_tenant(&"acme".into());
        let text = exposition_of(&metrics);
        let mut exposed: Vec<_> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
        exposed.sort_unstable();
        let mut named: Vec<_> = names::ALL.iter().map(Metric::type_line).collect();
        named.sort_unstable();
        assert_eq!(exposed, named);
    }

    /// Prometheus does not see the rise from no series to the first event.
    #[tokio::test]
    async fn the_reasons_and_codes_of_all_errors_are_served_before_they_occur() {
        use ServiceError as E;
        let (text, soon) = (String::new, Duration::ZERO);
        let errors = [
            E::Invalid(Vec::new()),
            E::UnknownModel { model: text(), available: Vec::new() },
            E::Overloaded { what: text(), retry_after: soon },
            E::unavailable(""),
            E::Draining(text()),
            E::Lost(text()),
            E::Stalled(text()),
            E::DeadlineExceeded { stage: text() },
            E::TooLate { what: text() },
            E::Cancelled,
            E::Unsupported(text()),
            E::ExceedsWorker { what: text(), needed_tokens: 0 },
            E::Mismatch(text()),
            E::Preempted(text()),
            E::EnginePanicked { cause: text(), sequences: Vec::new() },
            E::Quarantined(text()),
            E::RoutingRefused(text()),
            E::Unauthenticated(text()),
            E::PermissionDenied(text()),
            E::RateLimited { what: text(), retry_after: soon },
            E::Internal(text()),
        ];
        let metrics = Metrics::default();
        let series = |metrics: &Metrics| {
            let text = exposition_of(metrics);
            text.lines().filter(|line| line.contains("{reason=") || line.contains("code=")).count()
        };
        metrics.add_model("m");
        let before = series(&metrics);
        for error in &errors {
            metrics.rejected(error);
            metrics.retried(error);
            metrics.resumed(error, Duration::ZERO);
            metrics.finished(summary(Some("m"), error.code_name()));
        }
        assert_eq!(series(&metrics), before);
        // INTERRUPTED, which has more fields, is the only one that is not here.
        assert_eq!(errors.len() + 1, label::REASONS.len());
    }

    #[tokio::test]
    async fn a_finished_request_updates_its_metrics() {
        let metrics = Metrics::default();
        let in_flight = metrics.in_flight();
        metrics.finished(summary(Some("m"), label::OK));
        metrics.finished(summary(None, "UNAVAILABLE"));
        let text = exposition_of(&metrics);
        for line in [
            "stoker_router_requests_total{model=\"m\",code=\"OK\"} 1",
            "stoker_router_requests_total{model=\"(unknown)\",code=\"UNAVAILABLE\"} 1",
            "stoker_router_prompt_tokens_total{model=\"m\"} 5",
            "stoker_router_generated_tokens_total{model=\"m\"} 11",
            "stoker_router_time_to_first_token_seconds_sum{model=\"m\"} 0.2",
            "stoker_router_time_per_output_token_seconds_sum{model=\"m\"} 0.1",
            "stoker_router_request_duration_seconds_count{model=\"m\"} 1",
            "stoker_router_requests_in_flight 1",
            "stoker_router_workers{state=\"live\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        let exemplar = "stoker_router_time_to_first_token_seconds_bucket{le=\"0.25\",model=\"m\"} 1 \
                        # {trace_id=\"abc\"} 0.2";
        assert!(text.lines().any(|line| line.starts_with(exemplar)), "{exemplar} not in:\n{text}");
        assert!(!text.contains("duration_seconds_count{model=\"(unknown)\"}"), "{text}");
        metrics.add_model("n");
        let text = exposition_of(&metrics);
        for line in [
            "stoker_router_requests_total{model=\"n\",code=\"UNAVAILABLE\"} 0",
            "stoker_router_request_duration_seconds_count{model=\"n\"} 0",
            "stoker_router_shed_total{limit=\"queue\"} 0",
            "stoker_router_resumes_total{reason=\"WORKER_LOST\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        drop(in_flight);
        assert!(exposition_of(&metrics).contains("stoker_router_requests_in_flight 0"));
    }
}
