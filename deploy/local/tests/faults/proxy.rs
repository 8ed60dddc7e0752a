//! A TCP proxy that does to connections what networks do. Its faults change while it runs.

use std::{
    collections::VecDeque,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::try_join;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

/// Bytes that a direction holds back at most; more stay with the sender.
const MOST_DELAYED: usize = 1 << 20;

/// What becomes of the bytes of one direction.
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

/// What becomes of a connection.
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
    open: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Proxy {
    /// A proxy that leads to `server` and lets everything pass.
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Arc::new(Mutex::new(server.to_owned()));
        let orders = watch::Sender::default();
        let open = Arc::<AtomicUsize>::default();
        let accept = accept(listener, Arc::clone(&server), orders.clone(), Arc::clone(&open));
        let task = tokio::spawn(accept).abort_handle();
        Self { address, server, orders, open, task }
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

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
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
    open: Arc<AtomicUsize>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let mut orders = orders.subscribe();
                let order = *orders.borrow_and_update();
                let plan = if order.newcomers { order.plan } else { Plan::CLEAR };
                let server = server.lock().unwrap().clone();
                let open = Arc::clone(&open);
                connections.spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    open.fetch_add(1, Ordering::Relaxed);
                    connection(client, server, plan, orders).await;
                    open.fetch_sub(1, Ordering::Relaxed);
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

mod tests {
    use std::io::ErrorKind;

    use super::*;

    async fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = socket.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        address
    }

    async fn through(plan: Plan) -> (Proxy, TcpStream) {
        let proxy = Proxy::to(&echo().await).await;
        proxy.set(plan);
        let socket = TcpStream::connect(&proxy.address).await.unwrap();
        (proxy, socket)
    }

    async fn says(socket: &mut TcpStream, word: &[u8]) -> Vec<u8> {
        socket.write_all(word).await.unwrap();
        let mut heard = vec![0; word.len()];
        socket.read_exact(&mut heard).await.unwrap();
        heard
    }

    #[tokio::test]
    async fn what_is_clear_passes_and_ends_pass_too() {
        let (proxy, mut socket) = through(Plan::CLEAR).await;
        assert_eq!(says(&mut socket, b"hello").await, b"hello");
        assert_eq!(proxy.open(), 1);
        socket.shutdown().await.unwrap();
        assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_delay_is_a_delay_both_ways() {
        let time = Duration::from_millis(30);
        let (_proxy, mut socket) = through(Plan::both(Fault::Delay(time))).await;
        let begun = Instant::now();
        assert_eq!(says(&mut socket, b"hello").await, b"hello");
        assert!(begun.elapsed() >= 2 * time);
    }

    #[tokio::test]
    async fn a_cut_closes_after_its_bytes_and_a_reset_resets() {
        let (_proxy, mut socket) = through(Plan { down: Fault::Cut(3), up: Fault::None }).await;
        socket.write_all(b"hello").await.unwrap();
        let mut heard = Vec::new();
        socket.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"hel");

        let (proxy, mut socket) = through(Plan::CLEAR).await;
        assert_eq!(says(&mut socket, b"hello").await, b"hello");
        proxy.strike(Plan::both(Fault::Reset(0)));
        let error = socket.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        // Whoever comes later is not touched.
        let mut later = TcpStream::connect(&proxy.address).await.unwrap();
        assert_eq!(says(&mut later, b"again").await, b"again");
    }

    #[tokio::test]
    async fn what_is_swallowed_is_gone_and_what_is_stalled_comes_later() {
        let (proxy, mut socket) = through(Plan { up: Fault::Swallow, down: Fault::None }).await;
        socket.write_all(b"lost").await.unwrap();
        // Taken off the wire before the plan changes: nothing is left to pass later.
        while proxy.open() == 0 {
            tokio::task::yield_now().await;
        }
        let mut heard = [0; 4];
        let silent = tokio::time::timeout(Duration::from_millis(50), socket.read(&mut heard)).await;
        assert!(silent.is_err());

        proxy.set(Plan { up: Fault::Stall, down: Fault::None });
        socket.write_all(b"late").await.unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(50), socket.read(&mut heard)).await;
        assert!(silent.is_err());
        proxy.set(Plan::CLEAR);
        socket.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"late");
    }
}
