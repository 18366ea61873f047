//! Bytes of a long file go to the disk while more of them are made, so that the sync at its end has little left to do.

use std::io::Result;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

/// A thread that syncs when it is told to.
#[derive(Debug)]
pub(super) struct Early {
    wake: SyncSender<()>,
    thread: JoinHandle<Result<()>>,
}

impl Early {
    /// Starts the thread; none where the system has no more, for a sync at the end is enough.
    pub(super) fn start(mut sync: impl FnMut() -> Result<()> + Send + 'static) -> Option<Self> {
        let (wake, woken) = sync_channel(1);
        let thread = Builder::new().spawn(move || woken.iter().try_for_each(|()| sync())).ok()?;
        Some(Self { wake, thread })
    }

    /// Asks for a sync, unless one is waiting already.
    pub(super) fn wake(&self) {
        let _ = self.wake.try_send(());
    }

    /// Ends the thread. The system tells of bytes that it could not write once: who asks first must pass it on.
    pub(super) fn end(self) -> Result<()> {
        drop(self.wake);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn what_was_asked_for_is_synced_and_an_error_is_passed_on() {
        let n = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&n);
        let early = Early::start(move || {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let early = early.unwrap();
        for _ in 0..1000 {
            early.wake();
        }
        early.end().unwrap();
        assert!((1..=1000).contains(&n.load(Ordering::SeqCst)));
        let early = Early::start(|| Err(std::io::Error::from_raw_os_error(5))).unwrap();
        early.wake();
        early.wake(); // the thread may have ended
        assert_eq!(early.end().unwrap_err().raw_os_error(), Some(5));
    }
}
