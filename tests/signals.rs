//! The program itself and the signals that stop it, while something holds it up.

#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

/// Far more than any of this takes on a busy machine, and less than what it is held up by.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program, which knows nothing of our own settings.
fn canvasd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_canvasd"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CANVASD_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn signal(child: &Child, number: libc::c_int) {
    let process = libc::pid_t::try_from(child.id()).expect("a process id");
    // SAFETY: only sends a signal, to a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(process, number) }, 0, "the signal is sent");
}

/// Waits for the end, and gives the exit code and the rest of the log.
fn ended(mut child: Child, mut log: impl Read) -> (Option<i32>, String) {
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        if Instant::now() > until {
            child.kill().expect("it can be killed");
            child.wait().expect("it ends");
            panic!("it did not end by its signals");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut rest = String::new();
    log.read_to_string(&mut rest).expect("a log");
    (status.code(), rest)
}

/// Reads the log up to a line that holds `text`.
fn wait_for(log: &mut BufReader<ChildStderr>, text: &str) {
    let found = log.lines().map(|line| line.expect("a line of the log")).any(|line| line.contains(text));
    assert!(found, "the log never says {text:?}");
}

/// Asks for far more than can be answered meanwhile, and waits for the first words.
fn ask_for_much(address: &str) -> TcpStream {
    let body = r#"{"messages": [{"role": "user", "content": "Tell me a story about a fox and a lantern."}],
                   "stream": true, "seed": 7, "n": 64}"#;
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("the request is sent");
    let mut answer = BufReader::new(stream.try_clone().expect("a second handle")).lines();
    assert_eq!(answer.next().expect("a first line").expect("a line"), "HTTP/1.1 200 OK");
    let words = |line: std::io::Result<String>| line.is_ok_and(|line| line.contains(r#""content":""#));
    assert!(answer.any(words), "an answer begins");
    stream
}

/// A server, its log, and the connection of an answer that it is busy with; one canvas at a time.
fn busy_server(grace_seconds: &str) -> (Child, BufReader<ChildStderr>, TcpStream) {
    let mut command = canvasd(&["serve", "--port", "0"]);
    command.env("CANVASD_MAX_RUNNING", "1").env("CANVASD_GRACE_SECONDS", grace_seconds);
    let mut child = command.spawn().expect("it starts");
    let log = BufReader::new(child.stderr.take().expect("a log"));
    let lines = BufReader::new(child.stdout.take().expect("an output")).lines();
    let listening = lines.map(|line| line.expect("a line")).find(|line| line.starts_with("listening on http://"));
    let answer = ask_for_much(&listening.expect("an address").replace("listening on http://", ""));
    (child, log, answer)
}

#[test]
fn a_second_signal_ends_the_server_in_the_middle_of_an_answer() {
    for second in [libc::SIGTERM, libc::SIGINT] {
        // A grace that outlasts this test.
        let (child, mut log, _answer) = busy_server("600");
        signal(&child, libc::SIGTERM);
        wait_for(&mut log, "again to stop at once");
        // Sooner it would be the first one delivered twice.
        std::thread::sleep(Duration::from_millis(600));
        signal(&child, second);
        let (code, rest) = ended(child, log);
        assert_eq!(code, Some(130), "{rest}");
        assert!(rest.contains("again: stopped without waiting") && rest.contains("interrupted"), "{rest}");
        assert!(!rest.contains("panicked"), "{rest}");
    }
}

/// As `timeout` does, which signals its child and then the child's group.
#[test]
fn a_signal_delivered_twice_is_one_wish() {
    let (child, mut log, _answer) = busy_server("2");
    signal(&child, libc::SIGTERM);
    wait_for(&mut log, "again to stop at once");
    signal(&child, libc::SIGTERM);
    let (code, rest) = ended(child, log);
    assert_eq!(code, Some(0), "{rest}");
    assert!(!rest.contains("without waiting"), "{rest}");
}

#[test]
fn measuring_a_server_that_never_answers_can_be_stopped() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    for number in [libc::SIGTERM, libc::SIGINT] {
        let mut child = canvasd(&["bench", "--url", &url]).spawn().expect("it starts");
        let log = child.stderr.take().expect("a log");
        let (mut connection, _) = silent.accept().expect("it connects");
        // It has asked, and waits.
        assert!(connection.read(&mut [0; 1]).expect("a request") > 0);
        signal(&child, number);
        let (code, rest) = ended(child, log);
        assert_eq!(code, Some(130), "{rest}");
    }
}
