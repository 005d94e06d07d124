//! Builds a response item by item, and tells of it event by event. A whole response is what the events of a stream would
//! have built.

use axum::response::sse::Event;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::super::super::error::{ApiError, ErrorObject};
use super::super::super::pump::{Beat, Call, Commit, Finish, Passage, Pump};
use super::super::super::sse::{self, StreamDialect};
use super::super::super::wire::responses::{
    IncompleteDetails, OutputItem, OutputPart, ResponseEvent, ResponseObject, ResponseUsage,
};
use super::super::super::wire::usage::Usage;

/// The response so far.
pub(super) struct Writer {
    answer: ResponseObject,
    /// Whether the last item is still being written.
    item: Item,
    sequence: u64,
    finish: Finish,
}

/// How the last item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    /// More may come.
    Open(Voice),
    /// It is complete, or there is none.
    Closed,
}

/// What an item of text holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Voice {
    Reasoning,
    Message,
}

impl Voice {
    fn part(self, text: &str) -> OutputPart {
        let (kind, lists) = match self {
            Voice::Reasoning => ("reasoning_text", None),
            Voice::Message => ("output_text", Some(Vec::new())),
        };
        OutputPart { r#type: kind, text: text.to_owned(), annotations: lists.clone(), logprobs: lists }
    }

    /// An item of one part.
    fn item(self, text: &str) -> OutputItem {
        let status = "in_progress";
        let content = vec![self.part(text)];
        match self {
            Voice::Reasoning => OutputItem::Reasoning { id: new_id("rs"), status, summary: Vec::new(), content },
            Voice::Message => OutputItem::Message { id: new_id("msg"), status, role: "assistant", content },
        }
    }

    /// Beside text of a message, as the SDKs want it.
    fn logprobs(self) -> Option<Vec<Value>> {
        (self == Voice::Message).then(Vec::new)
    }

    fn event(self, what: &str) -> String {
        match self {
            Voice::Reasoning => format!("response.reasoning_text.{what}"),
            Voice::Message => format!("response.output_text.{what}"),
        }
    }
}

impl OutputItem {
    fn id(&self) -> &str {
        match self {
            OutputItem::Reasoning { id, .. } | OutputItem::Message { id, .. } | OutputItem::FunctionCall { id, .. } => {
                id
            }
        }
    }

    fn set_status(&mut self, new: &'static str) {
        match self {
            OutputItem::Reasoning { status, .. }
            | OutputItem::Message { status, .. }
            | OutputItem::FunctionCall { status, .. } => *status = new,
        }
    }

    /// Its text, where it is one of text.
    fn text(&mut self) -> Option<&mut String> {
        match self {
            OutputItem::Reasoning { content, .. } | OutputItem::Message { content, .. } => {
                content.first_mut().map(|part| &mut part.text)
            }
            OutputItem::FunctionCall { .. } => None,
        }
    }

    /// The same, as it stands before anything is in it.
    fn blank(&self) -> OutputItem {
        let mut blank = self.clone();
        match &mut blank {
            OutputItem::Reasoning { content, .. } | OutputItem::Message { content, .. } => content.clear(),
            OutputItem::FunctionCall { arguments, status, .. } => {
                arguments.clear();
                *status = "in_progress";
            }
        }
        blank
    }
}

fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::now_v7().simple())
}

impl Writer {
    pub(super) fn new(answer: ResponseObject) -> Writer {
        Writer { answer, item: Item::Closed, sequence: 0, finish: Finish::Stop }
    }

    /// The complete response: what a stream would have told of, beat by beat, with nobody to read its events.
    ///
    /// # Errors
    /// What broke the answer off.
    pub(super) async fn whole(mut self, mut pump: Pump) -> Result<ResponseObject, ApiError> {
        while let Some((choice, beat)) = pump.next().await {
            match beat {
                Beat::Failed(error) => return Err(error),
                beat => drop(self.beat(choice, beat)),
            }
        }
        self.finish(pump.usage());
        Ok(self.answer)
    }

    fn event(&mut self, name: &str, event: ResponseEvent) -> Event {
        let sequence_number = self.sequence;
        self.sequence += 1;
        sse::named(name, &ResponseEvent { r#type: name.to_owned(), sequence_number, ..event })
    }

    /// An event about the whole response.
    fn state(&mut self, name: &str) -> Event {
        let response = Some(self.answer.clone());
        self.event(name, ResponseEvent { response, ..ResponseEvent::default() })
    }

    /// An event about the last item.
    fn about(&self) -> ResponseEvent {
        ResponseEvent {
            output_index: Some(self.answer.output.len().saturating_sub(1)),
            item_id: self.answer.output.last().map(|item| item.id().to_owned()),
            ..ResponseEvent::default()
        }
    }

    /// An event about the text of the last item.
    fn about_text(&self) -> ResponseEvent {
        ResponseEvent { content_index: Some(0), ..self.about() }
    }

    /// An event that shows an item.
    fn showing(&mut self, name: &str, item: OutputItem) -> Event {
        let about = ResponseEvent { item: Some(item), item_id: None, ..self.about() };
        self.event(name, about)
    }

    fn open_text(&mut self, voice: Voice) -> Vec<Event> {
        let item = voice.item("");
        let blank = item.blank();
        self.answer.output.push(item);
        self.item = Item::Open(voice);
        let added = self.showing("response.output_item.added", blank);
        let part = ResponseEvent { part: Some(voice.part("")), ..self.about_text() };
        vec![added, self.event("response.content_part.added", part)]
    }

    /// Completes the item that is being written, if one is.
    fn close_text(&mut self, status: &'static str) -> Vec<Event> {
        let Item::Open(voice) = std::mem::replace(&mut self.item, Item::Closed) else { return Vec::new() };
        let Some(item) = self.answer.output.last_mut() else { return Vec::new() };
        item.set_status(status);
        let text = item.text().cloned().unwrap_or_default();
        let item = item.clone();
        let about = self.about_text();
        let part = Some(voice.part(&text));
        let done = ResponseEvent { text: Some(text), logprobs: voice.logprobs(), ..about.clone() };
        vec![
            self.event(&voice.event("done"), done),
            self.event("response.content_part.done", ResponseEvent { part, ..about }),
            self.showing("response.output_item.done", item),
        ]
    }

    fn say(&mut self, voice: Voice, text: String) -> Vec<Event> {
        let mut events = Vec::new();
        if text.is_empty() {
            return events;
        }
        if self.item != Item::Open(voice) {
            events.extend(self.close_text("completed"));
            events.extend(self.open_text(voice));
        }
        if let Some(whole) = self.answer.output.last_mut().and_then(OutputItem::text) {
            whole.push_str(&text);
        }
        let delta = ResponseEvent { delta: Some(text), logprobs: voice.logprobs(), ..self.about_text() };
        events.push(self.event(&voice.event("delta"), delta));
        events
    }

    fn call(&mut self, call: Call) -> Vec<Event> {
        let mut events = self.close_text("completed");
        let Call { id: call_id, name, arguments, .. } = call;
        let (status, id) = ("completed", new_id("fc"));
        let item = OutputItem::FunctionCall { id, status, call_id, name: name.clone(), arguments: arguments.clone() };
        self.answer.output.push(item.clone());
        events.push(self.showing("response.output_item.added", item.blank()));
        let about = self.about();
        let delta = ResponseEvent { delta: Some(arguments.clone()), ..about.clone() };
        events.push(self.event("response.function_call_arguments.delta", delta));
        let done = ResponseEvent { name: Some(name), arguments: Some(arguments), ..about };
        events.push(self.event("response.function_call_arguments.done", done));
        events.push(self.showing("response.output_item.done", item));
        events
    }

    fn commit(&mut self, commit: Commit) -> Vec<Event> {
        let mut events = Vec::new();
        for passage in commit.passages {
            events.extend(match passage {
                Passage::Reasoning(text) => self.say(Voice::Reasoning, text),
                Passage::Content(text) => self.say(Voice::Message, text),
                Passage::Call(call) => self.call(call),
            });
        }
        events
    }

    /// Ends the answer; where it calls nothing it holds a message, if only an empty one.
    fn finish(&mut self, usage: Usage) -> Vec<Event> {
        let incomplete = self.finish == Finish::Length;
        let status = if incomplete { "incomplete" } else { "completed" };
        let mut events = Vec::new();
        if self.answer.output.iter().all(|item| matches!(item, OutputItem::Reasoning { .. })) {
            events.extend(self.close_text(status));
            events.extend(self.open_text(Voice::Message));
        }
        events.extend(self.close_text(status));
        self.answer.status = status;
        self.answer.incomplete_details = incomplete.then_some(IncompleteDetails { reason: "max_output_tokens" });
        self.answer.usage = Some(ResponseUsage {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: usage.prompt_tokens_details,
            output_tokens: usage.completion_tokens,
            output_tokens_details: usage.completion_tokens_details,
            total_tokens: usage.total_tokens,
            diffusion: usage.diffusion,
        });
        events.push(self.state(if incomplete { "response.incomplete" } else { "response.completed" }));
        events
    }
}

impl StreamDialect for Writer {
    fn open(&mut self) -> Vec<Event> {
        vec![self.state("response.created"), self.state("response.in_progress")]
    }

    fn beat(&mut self, _: usize, beat: Beat) -> Vec<Event> {
        match beat {
            Beat::Progress(frame) => {
                let event = ResponseEvent { diffusion: Some(frame), ..ResponseEvent::default() };
                vec![self.event("canvasd.diffusion.progress", event)]
            }
            Beat::Commit(commit) => self.commit(commit),
            Beat::Finished(finish, _) => {
                self.finish = finish;
                Vec::new()
            }
            Beat::Failed(error) => self.fail(&error),
        }
    }

    fn close(&mut self, usage: Usage) -> Vec<Event> {
        self.finish(usage)
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Event> {
        /// The documented event, and the envelope beside it: some SDKs raise for the one, some for the other.
        #[derive(Serialize)]
        struct Failure {
            r#type: &'static str,
            code: Option<String>,
            message: String,
            param: Option<String>,
            sequence_number: u64,
            error: ErrorObject,
        }
        let error = error.body().error;
        let failure = Failure {
            r#type: "error",
            code: error.code.clone(),
            message: error.message.clone(),
            param: error.param.clone(),
            sequence_number: self.sequence,
            error,
        };
        vec![sse::named("error", &failure)]
    }
}
