//! The subcommand `health` of the servers: whether the process at an address serves. Made for the
//! health checks of containers without a shell.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use stoker_proto::v1::GetModelInfoRequest;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::{
    cli,
    client::{Address, CallError, Client, Credentials},
    duration,
    error::quoted,
    serve::ListenAddress,
    tls::{ClientTlsArgs, ServerTlsArgs},
};

/// `health`
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// Address of the process [default: its --listen address as this command sees it: from
    /// STOKER_LISTEN, a configuration file, or the default; on loopback if that is every interface]
    #[arg(long, env = "STOKER_ENDPOINT", value_name = "ADDR")]
    pub endpoint: Option<Address>,

    /// Authorities (CAs) that may have signed the certificate of an https:// endpoint, as a PEM file
    /// [default: those of this system]
    #[arg(long, env = "STOKER_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// Maximum time to wait for the response
    #[arg(
        long,
        env = "STOKER_TIMEOUT",
        default_value = "2s",
        value_parser = duration::parse_positive,
        value_name = "TIME"
    )]
    pub timeout: Duration,
}

impl HealthArgs {
    /// Asks the process that listens on `listen` with the certificate of `tls`, unless `--endpoint`
    /// is given. Prints one line: `serving`, or why it does not serve.
    pub async fn run(self, listen: &ListenAddress, tls: &ServerTlsArgs) -> ExitCode {
        let scheme = if tls.tls_cert.is_some() { "https" } else { "http" };
        let local = |endpoint: String| format!("{scheme}://{endpoint}").parse().ok();
        // The process itself has to present its certificate. Of others, the authority is verified.
        let credentials = Credentials {
            tls: ClientTlsArgs {
                tls_ca: self.tls_ca.clone(),
                tls_cert: tls.tls_cert.clone(),
                tls_key: tls.tls_key.clone(),
                pin_own: self.endpoint.is_none(),
                ..ClientTlsArgs::default()
            },
            ..Credentials::default()
        };
        let endpoint = match self.endpoint {
            Some(endpoint) => endpoint,
            None => match listen.local_endpoint().and_then(local) {
                Some(endpoint) => endpoint,
                None => {
                    eprintln!(
                        "error: --listen {listen} is not an address that can be dialled; give \
                         --endpoint HOST:PORT"
                    );
                    return ExitCode::from(cli::BAD_USAGE);
                }
            },
        };
        let checked = match timeout(self.timeout, check(&endpoint, &credentials)).await {
            Ok(checked) => checked,
            Err(_) => Err(format!(
                "no response within {:?}; the process may still load its model (--timeout waits \
                 longer)",
                self.timeout
            )),
        };
        let (line, code) = match checked {
            Ok(()) => ("serving".to_owned(), ExitCode::SUCCESS),
            Err(why) => {
                let why = quoted(&why).replace('\n', " ");
                (format!("not serving: {endpoint}: {why}"), ExitCode::from(cli::FAILURE))
            }
        };
        // The exit code counts, also if nothing reads the line.
        let _ = writeln!(io::stdout(), "{line}");
        code
    }
}

/// Returns why the process does not serve, if it does not.
async fn check(endpoint: &Address, credentials: &Credentials) -> Result<(), String> {
    let client = Client::connect_with(endpoint, credentials).await;
    let client = client.map_err(|error| error.cause())?;
    let call = |status: Status| CallError::from(status).to_string();
    let checked = client.health().check(HealthCheckRequest::default()).await;
    match checked.map_err(call)?.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        _ => Err(reason(&client).await),
    }
}

/// Returns why a process that can be reached does not serve. gRPC health has no reasons, but a
/// router without a worker says so to every call.
async fn reason(client: &Client) -> String {
    let info = client.control().get_model_info(GetModelInfoRequest::default()).await;
    match info {
        Err(status) if status.code() == Code::Unavailable => status.message().to_owned(),
        _ => "it is starting, draining or failing; its log has the reason".into(),
    }
}
