//! Metrics: how one of [`names`](super::names) is registered, and the port where Prometheus reads them.

mod accept;
mod endpoint;
mod text;

use prometheus_client::{
    encoding::{self, DescriptorEncoder, EncodeMetric},
    metrics::{family::MetricConstructor, histogram::Histogram},
    registry::{self, Registry, Unit},
};

pub(super) use endpoint::Endpoint;

/// One metric family, as it is told to Prometheus.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Without what follows from unit and kind.
    pub(super) name: &'static str,
    /// A base unit, which the name ends with.
    pub(super) unit: Option<&'static str>,
    pub(super) kind: Kind,
    /// The labels, in order.
    pub labels: &'static [&'static str],
    /// One sentence, without its full stop.
    pub(super) help: &'static str,
}

/// What a metric can do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Only goes up; its name ends with `_total`.
    Counter,
    Gauge,
    Histogram {
        /// Upper bounds, in the metric's unit.
        buckets: &'static [f64],
    },
    /// Always 1; its name ends with `_info`.
    Info,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
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

    /// Tells `metric`, made for one look, under this name.
    pub fn encode(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        metric: &impl EncodeMetric,
    ) -> std::fmt::Result {
        let (unit, help) = (self.unit(), format!("{}.", self.help));
        let kind = metric.metric_type();
        metric.encode(encoder.encode_descriptor(self.name, &help, unit.as_ref(), kind)?)
    }

    /// An empty histogram of this metric's buckets.
    pub fn histogram(&self) -> Histogram {
        match self.kind {
            Kind::Histogram { buckets } => Histogram::new(buckets.iter().copied()),
            _ => Histogram::new([]),
        }
    }

    /// The name of its samples, as queries have it; that of a histogram without `_bucket`.
    pub fn full_name(&self) -> String {
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram { .. } => "",
        };
        format!("{}{suffix}", self.family())
    }

    /// What it says of itself after `# TYPE`.
    pub fn type_line(&self) -> String {
        format!("{} {}", self.family(), self.kind.name())
    }

    fn family(&self) -> String {
        let unit = self.unit.map(|unit| format!("_{unit}")).unwrap_or_default();
        format!("{}{unit}", self.name)
    }

    fn unit(&self) -> Option<Unit> {
        self.unit.map(|unit| Unit::Other(unit.into()))
    }
}

impl MetricConstructor<Histogram> for Metric {
    fn new_metric(&self) -> Histogram {
        self.histogram()
    }
}

/// Everything that is registered, as OpenMetrics has it.
pub fn exposition(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = encoding::text::encode(&mut text, registry);
    text
}
