//! A TCP proxy that injects network faults into its connections. The faults can change while it
//! runs.

mod tests;

use std::{
    collections::VecDeque,
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::try_join;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};

use crate::support::TEST_TIMEOUT;

/// Maximum number of delayed bytes of a direction; the proxy reads no more from the sender.
const MAX_DELAYED: usize = 1 << 20;

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// They pass at once.
    #[default]
    None,
    /// They pass after a delay.
    Delay(Duration),
    /// They are read and discarded, as on a network that loses packets.
    Swallow,
    /// They are not read: the sender's buffers fill up.
    Stall,
    /// That many more bytes pass, then the connection is closed with FIN.
    Cut(usize),
    /// That many more bytes pass, then the connection is reset.
    Reset(usize),
}

/// Faults of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plan {
    /// From the client to the server.
    pub up: Fault,
    /// From the server to the client.
    pub down: Fault,
}

impl Plan {
    /// Everything passes.
    pub const CLEAR: Self = Self { up: Fault::None, down: Fault::None };

    /// The same fault in both directions.
    pub fn both(fault: Fault) -> Self {
        Self { up: fault, down: fault }
    }
}

/// A change of plan that is sent to the connections.
#[derive(Debug, Clone, Copy, Default)]
struct PlanUpdate {
    plan: Plan,
    /// Whether it applies to connections made from now on, too.
    new_connections: bool,
}

/// A proxy on a free port. Dropping it closes it and resets its connections.
pub struct Proxy {
    pub address: String,
    server: Arc<Mutex<String>>,
    updates: watch::Sender<PlanUpdate>,
    connection_count: watch::Sender<usize>,
    task: AbortHandle,
}

impl Proxy {
    /// Starts a proxy for `server` that lets everything pass.
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Arc::new(Mutex::new(server.to_owned()));
        let updates = watch::Sender::default();
        let connection_count = watch::Sender::default();
        let accept =
            accept(listener, Arc::clone(&server), updates.clone(), connection_count.clone());
        let task = tokio::spawn(accept).abort_handle();
        Self { address, server, updates, connection_count, task }
    }

    /// Sends new connections to another server from now on.
    pub fn redirect_to(&self, server: &str) {
        server.clone_into(&mut self.server.lock().unwrap());
    }

    /// Applies a plan to open and to new connections.
    pub fn set(&self, plan: Plan) {
        self.updates.send_replace(PlanUpdate { plan, new_connections: true });
    }

    /// Applies a plan to open connections. New ones are unaffected.
    pub fn set_open(&self, plan: Plan) {
        self.updates.send_replace(PlanUpdate { plan, new_connections: false });
    }

    /// Waits until `count` connections have been made, including those that have ended.
    pub async fn wait_connected(&self, count: usize) {
        let mut connection_count = self.connection_count.subscribe();
        timeout(TEST_TIMEOUT, connection_count.wait_for(|made| *made >= count))
            .await
            .unwrap()
            .unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    server: Arc<Mutex<String>>,
    updates: watch::Sender<PlanUpdate>,
    connection_count: watch::Sender<usize>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let mut updates = updates.subscribe();
                let update = *updates.borrow_and_update();
                let plan = if update.new_connections { update.plan } else { Plan::CLEAR };
                let server = server.lock().unwrap().clone();
                let connection_count = connection_count.clone();
                connections.spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    connection_count.send_modify(|count| *count += 1);
                    connection(client, server, plan, updates).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// How a connection ends when one direction of it ends early.
enum EarlyEnd {
    Closed,
    Reset,
}

async fn connection(
    mut client: TcpStream,
    mut server: TcpStream,
    plan: Plan,
    updates: watch::Receiver<PlanUpdate>,
) {
    for end in [&client, &server] {
        end.set_nodelay(true).unwrap();
    }
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let up = forward(from_client, to_server, plan.up, |plan| plan.up, updates.clone());
    let down = forward(from_server, to_client, plan.down, |plan| plan.down, updates);
    let end = try_join(up, down).await;
    for mut socket in [client, server] {
        match end {
            Ok(_) | Err(EarlyEnd::Closed) => drop(socket.shutdown().await),
            Err(EarlyEnd::Reset) => drop(socket.set_zero_linger()),
        }
    }
}

/// Forwards the bytes of one direction until EOF, and then the EOF.
async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut fault: Fault,
    direction: impl Fn(&Plan) -> Fault,
    mut updates: watch::Receiver<PlanUpdate>,
) -> Result<(), EarlyEnd> {
    let mut late: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; 64 << 10];
    let mut eof = false;
    loop {
        match fault {
            Fault::Cut(0) => return Err(EarlyEnd::Closed),
            Fault::Reset(0) => return Err(EarlyEnd::Reset),
            _ => {}
        }
        let held: usize = late.iter().map(|(_, bytes)| bytes.len()).sum();
        if eof && held == 0 {
            // Fails if the receiver has closed already.
            let _ = to.shutdown().await;
            return Ok(());
        }
        let due = late.front().map(|(due, _)| *due);
        let reads = !eof && fault != Fault::Stall && held < MAX_DELAYED;
        tokio::select! {
            changed = updates.changed() => {
                changed.map_err(|_| EarlyEnd::Reset)?;
                fault = direction(&updates.borrow_and_update().plan);
            }
            () = async { match due { Some(due) => sleep_until(due).await, None => pending().await } } => {
                let (_, bytes) = late.pop_front().unwrap_or_else(|| unreachable!("one is due"));
                to.write_all(&bytes).await.map_err(|_| EarlyEnd::Reset)?;
            }
            read = from.read(&mut buffer), if reads => {
                let mut count = read.map_err(|_| EarlyEnd::Reset)?;
                eof = count == 0;
                let mut due = Instant::now();
                match &mut fault {
                    Fault::None | Fault::Stall => {}
                    Fault::Delay(time) => due += *time,
                    Fault::Swallow => count = 0,
                    Fault::Cut(remaining) | Fault::Reset(remaining) => {
                        count = count.min(*remaining);
                        *remaining -= count;
                        // The last bytes pass before the end.
                        to.write_all(&buffer[..count]).await.map_err(|_| EarlyEnd::Reset)?;
                        count = 0;
                    }
                }
                if count > 0 {
                    late.push_back((due, buffer[..count].to_vec()));
                }
            }
        }
    }
}
