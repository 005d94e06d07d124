//! A server in memory, and what the tests say to it.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use canvasd::api::{ApiSettings, AppState, ModelCard, router};
use canvasd::prompt::{Text, TextParts};
use canvasd::scheduler::{Engine, Sampler, Settings};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokenizers::Tokenizer;
use tower::ServiceExt;

use super::parrot::{Act, Parrot, Script};

pub const MODEL: &str = "parrots/grey";
pub const ALIAS: &str = "gpt-4o-mini";

/// Memory for keys and values of many whole contexts.
const ROOMY: u64 = 4 << 20;

/// A story of more than one canvas.
pub const STORY: &str = "Once upon a time there was a gentle fox. The fox lived in a forest and sang a song every day.";

pub static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    Tokenizer::from_file(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/tokenizer.json"))
        .expect("the demo's tokenizer")
});

/// Turns like the demo's, and the checkpoint format's ways to think and to call tools.
const TEMPLATE: &str = "\
{{ bos_token }}{% if enable_thinking %}<|turn>system\n<|think|>\n<turn|>\n{% endif %}\
{% for t in tools or [] %}<|tool>declaration:{{ t['function']['name'] }}<tool|>{% endfor %}\
{% for m in messages %}{{ '<|turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}\
{{ m['content'] if m['content'] is string else m['content'] | map(attribute='text') | join }}\
{% for c in m['tool_calls'] or [] %}<|tool_call>call:{{ c['function']['name'] }}{}<tool_call|>{% endfor %}\
{{ '<turn|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% if thought == 'open' %}{{ '<|channel>thought\n' }}\
{% elif thought == 'closed' %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}";

pub fn ids(text: &str) -> Vec<u32> {
    TOKENIZER.encode_fast(text, false).expect("text").get_ids().to_vec()
}

/// The cues and what follows them.
fn script() -> Script {
    let end = TOKENIZER.token_to_id("<turn|>").expect("an end token");
    let say = |text: &str| {
        let mut tokens = ids(text);
        tokens.push(end);
        Act::Say(tokens)
    };
    let quote = "<|\"|>";
    let call = |city: &str| format!("<|tool_call>call:weather{{city:{quote}{city}{quote}}}<tool_call|>");
    let cues = vec![
        ("hello", say("Hello there.")),
        ("story", say(STORY)),
        ("person", say(r#"{"name": "Anna", "age": 30}"#)),
        ("umlaut", say("Grüße 😀 aus Köln — größer als ½.")),
        ("think", say("<|channel>thought\nThe fox asks.<channel|>It is a fox.")),
        ("blank", say("<|channel>thought\n<channel|>Nothing to think.")),
        ("untitled", say("thought\n<channel|>A bare title.")),
        ("look", say(&format!("A look.\n{}\n", call("Paris")))),
        ("call", say(&call("Paris"))),
        ("both", say(&format!("{}{}", call("Paris"), call("Rome")))),
        ("mixed", say(&format!("{}{STORY}", call("Paris")))),
        ("between", say(&format!("{} then {}", call("Paris"), call("Rome")))),
        ("broken", say("<|tool_call>weather Paris<tool_call|>")),
        ("dice", Act::Dice((0..64).map(|n| ids(&format!("The dice say {n}."))).collect())),
        ("babble", Act::Babble(ids(" one two three four"), Duration::from_millis(5))),
        ("fail", Act::Fail(ids(" one two"), 0)),
        ("crash", Act::Fail(ids(" one two"), 16)),
    ];
    let cues = cues.into_iter().map(|(cue, act)| (ids(cue), act)).collect();
    Script { cues, model_turn: ids("<|turn>model\n"), end }
}

/// A server in memory.
pub struct App {
    pub router: Router,
    pub engine: Engine,
}

impl App {
    pub fn new() -> App {
        App::with(ApiSettings::default(), Settings::default())
    }

    pub fn with(api: ApiSettings, scheduler: Settings) -> App {
        App::made(api, Settings { kv_bytes: ROOMY, ..scheduler }, TEMPLATE)
    }

    /// With so many bytes for keys and values.
    pub fn with_memory(kv_bytes: u64) -> App {
        App::made(ApiSettings::default(), Settings { kv_bytes, ..Settings::default() }, TEMPLATE)
    }

    /// With another chat template.
    pub fn speaking(template: &str) -> App {
        App::made(ApiSettings::default(), Settings { kv_bytes: ROOMY, ..Settings::default() }, template)
    }

    fn made(api: ApiSettings, scheduler: Settings, template: &str) -> App {
        let text = Text::new(TextParts {
            tokenizer: TOKENIZER.clone(),
            template: Some(template.into()),
            end_tokens: ["<eos>", "<turn|>"].map(|token| TOKENIZER.token_to_id(token).expect("an end token")).to_vec(),
            bos_token: Some("<bos>".into()),
            eos_token: Some("<eos>".into()),
            add_bos: None,
        })
        .expect("a text");
        let parrot = Parrot::new(TOKENIZER.get_vocab_size(true), Arc::new(script()));
        let settings = Settings { encode_rows: 64, ..scheduler };
        let engine = Engine::start(Box::new(parrot), settings).expect("an engine");
        let card = ModelCard {
            id: MODEL.into(),
            aliases: vec![ALIAS.into()],
            sampler: Sampler { max_steps: 12, ..Sampler::default() },
            variant: String::new(),
        };
        let state = AppState::new(api, card, Arc::new(text), engine.handle());
        App { router: router(state), engine }
    }

    pub async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.expect("infallible")
    }

    /// Posts JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_bytes(path, body.to_string().into_bytes()).await
    }

    /// Posts bytes as JSON.
    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Reply {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json").body(Body::from(body));
        Reply::of(self.send(request.expect("a request")).await).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        Reply::of(self.send(Request::get(path).body(Body::empty()).expect("a request")).await).await
    }

    /// Posts a chat of one message, with further fields.
    pub async fn chat(&self, message: &str, fields: Value) -> Reply {
        self.post("/v1/chat/completions", &chat_body(message, fields)).await
    }

    /// Posts a completion, with further fields.
    pub async fn complete(&self, prompt: impl Into<Value>, fields: Value) -> Reply {
        let mut body = json!({"model": MODEL, "prompt": prompt.into()});
        body.as_object_mut().expect("an object").extend(fields.as_object().cloned().unwrap_or_default());
        self.post("/v1/completions", &body).await
    }
}

pub fn chat_body(message: &str, fields: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": message}]});
    body.as_object_mut().expect("an object").extend(fields.as_object().cloned().unwrap_or_default());
    body
}

/// A response, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: axum::http::HeaderMap,
    pub body: String,
}

impl Reply {
    pub async fn of(response: Response<Body>) -> Reply {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let body = String::from_utf8(bytes.to_vec()).expect("text");
        Reply { status: parts.status, headers: parts.headers, body }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    /// The JSON of a success.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        self.json()
    }

    /// The error object of a refusal, whose envelope is checked.
    #[track_caller]
    pub fn refused(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/json");
        let body = self.json();
        let error = body["error"].as_object().unwrap_or_else(|| panic!("no envelope: {body}"));
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"], "{body}");
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 5), "{body}");
        assert!(error["type"].is_string(), "{body}");
        assert!(error["param"].is_string() || error["param"].is_null(), "{body}");
        assert!(error["code"].is_string() || error["code"].is_null(), "{body}");
        body["error"].clone()
    }

    /// The data of a stream's events, checked for form; the last one must be `[DONE]`, which is left out.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let mut events = self.raw_events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", self.body);
        assert!(self.body.ends_with("data: [DONE]\n\n"));
        events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
    }

    /// The data of a stream's events.
    #[track_caller]
    pub fn raw_events(&self) -> Vec<String> {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        assert_eq!(self.headers[header::CONTENT_TYPE], "text/event-stream");
        assert!(self.body.ends_with("\n\n"), "{}", self.body);
        let blocks = self.body.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
        blocks.map(|block| block.strip_prefix("data: ").expect("a data line").to_owned()).collect()
    }
}

/// What a chat stream's chunks of one choice add up to.
#[derive(Debug, Default, PartialEq)]
pub struct Heard {
    pub content: String,
    pub reasoning: String,
    pub calls: Vec<Value>,
    pub finish: String,
    pub logprobs: Vec<Value>,
}

/// Adds up one choice of a chat stream.
pub fn hear(events: &[Value], index: usize) -> Heard {
    let mut heard = Heard::default();
    for choice in events.iter().flat_map(|event| event["choices"].as_array().expect("choices")) {
        if choice["index"] != index {
            continue;
        }
        assert!(heard.finish.is_empty(), "a chunk follows the finish: {choice}");
        let delta = &choice["delta"];
        heard.content += delta["content"].as_str().unwrap_or_default();
        heard.reasoning += delta["reasoning_content"].as_str().unwrap_or_default();
        heard.calls.extend(delta["tool_calls"].as_array().cloned().unwrap_or_default());
        heard.logprobs.extend(choice["logprobs"]["content"].as_array().cloned().unwrap_or_default());
        heard.finish = choice["finish_reason"].as_str().unwrap_or_default().to_owned();
    }
    heard
}
