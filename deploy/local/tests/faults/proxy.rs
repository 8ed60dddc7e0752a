//! A TCP proxy that does to connections what networks do. Its faults change while it runs.

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

/// Bytes that a direction holds back at most; more stay with the sender.
const MOST_DELAYED: usize = 1 << 20;

/// What wait_for_sample of the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// They pass at once.
    #[default]
    None,
    /// They pass that much later.
    Delay(Duration),
    /// They are taken and lost, as behind a cable that was cut.
    Swallow,
    /// They are not taken any more: the sender's buffers fill up.
    Stall,
    /// That many more pass, then the connection is closed in good order.
    Cut(usize),
    /// That many more pass, then the connection is reset.
    Reset(usize),
}

/// What wait_for_sample of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plan {
    /// On the way to the server.
    pub up: Fault,
    /// On the way back.
    pub down: Fault,
}

impl Plan {
    /// Everything passes.
    pub const CLEAR: Self = Self { up: Fault::None, down: Fault::None };

    /// The same both ways.
    pub fn both(fault: Fault) -> Self {
        Self { up: fault, down: fault }
    }
}

/// What connections are told.
#[derive(Debug, Clone, Copy, Default)]
struct Order {
    plan: Plan,
    /// Holds for connections that are made from now on, too.
    newcomers: bool,
}

/// A proxy on a free port. Dropping it closes it and resets its connections.
pub struct Proxy {
    pub address: String,
    server: Arc<Mutex<String>>,
    orders: watch::Sender<Order>,
    made: watch::Sender<usize>,
    task: AbortHandle,
}

impl Proxy {
    /// A proxy that leads to `server` and lets everything pass.
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Arc::new(Mutex::new(server.to_owned()));
        let orders = watch::Sender::default();
        let made = watch::Sender::default();
        let accept = accept(listener, Arc::clone(&server), orders.clone(), made.clone());
        let task = tokio::spawn(accept).abort_handle();
        Self { address, server, orders, made, task }
    }

    /// Leads connections to another server from now on.
    pub fn lead_to(&self, server: &str) {
        server.clone_into(&mut self.server.lock().unwrap());
    }

    /// Does this to every connection, those to come as well.
    pub fn set(&self, plan: Plan) {
        self.orders.send_replace(Order { plan, newcomers: true });
    }

    /// Does this to the connections that there are. Those to come are not touched.
    pub fn strike(&self, plan: Plan) {
        self.orders.send_replace(Order { plan, newcomers: false });
    }

    /// Waits until this many connections have been made, those that are over included.
    pub async fn connected(&self, count: usize) {
        let mut made = self.made.subscribe();
        timeout(TEST_TIMEOUT, made.wait_for(|made| *made >= count)).await.unwrap().unwrap();
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
    orders: watch::Sender<Order>,
    made: watch::Sender<usize>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let mut orders = orders.subscribe();
                let order = *orders.borrow_and_update();
                let plan = if order.newcomers { order.plan } else { Plan::CLEAR };
                let server = server.lock().unwrap().clone();
                let made = made.clone();
                connections.spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    made.send_modify(|made| *made += 1);
                    connection(client, server, plan, orders).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// How a connection ends when a direction of it ends early.
enum Early {
    Closed,
    Reset,
}

async fn connection(
    mut client: TcpStream,
    mut server: TcpStream,
    plan: Plan,
    orders: watch::Receiver<Order>,
) {
    for end in [&client, &server] {
        end.set_nodelay(true).unwrap();
    }
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let up = pass(from_client, to_server, plan.up, |plan| plan.up, orders.clone());
    let down = pass(from_server, to_client, plan.down, |plan| plan.down, orders);
    let end = try_join(up, down).await;
    for mut end_of_it in [client, server] {
        match end {
            Ok(_) | Err(Early::Closed) => drop(end_of_it.shutdown().await),
            Err(Early::Reset) => drop(end_of_it.set_zero_linger()),
        }
    }
}

/// Passes on one direction until its end, which it passes on too.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut fault: Fault,
    mine: impl Fn(&Plan) -> Fault,
    mut orders: watch::Receiver<Order>,
) -> Result<(), Early> {
    let mut late: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; 64 << 10];
    let mut over = false;
    loop {
        match fault {
            Fault::Cut(0) => return Err(Early::Closed),
            Fault::Reset(0) => return Err(Early::Reset),
            _ => {}
        }
        let held: usize = late.iter().map(|(_, bytes)| bytes.len()).sum();
        if over && held == 0 {
            // Whoever is gone need not be told.
            let _ = to.shutdown().await;
            return Ok(());
        }
        let due = late.front().map(|(due, _)| *due);
        let reads = !over && fault != Fault::Stall && held < MOST_DELAYED;
        tokio::select! {
            changed = orders.changed() => {
                changed.map_err(|_| Early::Reset)?;
                fault = mine(&orders.borrow_and_update().plan);
            }
            () = async { match due { Some(due) => sleep_until(due).await, None => pending().await } } => {
                let (_, bytes) = late.pop_front().unwrap_or_else(|| unreachable!("one is due"));
                to.write_all(&bytes).await.map_err(|_| Early::Reset)?;
            }
            read = from.read(&mut buffer), if reads => {
                let mut count = read.map_err(|_| Early::Reset)?;
                over = count == 0;
                let mut due = Instant::now();
                match &mut fault {
                    Fault::None | Fault::Stall => {}
                    Fault::Delay(time) => due += *time,
                    Fault::Swallow => count = 0,
                    Fault::Cut(left) | Fault::Reset(left) => {
                        count = count.min(*left);
                        *left -= count;
                        // The last ones pass before the end.
                        to.write_all(&buffer[..count]).await.map_err(|_| Early::Reset)?;
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
