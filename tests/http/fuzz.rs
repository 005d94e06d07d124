//! Ten thousand bodies that nobody should send: refused or answered, never a failure, never a hang.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::support::{App, MODEL, chat_body};

const BODIES: usize = 10_000;

/// A small generator of numbers (xorshift); the seed is fixed, so a failure comes again.
struct Luck(u64);

impl Luck {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// A JSON value of any shape.
fn value(luck: &mut Luck, depth: usize) -> Value {
    match luck.below(if depth == 0 { 7 } else { 10 }) {
        0 => Value::Null,
        1 => json!(luck.below(2) == 0),
        2 => json!(*luck.pick(&[0i64, 1, -1, 2, 3, 15, 4096, i64::MAX, i64::MIN])),
        3 => json!(*luck.pick(&[0.0, 0.5, -0.0, 1e-320, 1e308, -1e308, 2.000001])),
        4 => json!(u64::MAX),
        5 => json!(
            *luck.pick(&["", "hello", "user", "text", "auto", "function", "\u{0}", "\u{feff}", "😀", "<|turn>", "999"])
        ),
        6 => json!("x".repeat(luck.below(300))),
        7 => Value::Array((0..luck.below(4)).map(|_| value(luck, depth - 1)).collect()),
        8 => json!([{"role": "user", "content": value(luck, depth - 1)}]),
        _ => {
            let names =
                ["type", "text", "role", "content", "name", "function", "id", "include_usage", "every", "effort", ""];
            let mut map = Map::new();
            for _ in 0..luck.below(4) {
                map.insert((*luck.pick(&names)).to_owned(), value(luck, depth - 1));
            }
            Value::Object(map)
        }
    }
}

/// A good body with some fields replaced by anything.
fn twisted(luck: &mut Luck, mut body: Value, fields: &[String]) -> Value {
    for _ in 0..=luck.below(3) {
        let field = luck.pick(fields).clone();
        body[field] = value(luck, 3);
    }
    // What is accepted should end soon.
    for limit in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
        if luck.below(2) == 0 || body[limit].as_u64().is_some_and(|most| most > 4) {
            body[limit] = json!(1);
        }
    }
    body
}

/// The text of a body, damaged now and then.
fn damaged(luck: &mut Luck, text: String) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    match luck.below(9) {
        0 => bytes.truncate(luck.below(bytes.len() + 1)),
        1 => {
            let at = luck.below(bytes.len());
            bytes[at] = luck.next() as u8;
        }
        2 => {
            let insert =
                *luck.pick(&[&b"\\ud800"[..], b"\0", b"\xff", b"\xEF\xBB\xBF", b"1e999", b",,", b"\\u0000", b"nul"]);
            let at = luck.below(bytes.len());
            bytes.splice(at..at, insert.iter().copied());
        }
        3 if luck.below(10) == 0 => {
            let deep = luck.below(3000);
            let at = luck.below(bytes.len());
            bytes.splice(at..at, std::iter::repeat_n(*luck.pick(b"[{\"-9"), deep));
        }
        _ => {}
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_body_is_a_failure() {
    let app = App::new();
    let document: Value = serde_json::from_str(&canvasd::api::openapi()).unwrap();
    let fields = |schema: &str| -> Vec<String> {
        document["components"]["schemas"][schema]["properties"].as_object().unwrap().keys().cloned().collect()
    };
    let plain = json!({"model": MODEL, "prompt": "hello", "max_tokens": 2});
    let targets = [
        ("/v1/chat/completions", chat_body("hello", json!({"max_tokens": 2})), fields("ChatRequest")),
        ("/v1/completions", plain, fields("CompletionRequest")),
        ("/v1/responses", json!({"input": "hello", "max_output_tokens": 2}), fields("ResponsesRequest")),
        ("/tokenize", json!({"prompt": "hello"}), fields("TokenizeRequest")),
        ("/detokenize", json!({"tokens": [1, 2]}), fields("DetokenizeRequest")),
    ];
    let mut luck = Luck(0x5eed_0000_c0ff_ee11);
    let mut counts = std::collections::BTreeMap::<u16, usize>::new();
    let mut slowest = Duration::ZERO;
    for round in 0..BODIES {
        let (path, body, fields) = luck.pick(&targets);
        let body = twisted(&mut luck, body.clone(), fields).to_string();
        let bytes = damaged(&mut luck, body);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
        let start = Instant::now();
        let answer = tokio::time::timeout(Duration::from_secs(20), app.post_bytes(path, bytes)).await;
        let reply = answer.unwrap_or_else(|_| panic!("round {round} hangs: {path} {shown}"));
        slowest = slowest.max(start.elapsed());
        let status = reply.status.as_u16();
        *counts.entry(status).or_default() += 1;
        match status {
            200 => {}
            400..=499 => drop(reply.refused(status)),
            _ => panic!("round {round}: {status} for {path} {shown}: {}", reply.body),
        }
    }
    println!("{counts:?}, the slowest took {slowest:?}");
    assert!(counts[&200] > BODIES / 50 && counts[&400] > BODIES / 4, "{counts:?} is no good mixture");
}
