//! Server-sent events: one driver for the three dialects of streams.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Display;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;

use super::edge::Asker;
use super::error::ApiError;
use super::pump::{Beat, Pump};
use super::wire::usage::Usage;

/// Tells proxies of the nginx kind to pass events on at once.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How a kind of stream writes down what happens. Adds nothing and withholds nothing: all decisions fall in the pump.
pub(crate) trait StreamDialect: Send + 'static {
    /// Before anything has happened.
    fn open(&mut self) -> Vec<Event>;
    /// Something happened to a choice; never [`Beat::Failed`].
    fn beat(&mut self, choice: usize, beat: Beat) -> Vec<Event>;
    /// All choices are complete.
    fn close(&mut self, usage: Usage) -> Vec<Event>;
    /// The request broke off; nothing follows.
    fn fail(&mut self, error: &ApiError) -> Vec<Event>;
}

/// An event whose data is `value` as JSON on one line.
pub(crate) fn data(value: &impl Serialize) -> Event {
    Event::default().data(json(value))
}

/// The same as an event with a name, which stands first: there are clients that read line by line.
pub(crate) fn named(name: &str, value: &impl Serialize) -> Event {
    Event::default().event(name).data(json(value))
}

/// A value of the wire as JSON on one line.
pub(crate) fn json(value: &impl Serialize) -> String {
    // The wire types hold nothing that JSON cannot: serialization fails on maps with keys other than text only.
    serde_json::to_string(value).expect("wire types are JSON")
}

/// The event that ends a stream of chunks.
pub(crate) fn done() -> Event {
    Event::default().data("[DONE]")
}

/// A stream on its way.
struct Driver<D> {
    /// There until all has been said.
    pump: Option<Pump>,
    dialect: D,
    ready: VecDeque<Event>,
    asker: Asker,
}

impl<D> Driver<D> {
    /// Lets go of the jobs, for a reason that the log is told: the line of the head has said 200.
    fn break_off(&mut self, why: &dyn Display) {
        if self.pump.take().is_some() {
            tracing::warn!(id = self.asker.id(), "the stream broke off: {why}");
        }
    }
}

impl<D> Drop for Driver<D> {
    fn drop(&mut self) {
        self.break_off(&"its connection ended");
    }
}

/// Answers with the pump's beats in that dialect. Dropping the response's body drops the pump, which cancels the jobs.
pub(crate) fn respond(pump: Pump, dialect: impl StreamDialect, keep_alive: Duration) -> Response {
    let asker = Asker::default();
    let mut driver = Driver { pump: Some(pump), dialect, ready: VecDeque::new(), asker: asker.clone() };
    driver.ready.extend(driver.dialect.open());
    let events = stream::unfold(driver, |mut driver| async move {
        loop {
            if let Some(event) = driver.ready.pop_front() {
                return Some((Ok::<_, Infallible>(event), driver));
            }
            let pump = driver.pump.as_mut()?;
            let events = match pump.next().await {
                Some((_, Beat::Failed(error))) => {
                    driver.break_off(&error);
                    driver.dialect.fail(&error)
                }
                Some((choice, beat)) => driver.dialect.beat(choice, beat),
                None => {
                    let usage = pump.usage();
                    driver.pump = None;
                    driver.dialect.close(usage)
                }
            };
            driver.ready.extend(events);
        }
    });
    let keep_alive = KeepAlive::new().interval(keep_alive).text("keep-alive");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    response.extensions_mut().insert(asker);
    response.headers_mut().insert(NO_BUFFERING, HeaderValue::from_static("no"));
    response
}
