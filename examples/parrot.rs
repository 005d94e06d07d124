//! A server whose model says what a script tells it: thoughts, tool calls, failures, on a cue in the prompt.
//!
//! For trying a client without weights, and for the client tests, since the model inside the program calls no tools. The
//! cues are in `tests/http/support.rs`. `cargo run --example parrot` listens on a free port and prints it.

#[path = "../tests/http/parrot.rs"]
mod parrot;
#[allow(dead_code, reason = "the tests' own half of the module is not needed here")]
#[path = "../tests/http/support.rs"]
mod support;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let app = support::App::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.router).await
}
