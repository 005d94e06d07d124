//! A stream whose other end has to read: one on which nothing can be written for too long breaks.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// The stream, and how long its reader may take nothing. A stream that has nothing to write is never stalled.
pub struct Guarded<S> {
    stream: S,
    patience: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    stalled: bool,
}

impl<S> Guarded<S> {
    pub fn new(stream: S, patience: Duration) -> Guarded<S> {
        Guarded { stream, patience, waiting: None, stalled: false }
    }

    /// Whether it broke because nobody read.
    pub fn stalled(&self) -> bool {
        self.stalled
    }

    pub fn into_inner(self) -> S {
        self.stream
    }

    /// What a write came to, or the error that takes its place when it has waited long enough.
    fn judge(&mut self, cx: &mut Context<'_>, written: Poll<Result<usize>>) -> Poll<Result<usize>> {
        if written.is_ready() {
            // However little was taken: whoever reads slowly lives.
            self.waiting = None;
            return written;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(waiting.as_mut().poll(cx));
        self.stalled = true;
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::{Instant, sleep};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_breaks_the_stream() {
        let (ours, _theirs) = duplex(4);
        let mut ours = Guarded::new(ours, PATIENCE);
        let begun = Instant::now();
        let error = ours.write_all(&[0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(ours.stalled() && (PATIENCE..PATIENCE * 2).contains(&begun.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_little_at_a_time_gets_everything() {
        let (ours, mut theirs) = duplex(4);
        let mut ours = Guarded::new(ours, PATIENCE);
        let reader = tokio::spawn(async move {
            let mut read = Vec::new();
            while let Ok(byte) = theirs.read_u8().await {
                read.push(byte);
                sleep(PATIENCE - Duration::from_secs(1)).await;
            }
            read
        });
        ours.write_all(b"ten bytes.").await.unwrap();
        drop(ours);
        assert_eq!(reader.await.unwrap(), b"ten bytes.");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_no_stall() {
        let (ours, mut theirs) = duplex(4);
        let mut ours = Guarded::new(ours, PATIENCE);
        for _ in 0..3 {
            ours.write_all(b"full").await.unwrap();
            sleep(PATIENCE * 10).await;
            theirs.read_exact(&mut [0; 4]).await.unwrap();
        }
        assert!(!ours.stalled());
    }
}
