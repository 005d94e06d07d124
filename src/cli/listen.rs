//! The accept loop: a router on a socket, with bounds on what a client can hold and a close that loses nothing. The router
//! may be changed for another while connections are open.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderValue, header};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::stall;

/// How long, and how many bytes, a client may go on sending a body that was refused before it was read.
const LINGER: Duration = Duration::from_secs(5);
const DISCARDED: usize = 64 << 20;

/// What the system may hold of an answer that the client has not read. Its own choice can be megabytes.
#[cfg(unix)]
const UNREAD: usize = 128 << 10;

/// Time between two lines about connections that cannot be accepted.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Bounds on connections.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most connections open at once.
    pub connections: usize,
    /// Longest time for a request's head.
    pub head: Duration,
    /// Longest time without a client's taking any of an answer that waits for it.
    pub stall: Duration,
}

/// Serves connections until `close` is cancelled, then waits until every connection has ended; a request that is being
/// answered is answered to its end. Aborting the future drops what is left. Each request is for the router that there is
/// when it comes, whenever its connection was made.
pub async fn serve(listener: TcpListener, router: watch::Receiver<Router>, bounds: Bounds, close: CancellationToken) {
    // Connections have it from the listener. What has waited would be put together again.
    #[cfg(unix)]
    let _ = socket2::SockRef::from(&listener).set_tcp_mss(stall::PIECE as u32);
    let places = Arc::new(Semaphore::new(bounds.connections.min(Semaphore::MAX_PERMITS)));
    let connections = TaskTracker::new();
    let mut failures = Failures::default();
    loop {
        // A place first: what cannot be served waits in the listener's backlog.
        let place = tokio::select! {
            () = close.cancelled() => break,
            place = places.clone().acquire_owned() => place,
        };
        let accepted = tokio::select! {
            () = close.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let task = connection(stream, peer, router.clone(), bounds, close.clone());
                connections.spawn(async move {
                    task.await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, or a client that left at once: neither is a reason to stop.
                if let Some(failures) = failures.count(Instant::now()) {
                    tracing::warn!(%error, failures, "connections cannot be accepted; they wait");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Counts connections that could not be accepted. Each that waits is tried again many times a second, and the log should
/// not have a line for each.
#[derive(Debug, Default)]
struct Failures {
    told: Option<Instant>,
    untold: u64,
}

impl Failures {
    /// Counts one more; gives how many there are to tell, if it is time to tell: the first at once, then some together.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now.duration_since(told) < BETWEEN_LINES) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: watch::Receiver<Router>,
    bounds: Bounds,
    close: CancellationToken,
) {
    // Small pieces of a stream should leave at once.
    let _ = stream.set_nodelay(true);
    #[cfg(unix)]
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, UNREAD);
    let stream = stall::Guarded::new(stream, bounds.stall);
    let unread = Arc::new(AtomicBool::new(false));
    let noted = unread.clone();
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let (router, noted) = (router.borrow().clone(), noted.clone());
        Box::pin(async move { Ok::<_, Infallible>(answer(router, request, &noted).await) })
    });
    let mut serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        ended = poll_fn(|cx| serving.poll_without_shutdown(cx)) => ended,
        () = close.cancelled() => {
            Pin::new(&mut serving).graceful_shutdown();
            poll_fn(|cx| serving.poll_without_shutdown(cx)).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended early");
    }
    let stream = serving.into_parts().io.into_inner();
    let stalled = stream.stalled();
    let mut stream = stream.into_inner();
    if stalled {
        tracing::info!(%peer, "the client took nothing for {} s: its connection is reset", bounds.stall.as_secs());
        // A reset: otherwise the system would go on offering what it still holds.
        let _ = stream.set_zero_linger();
        return;
    }
    let _ = stream.shutdown().await;
    if unread.load(Ordering::Acquire) {
        let _ = tokio::time::timeout(LINGER, discard(stream)).await;
    }
}

/// Takes in what a client still sends. Closing a socket on bytes that nobody has read resets the connection, and the
/// client may then lose the answer that was sent before.
async fn discard(mut stream: TcpStream) -> std::io::Result<()> {
    let mut bytes = vec![0; 16 << 10];
    let mut left = DISCARDED;
    while left > 0 {
        match stream.read(&mut bytes).await? {
            0 => break,
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

async fn answer(router: Router, request: hyper::Request<Incoming>, unread: &AtomicBool) -> axum::response::Response {
    let read = Arc::new(AtomicBool::new(request.body().is_end_stream()));
    let request: Request = request.map(|body| axum::body::Body::new(Watched { body, read: read.clone() }));
    let mut response = match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    // A refusal may come before the body was read, and the connection then ends with it. The client has to be told, or
    // its next request meets a connection that is being closed.
    if !read.load(Ordering::Acquire) {
        unread.store(true, Ordering::Release);
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A request's body that notes when it has been read to its end.
struct Watched {
    body: Incoming,
    read: Arc<AtomicBool>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.read.store(true, Ordering::Release);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::net::TcpSocket;
    use tokio::task::JoinHandle;

    use super::*;

    /// Asks on an open connection and gives the body, which is one letter.
    async fn ask(stream: &mut TcpStream) -> char {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        char::from(stream.read_u8().await.unwrap())
    }

    const BOUNDS: Bounds = Bounds { connections: 4, head: Duration::from_secs(30), stall: Duration::from_secs(30) };

    /// Serves on a free port until it is closed.
    async fn served(
        router: Router,
        bounds: Bounds,
    ) -> (SocketAddr, watch::Sender<Router>, CancellationToken, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (router, current) = watch::channel(router);
        let close = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, current, bounds, close.clone()));
        (address, router, close, serving)
    }

    #[tokio::test]
    async fn an_open_connection_meets_the_router_of_the_moment() {
        let saying = |letter: &'static str| Router::new().route("/", get(move || async move { letter }));
        let (address, router, close, serving) = served(saying("a"), BOUNDS).await;
        let mut kept = TcpStream::connect(address).await.unwrap();
        assert_eq!(ask(&mut kept).await, 'a');
        let _ = router.send_replace(saying("b"));
        assert_eq!(ask(&mut kept).await, 'b');
        assert_eq!(ask(&mut TcpStream::connect(address).await.unwrap()).await, 'b');
        close.cancel();
        serving.await.unwrap();
    }

    /// Its system calls the socket writable every four seconds only, and tells of what was read every half of one.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_client_that_reads_slowly_lives() {
        const SIZE: usize = 1 << 20;
        let large = Router::new().route("/", get(|| async { vec![b'x'; SIZE] }));
        let (address, _router, ..) = served(large, Bounds { stall: Duration::from_secs(2), ..BOUNDS }).await;
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        let mut client = socket.connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut slowly = vec![0; 2 << 10];
        for _ in 0..80 {
            client.read_exact(&mut slowly).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() + 80 * slowly.len() > SIZE);
    }

    #[test]
    fn failures_to_accept_are_told_now_and_then() {
        let begun = Instant::now();
        let mut failures = Failures::default();
        let told: Vec<_> = (0..500).map(|n| failures.count(begun + Duration::from_millis(50) * n)).collect();
        let lines: Vec<_> = told.iter().enumerate().filter_map(|(at, count)| count.map(|count| (at, count))).collect();
        assert_eq!(lines, [(0, 1), (200, 200), (400, 200)]);
    }
}
