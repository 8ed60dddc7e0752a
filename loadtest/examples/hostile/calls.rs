//! Calls over HTTP/2 that are valid up to their body and headers, so that they reach the handlers.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context as Poller, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, request::Builder};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};

use crate::{
    attack::{Context, Ending},
    tally::Tally,
};

/// Time limit of a call.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns the beginning of a gRPC call.
pub fn grpc(cx: &Context, path: &str) -> Builder {
    Request::post(format!("http://{}{path}", cx.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

/// Makes a call on a connection of its own, and reads its response.
pub async fn call(cx: &Context, request: Builder, body: Vec<u8>) -> Ending {
    let Ok(request) = request.body(()) else { return Ending::Finished };
    let responded = async {
        let socket = TcpStream::connect(cx.address).await.map_err(|_| Ending::NotConnected)?;
        cx.tally.connected();
        let counted = Counted { socket, tally: Arc::clone(&cx.tally) };
        let (mut calls, connection) = h2::client::handshake(counted).await.map_err(ending)?;
        let (response, mut upload) =
            calls.send_request(request, body.is_empty()).map_err(ending)?;
        if !body.is_empty() {
            // Fails if the server has ended the call, whose response says why.
            let _ = upload.send_data(Bytes::from(body), true);
        }
        tokio::select! {
            status = status(response) => status,
            closed = connection => Err(closed.err().map_or(Ending::Closed, ending)),
        }
    };
    match timeout(PATIENCE, responded).await {
        Err(_) => Ending::LeftOpen,
        Ok(ended) => ended.unwrap_or_else(|ending| ending),
    }
}

async fn status(response: h2::client::ResponseFuture) -> Result<Ending, Ending> {
    let of = |headers: &HeaderMap| {
        let status =
            headers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
        status.map(Ending::Grpc)
    };
    let response = response.await.map_err(ending)?;
    if let Some(status) = of(response.headers()) {
        return Ok(status);
    }
    let http = Ending::Http { status: response.status().as_u16(), responses: 1 };
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let length = data.map_err(ending)?.len();
        let _ = body.flow_control().release_capacity(length);
    }
    let trailers = body.trailers().await.map_err(ending)?;
    Ok(trailers.as_ref().and_then(of).unwrap_or(http))
}

fn ending(error: h2::Error) -> Ending {
    match error.reason() {
        Some(reason) if error.is_go_away() => Ending::GoAway(reason.into()),
        Some(reason) => Ending::StreamReset(reason.into()),
        None => Ending::Reset,
    }
}

/// A socket that counts its bytes.
struct Counted {
    socket: TcpStream,
    tally: Arc<Tally>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Poller<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, into);
        self.tally.received(into.filled().len() - before);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Poller<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        if let Poll::Ready(Ok(bytes)) = written {
            self.tally.sent(bytes);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
