//! Defaults of `--worker-id` and `--advertise`, which must mean something outside of this machine.

use std::net::SocketAddr;

use crate::support::{Process, complete, inference, output, program, request};

fn simulated(listen: &str, flags: &[&str], environment: &[(&str, &str)]) -> Process {
    let mut command = program("stoker-worker");
    command.args(["--simulate", "instant", "--allow-plaintext", "--listen", listen]).args(flags);
    command.envs(environment.iter().copied());
    Process::spawn(command)
}

fn port(worker: &Process) -> u16 {
    worker.address.parse::<SocketAddr>().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_named_by_its_host_and_port() {
    let host = stoker_shared::host::name();
    if let Ok(system) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        assert_eq!(host, system.trim_end());
    }
    for listen in ["127.0.0.1:0", "0.0.0.0:0", ":0"] {
        let worker = simulated(listen, &[], &[]);
        let expected = format!("{host}:{}", port(&worker));
        assert_eq!(worker.id, expected);
        let local = format!("127.0.0.1:{}", port(&worker));
        let completion = complete(&mut inference(&local).await, request("Once", 1, 2)).await;
        assert_eq!(completion.unwrap().accepted.worker, expected);
    }
    assert_eq!(simulated(":0", &["--worker-id", "w"], &[]).id, "w");
}

#[test]
fn a_worker_on_every_interface_advertises_its_pod_or_its_host() {
    let advertised = |worker: &Process| worker.started["advertise"].as_str().unwrap().to_owned();
    let pod = [("POD_IP", "10.1.2.3")];
    for listen in ["0.0.0.0:0", ":0"] {
        let worker = simulated(listen, &[], &pod);
        assert_eq!(advertised(&worker), format!("10.1.2.3:{}", port(&worker)));
        let worker = simulated(listen, &["--advertise", "worker-0:8"], &pod);
        assert_eq!(advertised(&worker), "worker-0:8");
        let worker = simulated(listen, &[], &[("POD_IP", "")]);
        let address: SocketAddr = advertised(&worker).parse().unwrap();
        assert_eq!(address.port(), port(&worker));
        // On a machine with only a loopback interface there is none.
        let expected = stoker_shared::host::outward_address(listen == "0.0.0.0:0");
        assert_eq!(expected.is_none(), address.ip().is_unspecified(), "{address}");
        assert!(expected.is_none_or(|ip| ip == address.ip()), "{address}");
    }
    let worker = simulated("127.0.0.1:0", &[], &pod);
    assert_eq!(advertised(&worker), worker.address);
}

#[tokio::test]
async fn a_wrong_address_of_the_pod_is_named() {
    for (value, listen) in [("worker-0", ":0"), ("10.1.2.3:80", ":0"), ("fd00::1", "0.0.0.0:0")] {
        let mut command = program("stoker-worker");
        command.args(["--simulate", "instant", "--allow-plaintext", "--listen", listen]);
        command.args(["--etcd", "http://127.0.0.1:1"]).env("POD_IP", value);
        let (code, _, error) = output(command).await;
        assert_eq!(code, Some(2), "{error}");
        let last = error.lines().last().unwrap();
        assert!(last.starts_with(&format!("error: POD_IP {value:?} ")), "{error}");
        assert!(last.contains("--advertise"), "{error}");
    }
}
