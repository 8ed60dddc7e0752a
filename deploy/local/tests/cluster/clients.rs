//! Clients of other implementations: the commands of the documentation, verbatim.

use std::{
    collections::HashSet,
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{etcd_server::skip, support::program};

/// The address that the documentation uses.
const DOCUMENTED: &str = "127.0.0.1:50051";

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// `stoker serve` on a free port. Killed when it is dropped.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start() -> Self {
        let mut process = program("stoker")
            .args(["serve", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut first = String::new();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        out.read_line(&mut first).unwrap();
        let address = first.trim_end().rsplit(' ').next().unwrap().to_owned();
        Self { process, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The commands in the shell blocks of a document that start with `word`, each joined to one line.
fn commands(document: &str, word: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(document)).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks
        .flat_map(|block| {
            let joined = block.replace("\\\n", " ");
            joined.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .filter(|line| line.starts_with(word))
        .collect()
}

/// Runs a command of the documentation on another cluster and with another program. Returns its
/// exit code, standard output and standard error.
fn shell(command: &str, with: (&str, &Path), server: &Server) -> (Option<i32>, String, String) {
    let (word, program) = with;
    let command = command.replace(DOCUMENTED, &server.address);
    let command = command.replacen(word, &program.display().to_string(), 1);
    let output = Command::new("sh").args(["-c", &command]).current_dir(root()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Returns the program that `variable` names, or `name`, if it succeeds with the arguments `works`.
/// Otherwise reports a skipped test and returns `None`.
#[track_caller]
pub fn find(variable: &str, name: &str, works: &[&str]) -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os(variable).unwrap_or_else(|| name.into()));
    let status =
        Command::new(&path).args(works).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = status.is_ok_and(|status| status.success());
    if !found {
        let remedy = format_args!("`{} {}` fails; set {variable}", path.display(), works.join(" "));
        skip::absent(name, remedy);
    }
    found.then_some(path)
}

#[test]
fn grpcurl_commands_of_the_readme_work() {
    let Some(grpcurl) = find("STOKER_TEST_GRPCURL", "grpcurl", &["-version"]) else { return };
    let server = Server::start();
    let commands = commands("docs/running.md", "grpcurl ");
    let run = |part: &str| {
        let command = commands.iter().find(|command| command.contains(part));
        let command = command.unwrap_or_else(|| panic!("docs/running.md has no grpcurl {part}"));
        let (code, out, error) = shell(command, ("grpcurl", &grpcurl), &server);
        assert_eq!(code, Some(0), "{command}: {error}");
        out
    };
    let services = run(" list");
    for service in ["stoker.v1.Inference", "stoker.v1.Control", "grpc.health.v1.Health"] {
        assert!(services.contains(service), "{service}: {services}");
    }
    let described = run(" describe ");
    for part in ["optional float temperature", "optional uint64 seed"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    assert!(run("Health/Check").contains("\"SERVING\""));
    let completion = run("Inference/Generate");
    for part in ["\"accepted\"", "\"text\"", "FINISH_REASON", "\"completionTokens\""] {
        assert!(completion.contains(part), "{part}: {completion}");
    }
}

#[test]
fn python_commands_of_the_readme_work() {
    let works = ["-c", "import grpc, grpc_tools, grpc_status"];
    let Some(python) = find("STOKER_TEST_PYTHON", "python3", &works) else { return };
    let server = Server::start();
    let with = ("python3", python.as_path());
    let documented = |script: &str| {
        let commands = commands("examples/python/README.md", "python3 examples/python/");
        let command = commands.iter().find(|command| command.contains(script)).cloned();
        command.unwrap_or_else(|| panic!("its README does not run {script}"))
    };

    let generate = documented("generate.py");
    let (code, text, error) = shell(&format!("{generate} --seed 4"), with, &server);
    assert_eq!(code, Some(0), "{error}");
    // The same text as from `stoker generate`.
    let own = program("stoker")
        .args(["generate", "Once upon a time", "--seed", "4", "--max-tokens", "200"])
        .args(["--endpoint", &server.address])
        .output()
        .unwrap();
    assert_eq!(text.trim_end(), String::from_utf8(own.stdout).unwrap().trim_end());
    // Invalid requests are reported by field.
    let (code, text, error) = shell(&format!("{generate} --temperature 101"), with, &server);
    assert_eq!((code, text.as_str()), (Some(1), ""));
    for part in ["INVALID_ARGUMENT", "\n  sampling.temperature: 101", "at most 100"] {
        assert!(error.contains(part), "{part}: {error}");
    }

    let many = documented("many.py");
    let run_many = || {
        let (code, out, error) = shell(&many, with, &server);
        assert_eq!(code, Some(0), "{out}{error}");
        let mut objects: Vec<serde_json::Value> =
            out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        objects.sort_by_key(|object| object["index"].as_u64());
        objects
    };
    let objects = run_many();
    assert_eq!(objects.len(), 40);
    let workers: HashSet<_> = objects.iter().map(|o| o["worker"].as_str().unwrap()).collect();
    assert_eq!(workers.len(), 2, "both workers served requests: {workers:?}");
    for (one, again) in objects.iter().zip(run_many()) {
        assert_eq!(one["text_sha256"], again["text_sha256"], "{one} {again}");
    }
    let (code, out, _) = shell(&format!("{many} --deadline 0.001"), with, &server);
    assert_eq!(code, Some(1));
    assert_eq!(out.lines().count(), 40, "failed requests have an object too: {out}");
}
