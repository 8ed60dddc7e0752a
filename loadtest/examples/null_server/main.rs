//! A server that computes nothing: it sends a response at once, or a token at a time, over gRPC and
//! over OpenAI's HTTP API. What a load test shows of it is the load test's own limit.
//!
//! ```sh
//! cargo run --release -p stoker-loadtest --example null_server -- --interval 20ms
//! stoker-loadtest --endpoint 127.0.0.1:50061 --prompts prompts.txt --max-tokens 128
//! stoker-loadtest --endpoint 127.0.0.1:8061 --target openai
//! ```
#![allow(unreachable_pub, reason = "an example has no outside")]

mod grpc;
mod openai;

use std::{net::SocketAddr, time::Duration};

use clap::Parser;
use stoker_shared::duration;
use tokio::net::TcpListener;

/// Responds to requests without computing anything, over gRPC and over OpenAI's HTTP API
#[derive(Debug, Parser)]
struct Cli {
    /// Address of the gRPC server
    #[arg(long, default_value = "127.0.0.1:50061")]
    grpc: SocketAddr,
    /// Address of the HTTP server
    #[arg(long, default_value = "127.0.0.1:8061")]
    openai: SocketAddr,
    /// Time to the first token
    #[arg(long, default_value = "0s", value_parser = duration::parse)]
    first: Duration,
    /// Time between two tokens
    #[arg(long, default_value = "0s", value_parser = duration::parse)]
    interval: Duration,
}

/// When tokens are sent.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Time to the first one.
    pub first: Duration,
    /// Time between two.
    pub interval: Duration,
}

impl Pace {
    /// Waits until token `index` is due.
    pub async fn wait(self, index: u32) {
        let time = if index == 0 { self.first } else { self.interval };
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cli = Cli::parse();
    let pace = Pace { first: cli.first, interval: cli.interval };
    let (grpc, openai) = (TcpListener::bind(cli.grpc).await?, TcpListener::bind(cli.openai).await?);
    // Ports may be 0.
    println!("grpc {} openai {}", grpc.local_addr()?, openai.local_addr()?);
    tokio::try_join!(grpc::serve(grpc, pace), openai::serve(openai, pace))?;
    Ok(())
}
