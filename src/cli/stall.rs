//! A stream whose other end has to read: one that takes nothing for too long breaks.
//!
//! That nothing can be written does not say that nothing is read: a system calls a socket writable only when a good part of
//! what it holds has left. So a write that waits is tried again now and then, whatever the system says; it takes even a little.
//!
//! And the client's system tells that something was read only when all has been that it had put into one piece, which on one
//! machine can be 128 KiB. So pieces are small.

use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// Most bytes that travel together: what most networks carry in one packet.
pub const PIECE: usize = 1460;

/// How often a write that waits is tried again before its reader's patience is over.
const TRIES: u32 = 4;

/// What can be asked to take a few bytes although it has not called itself writable.
pub trait Offer {
    /// Writes as much as fits at once; [`ErrorKind::WouldBlock`] where that is nothing.
    fn offer(&self, bytes: &[u8]) -> Result<usize>;
}

impl Offer for TcpStream {
    #[cfg(unix)]
    fn offer(&self, bytes: &[u8]) -> Result<usize> {
        // Past the runtime, which asks the system only after the system has told of room. The socket never blocks.
        Ok(rustix::io::retry_on_intr(|| rustix::io::write(self, bytes))?)
    }

    #[cfg(not(unix))]
    fn offer(&self, bytes: &[u8]) -> Result<usize> {
        self.try_write(bytes)
    }
}

/// The stream, and how long its reader may take nothing. A stream that has nothing to write is never stalled.
pub struct Guarded<S> {
    stream: S,
    patience: Duration,
    waiting: Option<Waiting>,
    stalled: bool,
}

/// A write that waits: until when, and how many tries are left then.
struct Waiting {
    until: Pin<Box<Sleep>>,
    tries: u32,
}

impl<S: Offer> Guarded<S> {
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

    /// What a write of `bytes` came to, or the error that takes its place when it has waited long enough.
    fn judge(&mut self, cx: &mut Context<'_>, written: Poll<Result<usize>>, bytes: &[u8]) -> Poll<Result<usize>> {
        // However little was taken: whoever reads slowly lives.
        let written = match written {
            Poll::Pending => ready!(self.wait(cx, bytes)),
            Poll::Ready(written) => written,
        };
        self.waiting = None;
        Poll::Ready(written)
    }

    fn wait(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let part = self.patience / TRIES;
        let soon = || Box::pin(tokio::time::sleep(part));
        let waiting = self.waiting.get_or_insert_with(|| Waiting { until: soon(), tries: TRIES });
        loop {
            ready!(waiting.until.as_mut().poll(cx));
            match self.stream.offer(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                taken => return Poll::Ready(taken),
            }
            waiting.tries -= 1;
            if waiting.tries == 0 {
                self.stalled = true;
                return Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the client reads nothing")));
            }
            waiting.until = soon();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Offer + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let bytes = &bytes[..bytes.len().min(PIECE)];
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, written, bytes)
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::{Instant, sleep};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Says at once when there is room, as sockets do not.
    impl Offer for DuplexStream {
        fn offer(&self, _: &[u8]) -> Result<usize> {
            Err(ErrorKind::WouldBlock.into())
        }
    }

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
