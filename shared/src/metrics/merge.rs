//! Merges metric families of the same name: several workers of one process register the same
//! metrics, with other labels, and an exposition may describe a family only once.

/// Returns the exposition, which is OpenMetrics, with the samples of each family together, below its
/// description, in the order of first appearance.
pub(super) fn merge_families(exposition: &str) -> String {
    let mut families: Vec<Family<'_>> = Vec::new();
    let mut current = None;
    let mut end = "";
    for line in exposition.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF"), _) => end = "# EOF\n",
            (Some("#"), Some(_), Some(name)) => {
                let found = families.iter().position(|family| family.name == name);
                let at = found.unwrap_or_else(|| {
                    families.push(Family { name, ..Family::default() });
                    families.len() - 1
                });
                current = Some(at);
                if !families[at].description.contains(&line) {
                    families[at].description.push(line);
                }
            }
            // prometheus-client describes every family before its samples.
            _ => families[current.unwrap_or_default()].samples.push(line),
        }
    }
    let mut text = String::with_capacity(exposition.len());
    for line in families.iter().flat_map(|family| family.description.iter().chain(&family.samples))
    {
        text.push_str(line);
        text.push('\n');
    }
    text + end
}

#[derive(Default)]
struct Family<'a> {
    name: &'a str,
    description: Vec<&'a str>,
    samples: Vec<&'a str>,
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        metrics::{counter::Counter, gauge::Gauge},
        registry::Registry,
    };

    use crate::metrics::exposition;

    #[test]
    fn families_of_several_workers_are_described_once() {
        let mut registry = Registry::default();
        registry.register("up", "Up", Gauge::<i64>::default());
        for worker in ["a", "b"] {
            let label = [("worker".into(), worker.into())];
            let registry = registry.sub_registry_with_labels(label.into_iter());
            registry.register("steps", "Steps", Counter::<u64>::default());
            registry.register("running", "Running", Gauge::<i64>::default());
        }
        let text = "\
# HELP up Up.
# TYPE up gauge
up 0
# HELP steps Steps.
# TYPE steps counter
steps_total{worker=\"a\"} 0
steps_total{worker=\"b\"} 0
# HELP running Running.
# TYPE running gauge
running{worker=\"a\"} 0
running{worker=\"b\"} 0
# EOF
";
        assert_eq!(exposition(&registry), text);
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(super::merge_families("# EOF\n"), "# EOF\n");
    }
}
