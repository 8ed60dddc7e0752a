//! Runs a real etcd in its own process. Tests of other packages include this file.
#![allow(dead_code, unreachable_pub, reason = "not every test needs everything")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../support/skip.rs"]
pub mod skip;

use std::{
    env, fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// Not 127.0.0.1: while etcd is stopped, outgoing connections, which come from 127.0.0.1, cannot
/// take its port. Only Linux has all of 127.0.0.0/8.
const HOST: &str = if cfg!(target_os = "linux") { "127.0.0.2" } else { "127.0.0.1" };

/// A cluster of one server. Killed when dropped.
pub struct Etcd {
    binary: PathBuf,
    data: TempDir,
    client: String,
    peer: String,
    tls: Vec<String>,
    child: Option<Child>,
}

impl Etcd {
    /// Returns a started server for each available version of etcd: those that `STOKER_TEST_ETCD`
    /// names, separated by colons, else the one in `PATH`. Having none is reported as an absence.
    #[track_caller]
    pub fn each() -> impl Iterator<Item = Self> {
        Self::each_stopped().map(|mut etcd| {
            etcd.start();
            etcd
        })
    }

    /// Returns the same servers, not started yet.
    #[track_caller]
    pub fn each_stopped() -> impl Iterator<Item = Self> {
        let found = match env::var_os("STOKER_TEST_ETCD") {
            Some(named) => env::split_paths(&named).collect(),
            None => find_in_path().into_iter().collect::<Vec<_>>(),
        };
        if found.is_empty() {
            skip::absent("etcd", "install etcd-server or set STOKER_TEST_ETCD to one or several");
        }
        found.into_iter().map(Self::stopped)
    }

    fn stopped(binary: PathBuf) -> Self {
        assert!(binary.exists(), "STOKER_TEST_ETCD: {} is absent", binary.display());
        eprintln!("with {}", binary.display());
        // Both are bound at the same time, so that they differ.
        let ports = [(); 2].map(|()| TcpListener::bind((HOST, 0)).unwrap());
        let [client, peer] = ports.map(|port| format!("http://{}", port.local_addr().unwrap()));
        Self {
            binary,
            data: tempfile::tempdir().unwrap(),
            client,
            peer,
            tls: Vec::new(),
            child: None,
        }
    }

    /// Lets clients use TLS, with a certificate that `ca` has signed.
    pub fn use_tls(&mut self, cert: &str, key: &str, ca: &str) {
        self.client = self.client.replace("http://", "https://");
        let flags = ["--cert-file", cert, "--key-file", key, "--trusted-ca-file", ca];
        self.tls = flags.map(str::to_owned).to_vec();
        self.tls.push("--client-cert-auth".into());
    }

    /// Returns the URL for clients.
    pub fn url(&self) -> &str {
        &self.client
    }

    /// Starts the server on its existing data. It responds a moment later.
    pub fn start(&mut self) {
        let data = self.data.path().join("data");
        let cluster = format!("test={}", self.peer);
        let child = Command::new(&self.binary)
            .args(["--name", "test", "--logger", "zap", "--log-level", "fatal"])
            // The fastest settings for a cluster of one. The minimum lease depends on them.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &self.client, "--advertise-client-urls", &self.client])
            .args(["--listen-peer-urls", &self.peer, "--initial-advertise-peer-urls", &self.peer])
            .args(["--initial-cluster", &cluster])
            .args(&self.tls)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Kills the server, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Deletes all data of the server, which must be stopped.
    pub fn wipe(&self) {
        assert!(self.child.is_none());
        fs::remove_dir_all(self.data.path().join("data")).unwrap();
    }

    /// Pauses the process with its sockets open.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Resumes the process.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(id).unwrap()), signal).unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn find_in_path() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join("etcd")).find(|program| program.is_file())
}
