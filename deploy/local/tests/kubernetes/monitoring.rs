//! What the chart has for Prometheus, Grafana and traces, on a cluster with the custom resources of
//! the Prometheus operator. No container has to run, so their images do not exist.

use std::{collections::BTreeSet, env, fs, path::PathBuf, process::Command};

use serde_json::{Value, json};

use crate::{
    namespace::Namespace,
    release::{Release, text},
    skip,
    tool::{repository, run, strings, wait_for},
};

/// Names the folder with the definitions of the custom resources.
const DEFINITIONS: &str = "STOKER_TEST_CRDS";
/// One of them, which a cluster with the operator has already.
const DEFINITION: &str = "customresourcedefinition/prometheusrules.monitoring.coreos.com";
/// Has the kubelet neither find nor pull an image.
const NO_IMAGES: [&str; 2] = [r#"image.tag="absent""#, r#"image.pullPolicy="Never""#];
/// The pods that have metrics and send traces.
const STOKER: &str = "app.kubernetes.io/component in (router,worker)";
/// Where they send them.
const TRACES: &str = "http://stoker-collector:4317";
/// Kinds of objects that the cluster or helm adds to those of the chart.
const DERIVED: [&str; 6] = [
    "endpoints",
    "endpointslice.discovery.k8s.io",
    "pod",
    "podmetrics.metrics.k8s.io",
    "replicaset.apps",
    "secret",
];

/// The definitions, which are removed when this is dropped if the cluster did not have them before.
struct Definitions {
    files: String,
    own: bool,
}

impl Definitions {
    /// Returns `None`, and reports it, if there are none to apply.
    async fn apply() -> Option<Self> {
        let Some(folder) = env::var_os(DEFINITIONS).map(PathBuf::from) else {
            skip::absent(DEFINITIONS, "scripts/kubernetes sets it");
            return None;
        };
        let own = run("kubectl", &["get", DEFINITION], "").await.is_err();
        let definitions = Self { files: folder.display().to_string(), own };
        if own {
            for command in [
                &["apply", "--server-side"][..],
                &["wait", "--for", "condition=Established", "--timeout", "1m"],
            ] {
                let all = [command, &["--filename", &definitions.files]].concat();
                run("kubectl", &all, "").await.unwrap();
            }
        }
        Some(definitions)
    }
}

impl Drop for Definitions {
    fn drop(&mut self) {
        if self.own {
            let delete = ["delete", "--ignore-not-found", "--filename", &self.files];
            let _ = Command::new("kubectl").args(delete).output();
        }
    }
}

/// Values that enable everything, with this monitor if there is one, or that disable everything.
fn values(enabled: bool, monitor: Option<&str>) -> Vec<String> {
    let is = |name| json!({"enabled": Some(name) == monitor});
    let metrics = json!({"podMonitor": is("podMonitor"), "serviceMonitor": is("serviceMonitor")});
    let collector = json!({"enabled": enabled, "endpoint": "tempo.monitoring:4317"});
    vec![
        format!("metrics={metrics}"),
        format!("collector={collector}"),
        format!("prometheusRule.enabled={enabled}"),
        format!("dashboards.enabled={enabled}"),
    ]
}

/// Upgrades the release to further values, without waiting for its pods.
async fn upgrade(release: &Release, values: &[String]) {
    let set = values.iter().flat_map(|value| ["--set-json", value.as_str()]);
    let command = ["upgrade", "stoker", "helm", "--reuse-values"];
    release.helm(&command.into_iter().chain(set).collect::<Vec<_>>()).await;
}

/// The objects of the chart, and those that were there before.
async fn objects(namespace: &Namespace) -> BTreeSet<String> {
    let mut objects = namespace.inventory().await;
    objects.retain(|object| !DERIVED.contains(&object.split('/').next().unwrap_or_default()));
    objects
}

/// Names of the files in a folder of the repository, without their extension, and their contents.
fn files(folder: &str) -> Vec<(String, String)> {
    let entries = fs::read_dir(repository().join(folder)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let name = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// The objects of `values`, without monitors.
fn monitoring() -> BTreeSet<String> {
    let dashboards = files("deploy/grafana/dashboards").into_iter();
    let dashboards = dashboards.map(|(name, _)| format!("configmap/stoker-dashboard-{name}"));
    let others = [
        "configmap/stoker-collector",
        "deployment.apps/stoker-collector",
        "networkpolicy.networking.k8s.io/stoker-collector",
        "prometheusrule.monitoring.coreos.com/stoker",
        "service/stoker-collector",
    ];
    dashboards.chain(others.map(str::to_owned)).collect()
}

/// The groups of rules of the repository, which `kubectl` reads.
async fn groups() -> Value {
    let mut groups = Vec::new();
    for (_, file) in files("deploy/prometheus/rules") {
        let object = "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n\
                      metadata: {name: rules}\nspec:\n  ";
        let object = format!("{object}{}", file.replace('\n', "\n  "));
        let read = ["create", "--dry-run=client", "--output", "json", "--filename", "-"];
        let object: Value =
            serde_json::from_str(&run("kubectl", &read, &object).await.unwrap()).unwrap();
        groups.extend(object["spec"]["groups"].as_array().unwrap().iter().cloned());
    }
    json!(groups)
}

/// The cluster has taken the rules, the dashboards and the collector's configuration as they are.
async fn assert_content(namespace: &Namespace) {
    let rules = namespace.get("prometheusrule/stoker").await;
    assert_eq!(rules["spec"]["groups"], groups().await);
    let maps = namespace.list("configmaps", "grafana_dashboard=1").await;
    let dashboards = files("deploy/grafana/dashboards");
    assert_eq!(maps.as_array().unwrap().len(), dashboards.len());
    for (name, dashboard) in dashboards {
        let map = namespace.get(&format!("configmap/stoker-dashboard-{name}")).await;
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let found = json(&text(&map["data"], &format!("stoker-{name}.json")));
        assert_eq!(found, json(&dashboard), "{name}");
    }
    let map = namespace.get("configmap/stoker-collector").await;
    let ours = fs::read_to_string(repository().join("deploy/otel/collector.yaml")).unwrap();
    assert_eq!(text(&map["data"], "collector.yaml").trim(), ours.trim());
}

/// Whether the containers of a pod's specification send traces to the chart's collector.
fn sends_traces(spec: &Value) -> bool {
    let variables = spec.pointer("/containers/0/env").and_then(Value::as_array);
    variables.into_iter().flatten().any(|variable| {
        variable["name"] == "OTEL_EXPORTER_OTLP_ENDPOINT" && variable["value"] == TRACES
    })
}

/// Whether an array of ports has one of this name.
fn has_port(ports: &Value, name: &Value) -> bool {
    ports.as_array().unwrap().iter().any(|port| port["name"] == *name)
}

/// Names of objects.
fn names(objects: &Value) -> BTreeSet<String> {
    strings(objects, "/metadata/name").into_iter().collect()
}

/// A label selector as `kubectl` takes it.
fn selector(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let labels = labels.map(|(label, value)| format!("{label}={}", value.as_str().unwrap()));
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    let expressions = expressions.map(|expression| {
        assert_eq!(expression["operator"], "In");
        let values = strings(&expression["values"], "").join(",");
        format!("{} in ({values})", text(expression, "key"))
    });
    labels.chain(expressions).collect::<Vec<_>>().join(",")
}

/// Waits until a Service leads to this port of the pods of a component, ready or not.
async fn wait_for_endpoints(namespace: &Namespace, service: &str, component: &str, port: u16) {
    wait_for(&format!("endpoints of {service}"), || async {
        let selector = format!("kubernetes.io/service-name={service}");
        let slices = namespace.list("endpointslices", &selector).await;
        let mut pods = BTreeSet::new();
        for slice in slices.as_array().unwrap() {
            let ports = slice["ports"].as_array();
            assert!(ports.into_iter().flatten().all(|open| open["port"] == port), "{slice:#}");
            pods.extend(strings(&slice["endpoints"], "/targetRef/name"));
        }
        (!pods.is_empty() && pods == namespace.pods(component).await).then_some(())
    })
    .await;
}

/// A PodMonitor finds exactly the routers and workers, by a port that they have.
async fn assert_pod_monitor(namespace: &Namespace) {
    let monitor = namespace.get("podmonitor/stoker").await;
    let pods = namespace.list("pods", &selector(&monitor["spec"]["selector"])).await;
    assert_eq!(names(&pods), names(&namespace.list("pods", STOKER).await));
    let port = &monitor["spec"]["podMetricsEndpoints"][0]["port"];
    for pod in pods.as_array().unwrap() {
        assert!(has_port(&pod["spec"]["containers"][0]["ports"], port), "{pod:#}");
    }
}

/// A ServiceMonitor finds exactly two Services, which lead to the routers and to the workers.
async fn assert_service_monitor(namespace: &Namespace) {
    let monitor = namespace.get("servicemonitor/stoker").await;
    let services = namespace.list("services", &selector(&monitor["spec"]["selector"])).await;
    let expected = ["router", "worker"].map(|component| format!("stoker-{component}-metrics"));
    assert_eq!(names(&services), BTreeSet::from(expected));
    let port = &monitor["spec"]["endpoints"][0]["port"];
    for service in services.as_array().unwrap() {
        assert!(has_port(&service["spec"]["ports"], port), "{service:#}");
    }
    for component in ["router", "worker"] {
        let service = format!("stoker-{component}-metrics");
        wait_for_endpoints(namespace, &service, component, 9090).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes cluster: run by scripts/kubernetes"]
async fn monitoring_finds_what_the_chart_runs_and_leaves_nothing() {
    let Some(_definitions) = Definitions::apply().await else { return };
    let enabled = values(true, Some("podMonitor"));
    let enabled = enabled.iter().map(String::as_str).chain(NO_IMAGES).collect::<Vec<_>>();
    let release = Release::new("monitoring", Some("helm/examples/laptop.yaml"), &enabled).await;
    let namespace = &release.namespace;
    let before = namespace.inventory().await;
    release.start().await;
    // What violates the Pod Security Standard is refused so.
    let refused = ["get", "events", "--field-selector", "reason=FailedCreate"];
    wait_for("a router, a worker and a collector", || async {
        assert_eq!(namespace.kubectl(&refused).await, "");
        let pods = namespace.list("pods", STOKER).await;
        let all_send = pods.as_array().unwrap().iter().all(|pod| sends_traces(&pod["spec"]));
        assert!(all_send, "{pods:#}");
        (names(&pods).len() == 2 && namespace.pods("collector").await.len() == 1).then_some(())
    })
    .await;
    assert_content(namespace).await;
    wait_for_endpoints(namespace, "stoker-collector", "collector", 4317).await;
    assert_pod_monitor(namespace).await;
    let with_pods = objects(namespace).await;

    upgrade(&release, &values(true, Some("serviceMonitor"))).await;
    assert_service_monitor(namespace).await;
    let with_services = objects(namespace).await;

    upgrade(&release, &values(false, None)).await;
    let without = objects(namespace).await;
    for deployment in namespace.list("deployments", STOKER).await.as_array().unwrap() {
        assert!(!sends_traces(&deployment["spec"]["template"]["spec"]), "{deployment:#}");
    }
    let with = |monitor: &[&str]| {
        let mut all = monitoring();
        all.extend(monitor.iter().map(|object| (*object).to_owned()));
        all
    };
    assert_eq!(&with_pods ^ &without, with(&["podmonitor.monitoring.coreos.com/stoker"]));
    let monitor = [
        "service/stoker-router-metrics",
        "service/stoker-worker-metrics",
        "servicemonitor.monitoring.coreos.com/stoker",
    ];
    assert_eq!(&with_services ^ &without, with(&monitor));

    release.helm(&["uninstall", "stoker", "--wait", "--timeout", "3m"]).await;
    wait_for("a namespace as it was before", || async {
        (namespace.inventory().await == before).then_some(())
    })
    .await;
}
