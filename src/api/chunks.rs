//! How chat and completions write answers down: whole, or in the chunks of a stream. What they share is here; they differ
//! in what a choice looks like, and decide nothing else.

use axum::Json;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use uuid::Uuid;

use super::error::ApiError;
use super::order::{Delivery, UsageChunk};
use super::pieces;
use super::pump::{Answer, Beat, Commit, Finish, Pump};
use super::sse::{self, StreamDialect};
use super::state::{AppState, unix_seconds};
use super::wire::answer::{Answers, Chunk, Head};
use super::wire::progress::ProgressFrame;
use super::wire::usage::Usage;

/// Most tokens, alternatives among them, of an answer that is written down where its connection is served: where each is
/// spelled, that takes a thousandth of a second.
const MOST_SPELLED: usize = 8_192;

/// What a choice looks like.
pub(crate) trait ChunkDialect: Send + 'static {
    /// A choice, whole.
    type Choice: Serialize + Send + 'static;
    /// What a chunk adds to a choice.
    type Piece: Serialize;
    /// Begins the answer's id.
    const PREFIX: &'static str;
    /// `object` of a whole answer.
    const WHOLE: &'static str;
    /// `object` of a chunk.
    const CHUNK: &'static str;
    /// `service_tier` of a whole answer, where it has one.
    const TIER: Option<&'static str>;

    /// The whole choices that are given out, of all that were made.
    fn choices(&mut self, answers: Vec<Answer>) -> Vec<Self::Choice>;
    /// What comes before anything has happened.
    fn open(&mut self) -> Vec<Self::Piece>;
    /// What a commit adds.
    fn commit(&mut self, index: usize, commit: Commit) -> Vec<Self::Piece>;
    /// A piece that adds no text: beside progress, or to say how the choice ended.
    fn silent(&self, index: usize, finish: Option<Finish>) -> Self::Piece;
}

/// Answers as the request wants it.
pub(crate) async fn answer<D: ChunkDialect>(
    state: &AppState,
    pump: Pump,
    delivery: Delivery,
    mut dialect: D,
) -> Result<Response, ApiError> {
    let head = Head {
        id: format!("{}{}", D::PREFIX, Uuid::now_v7().simple()),
        object: D::WHOLE,
        created: unix_seconds(),
        model: state.card().id.clone(),
        system_fingerprint: state.fingerprint().to_owned(),
    };
    match delivery {
        Delivery::Whole => {
            let (answers, usage) = pump.whole().await?;
            let tokens = answers.iter().flat_map(|answer| &answer.tokens);
            let spelled: usize = tokens.map(|said| 1 + said.token.top.len()).sum();
            let answers = Answers { head, choices: dialect.choices(answers), usage, service_tier: D::TIER };
            if spelled <= MOST_SPELLED {
                return Ok(Json(answers).into_response());
            }
            Ok(pieces::respond(state.clone(), answers))
        }
        Delivery::Stream { usage, .. } => {
            let writer = Writer { head: Head { object: D::CHUNK, ..head }, usage, dialect };
            Ok(sse::respond(pump, writer, state.settings().keep_alive))
        }
    }
}

/// Writes chunks.
struct Writer<D> {
    head: Head,
    usage: UsageChunk,
    dialect: D,
}

impl<D: ChunkDialect> Writer<D> {
    fn chunk(&self, choices: Vec<D::Piece>) -> Chunk<D::Piece> {
        let usage = (self.usage == UsageChunk::Wanted).then_some(None);
        Chunk { head: self.head.clone(), choices, usage, diffusion: None }
    }

    /// One chunk per piece.
    fn chunks(&self, pieces: Vec<D::Piece>) -> Vec<Event> {
        pieces.into_iter().map(|piece| sse::data(&self.chunk(vec![piece]))).collect()
    }

    fn progress(&self, frame: ProgressFrame) -> Event {
        let piece = self.dialect.silent(frame.choice, None);
        sse::data(&Chunk { diffusion: Some(frame), ..self.chunk(vec![piece]) })
    }
}

impl<D: ChunkDialect> StreamDialect for Writer<D> {
    fn open(&mut self) -> Vec<Event> {
        let pieces = self.dialect.open();
        self.chunks(pieces)
    }

    fn beat(&mut self, index: usize, beat: Beat) -> Vec<Event> {
        let pieces = match beat {
            Beat::Progress(frame) => return vec![self.progress(frame)],
            Beat::Failed(error) => return self.fail(&error),
            Beat::Commit(commit) => self.dialect.commit(index, commit),
            Beat::Finished(finish, _) => vec![self.dialect.silent(index, Some(finish))],
        };
        self.chunks(pieces)
    }

    fn close(&mut self, usage: Usage) -> Vec<Event> {
        let mut events = Vec::new();
        if self.usage == UsageChunk::Wanted {
            events.push(sse::data(&Chunk { usage: Some(Some(usage)), ..self.chunk(Vec::new()) }));
        }
        events.push(sse::done());
        events
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Event> {
        vec![sse::data(&error.body())]
    }
}
