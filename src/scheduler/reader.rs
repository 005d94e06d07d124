//! The way from the engine back to a request: committed text, never lost and never reordered, and the newest draft.
//!
//! Text waits in a queue whose length the engine watches: a choice whose reader is behind pauses at its next canvas, so
//! the queue is bounded without the engine ever waiting. It may be behind for as long as it likes: whether anybody is still
//! there to read is known to whoever holds the connection, and drops the reader. Drafts have one place each; a new one
//! replaces the old.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{mpsc, watch};

use super::front::Bell;
use super::job::{Committed, Draft, Event, Finished, JobError};

/// What both ends share.
#[derive(Debug)]
struct Link {
    closed: AtomicBool,
    /// Canvases committed and not yet taken by the reader.
    unread: AtomicUsize,
    /// `unread` at which the choice pauses.
    most: usize,
    bell: Arc<Bell>,
}

/// Makes the two ends for one choice.
pub(super) fn pair(most: usize, bell: Arc<Bell>) -> (Outlet, Reader) {
    let (sender, events) = mpsc::unbounded_channel();
    let (draft, drafts) = watch::channel(None);
    let link = Arc::new(Link { closed: AtomicBool::new(false), unread: AtomicUsize::new(0), most, bell });
    let outlet = Outlet { events: sender, drafts: draft, link: link.clone(), ended: false };
    (outlet, Reader { events, drafts, link })
}

/// Receives what happens to one choice. Dropping it cancels the choice at the next pass, wherever it is.
#[derive(Debug)]
pub struct Reader {
    events: mpsc::UnboundedReceiver<Event>,
    drafts: watch::Receiver<Option<Draft>>,
    link: Arc<Link>,
}

impl Reader {
    /// The next event; `None` after `Finished` or `Failed`. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        self.took(event)
    }

    /// The next event if it is already there.
    pub fn try_next(&mut self) -> Option<Event> {
        let event = self.events.try_recv().ok();
        self.took(event)
    }

    /// The newest draft; a new one replaces one not yet seen. The sender is gone once the choice has ended.
    pub fn drafts(&self) -> watch::Receiver<Option<Draft>> {
        self.drafts.clone()
    }

    fn took(&self, event: Option<Event>) -> Option<Event> {
        if let Some(Event::Committed(_)) = event
            && self.link.unread.fetch_sub(1, Ordering::Relaxed) == self.link.most
        {
            self.link.bell.ring();
        }
        event
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.link.closed.store(true, Ordering::Release);
        self.link.bell.cancelled();
    }
}

/// The engine's end. Dropped without an end, it tells the reader that the engine stopped.
#[derive(Debug)]
pub(super) struct Outlet {
    events: mpsc::UnboundedSender<Event>,
    drafts: watch::Sender<Option<Draft>>,
    link: Arc<Link>,
    ended: bool,
}

impl Outlet {
    pub(super) fn commit(&self, committed: Committed) {
        self.link.unread.fetch_add(1, Ordering::Relaxed);
        // A reader that is gone is a cancellation, which is looked at before each pass.
        let _ = self.events.send(Event::Committed(committed));
    }

    pub(super) fn finish(&mut self, finished: Finished) {
        self.end(Event::Finished(finished));
    }

    pub(super) fn fail(&mut self, error: JobError) {
        self.end(Event::Failed(error));
    }

    /// The reader is gone.
    pub(super) fn abandon(&mut self) {
        self.ended = true;
    }

    fn end(&mut self, event: Event) {
        self.ended = true;
        let _ = self.events.send(event);
    }

    pub(super) fn draft(&self, draft: Draft) {
        self.drafts.send_replace(Some(draft));
    }

    pub(super) fn is_closed(&self) -> bool {
        self.link.closed.load(Ordering::Acquire)
    }

    /// Whether the reader is so far behind that the choice must pause.
    pub(super) fn is_full(&self) -> bool {
        self.link.unread.load(Ordering::Relaxed) >= self.link.most
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        if !self.ended {
            self.fail(JobError::Stopped);
        }
    }
}
