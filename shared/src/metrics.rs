//! Metrics: families, their registration, and their exposition in the formats of Prometheus.
//! [`crate::names`] lists them.

mod merge;
pub(crate) mod text;

use std::time::SystemTime;

use prometheus_client::{
    encoding::{self, DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::Counter,
        exemplar::HistogramWithExemplars,
        family::{Family, MetricConstructor},
        histogram::Histogram,
    },
    registry::{self, Registry, Unit},
};

/// A histogram whose buckets name a trace of theirs, in OpenMetrics.
pub type TracedHistogram = HistogramWithExemplars<[(&'static str, String); 1]>;

/// Observes a value of a request whose exported trace has the id `trace`.
pub fn observe_traced(histogram: &TracedHistogram, value: f64, trace: Option<&str>) {
    let exemplar = trace.map(|trace| [("trace_id", trace.to_owned())]);
    let time = exemplar.is_some().then(SystemTime::now);
    histogram.observe(value, exemplar, time);
}

/// Counters with one label, whose values are from a fixed set.
pub type LabeledCounters = Family<[(&'static str, &'static str); 1], Counter>;

/// Returns counters at 0 for all `values` of `label`, so that Prometheus sees the first event too.
pub fn counters<'a>(
    label: &'static str,
    values: impl IntoIterator<Item = &'a &'static str>,
) -> LabeledCounters {
    let counters = LabeledCounters::default();
    for value in values {
        drop(counters.get_or_create(&[(label, *value)]));
    }
    counters
}

/// A metric family, as it is exposed to Prometheus.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Name without the suffixes of unit and kind.
    pub(crate) name: &'static str,
    /// Base unit, which is a suffix of the name.
    pub(crate) unit: Option<&'static str>,
    pub(crate) kind: Kind,
    /// Labels, in order.
    pub labels: &'static [&'static str],
    /// Help text: one sentence without the period.
    pub(crate) help: &'static str,
}

/// Kind of a metric.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Never decreases. The name ends with `_total`.
    Counter,
    Gauge,
    Histogram {
        /// Upper bounds of the buckets, in the unit of the metric.
        buckets: &'static [f64],
    },
    /// Always 1. The name ends with `_info`.
    Info,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram { .. } => "histogram",
            Self::Info => "info",
        }
    }
}

impl Metric {
    /// Adds `metric` to `registry` under this name.
    pub fn register(&self, registry: &mut Registry, metric: impl registry::Metric) {
        match self.unit() {
            Some(unit) => registry.register_with_unit(self.name, self.help, unit, metric),
            None => registry.register(self.name, self.help, metric),
        }
    }

    /// Encodes `metric`, which was created for one scrape, under this name.
    pub fn encode(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        metric: &impl EncodeMetric,
    ) -> std::fmt::Result {
        let (unit, help) = (self.unit(), format!("{}.", self.help));
        let kind = metric.metric_type();
        metric.encode(encoder.encode_descriptor(self.name, &help, unit.as_ref(), kind)?)
    }

    /// Returns an empty histogram with the buckets of this metric.
    pub fn histogram(&self) -> Histogram {
        match self.kind {
            Kind::Histogram { buckets } => Histogram::new(buckets.iter().copied()),
            _ => Histogram::new([]),
        }
    }

    /// Returns an empty histogram with the buckets of this metric and room for exemplars.
    pub fn traced_histogram(&self) -> TracedHistogram {
        match self.kind {
            Kind::Histogram { buckets } => TracedHistogram::new(buckets.iter().copied()),
            _ => TracedHistogram::new([].into_iter()),
        }
    }

    /// Returns the name of the samples, as used in queries. For a histogram without `_bucket`.
    pub fn full_name(&self) -> String {
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram { .. } => "",
        };
        format!("{}{suffix}", self.family())
    }

    /// Returns the text after `# TYPE` in the exposition.
    pub fn type_line(&self) -> String {
        format!("{} {}", self.family(), self.kind.name())
    }

    pub(crate) fn family(&self) -> String {
        let unit = self.unit.map(|unit| format!("_{unit}")).unwrap_or_default();
        format!("{}{unit}", self.name)
    }

    fn unit(&self) -> Option<Unit> {
        self.unit.map(|unit| Unit::Other(unit.into()))
    }
}

impl MetricConstructor<TracedHistogram> for Metric {
    fn new_metric(&self) -> TracedHistogram {
        self.traced_histogram()
    }
}

impl MetricConstructor<Histogram> for Metric {
    fn new_metric(&self) -> Histogram {
        self.histogram()
    }
}

/// Encodes all registered metrics as OpenMetrics. Metrics that are registered several times, with
/// different labels, are one family.
pub fn exposition(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = encoding::text::encode(&mut text, registry);
    merge::merge_families(&text)
}
