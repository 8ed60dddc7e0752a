//! Each fault of the proxy has its effect and no other.

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

async fn echoed(socket: &mut TcpStream, word: &[u8]) -> Vec<u8> {
    socket.write_all(word).await.unwrap();
    let mut received = vec![0; word.len()];
    socket.read_exact(&mut received).await.unwrap();
    received
}

#[tokio::test]
async fn bytes_and_eof_pass_without_a_fault() {
    let (proxy, mut socket) = through(Plan::CLEAR).await;
    assert_eq!(echoed(&mut socket, b"world").await, b"world");
    proxy.wait_connected(1).await;
    socket.shutdown().await.unwrap();
    assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn bytes_are_delayed_in_both_directions() {
    let time = Duration::from_millis(30);
    let (_proxy, mut socket) = through(Plan::both(Fault::Delay(time))).await;
    let begun = Instant::now();
    assert_eq!(echoed(&mut socket, b"world").await, b"world");
    assert!(begun.elapsed() >= 2 * time);
}

#[tokio::test]
async fn a_cut_closes_after_its_bytes_and_a_reset_resets_open_connections() {
    let (_proxy, mut socket) = through(Plan { down: Fault::Cut(3), up: Fault::None }).await;
    socket.write_all(b"world").await.unwrap();
    let mut received = Vec::new();
    socket.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"wor");

    let (proxy, mut socket) = through(Plan::CLEAR).await;
    assert_eq!(echoed(&mut socket, b"world").await, b"world");
    proxy.set_open(Plan::both(Fault::Reset(0)));
    let error = socket.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    // A later connection is unaffected.
    let mut later = TcpStream::connect(&proxy.address).await.unwrap();
    assert_eq!(echoed(&mut later, b"again").await, b"again");
}

#[tokio::test]
async fn swallowed_bytes_are_lost_and_stalled_bytes_arrive_later() {
    let (_proxy, mut socket) = through(Plan { up: Fault::Swallow, down: Fault::None }).await;
    socket.write_all(b"lost").await.unwrap();
    socket.shutdown().await.unwrap();
    let mut received = Vec::new();
    socket.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"");

    let (proxy, mut socket) = through(Plan { up: Fault::Stall, down: Fault::None }).await;
    socket.write_all(b"late").await.unwrap();
    let mut received = [0; 4];
    let silent = timeout(Duration::from_millis(50), socket.read(&mut received)).await;
    assert!(silent.is_err());
    proxy.set(Plan::CLEAR);
    socket.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"late");
}
