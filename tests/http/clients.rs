//! Over real sockets: clients that leave, and clients that come while the model works.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::support::{App, chat_body};

/// Serves an app on a free port.
async fn serve(app: &App) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app.router.clone()).into_future());
    address
}

async fn send(address: std::net::SocketAddr, method: &str, path: &str, body: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(body.as_bytes()).await.unwrap();
    socket
}

async fn read_all(mut socket: TcpStream) -> String {
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    text
}

/// Waits until so many choices were cancelled.
async fn cancelled(app: &App, count: usize) {
    let wanted = format!("canvasd_cancellations_total {count}\n");
    for _ in 0..300 {
        if app.engine.handle().metrics().contains(&wanted) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the engine has not let go:\n{}", app.engine.handle().metrics());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_frees_its_place() {
    let app = App::new();
    let address = serve(&app).await;
    for (stream, count) in [(true, 2), (false, 4)] {
        let body = chat_body("babble", json!({"max_tokens": 600, "stream": stream, "n": 2}));
        let mut socket = send(address, "POST", "/v1/chat/completions", &body.to_string()).await;
        if stream {
            let mut some = [0; 600];
            socket.read_exact(&mut some).await.unwrap();
        } else {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(socket);
        cancelled(&app, count).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_answers_while_passes_run() {
    let app = App::new();
    let address = serve(&app).await;
    let body = chat_body("babble", json!({"max_tokens": 300, "stream": true}));
    let busy = send(address, "POST", "/v1/chat/completions", &body.to_string()).await;
    for path in ["/health", "/v1/models", "/ready", "/metrics", "/nowhere"] {
        let reply = tokio::time::timeout(Duration::from_secs(2), read_all(send(address, "GET", path, "").await));
        assert!(reply.await.expect("an answer in time").starts_with("HTTP/1.1 "));
    }
    drop(busy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_gets_what_each_gets_alone() {
    let app = App::new();
    let address = serve(&app).await;
    let body = |seed: usize| chat_body("dice", json!({"seed": seed, "stream": true})).to_string();
    let events = |reply: String| -> Vec<String> {
        let data = reply.lines().filter(|line| line.starts_with("data: {")).map(|line| {
            let chunk: serde_json::Value = serde_json::from_str(&line[6..]).unwrap();
            chunk["choices"][0]["delta"].to_string()
        });
        data.collect()
    };
    let mut alone = Vec::new();
    for seed in 0..32 {
        alone.push(events(read_all(send(address, "POST", "/v1/chat/completions", &body(seed)).await).await));
    }
    assert!(alone.iter().all(|events| events.concat().contains("The dice say")), "{alone:?}");
    assert!(alone.iter().any(|events| *events != alone[0]), "the seeds make no difference");
    let crowd = (0..32).map(|seed| {
        let body = body(seed);
        tokio::spawn(async move { read_all(send(address, "POST", "/v1/chat/completions", &body).await).await })
    });
    for (seed, reply) in crowd.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(events(reply.await.unwrap()), alone[seed]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_a_large_body_is_seen_by_a_client_that_sends_first() {
    let settings = canvasd::api::ApiSettings { body_limit: 100_000, ..Default::default() };
    let app = App::with(settings, Default::default());
    let address = serve(&app).await;
    let body = format!("{{\"prompt\":\"{}\"}}", "x".repeat(300_000));
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    for piece in body.as_bytes().chunks(50_000) {
        socket.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await.unwrap();
        socket.write_all(piece).await.unwrap();
        socket.write_all(b"\r\n").await.unwrap();
    }
    socket.write_all(b"0\r\n\r\n").await.unwrap();
    let mut reply = [0; 12];
    socket.read_exact(&mut reply).await.unwrap();
    assert_eq!(&reply, b"HTTP/1.1 413");
}
