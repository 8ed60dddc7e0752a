//! A port of a pod on this machine.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    thread,
};

use serde_json::Value;

use crate::{namespace::Namespace, support::stoker};

/// A running `kubectl port-forward`. Ended when it is dropped.
pub struct PortForward {
    child: Child,
    /// The address on this machine.
    pub address: String,
}

impl PortForward {
    /// Forwards `port` of `target`, for instance `service/stoker-router`.
    pub fn start(namespace: &Namespace, target: &str, port: u16) -> Self {
        let mut command = Command::new("kubectl");
        command.args(["--namespace", &namespace.name, "port-forward", target, &format!(":{port}")]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next());
        let address = address.unwrap_or_else(|| panic!("port-forward {target} {port}: {line}"));
        let address = address.to_owned();
        // Keeps reading, or the process would block on a full pipe.
        thread::spawn(move || lines.lines().map_while(Result::ok).for_each(drop));
        Self { child, address }
    }

    /// What `stoker status` says of the router whose admin port this is.
    pub async fn status(&self) -> Value {
        let (code, output, errors) =
            stoker(&["status", "--endpoint", &self.address, "--json"]).await;
        assert_eq!(code, Some(0), "{errors}");
        serde_json::from_str(&output).unwrap()
    }
}

impl Drop for PortForward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
