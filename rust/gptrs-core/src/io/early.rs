//! Bytes of a long file go to the disk while more of them are made, so that the sync at its end has little left to do.

use std::io::Result;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use super::inherit;

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
        let thread = Builder::new().spawn(inherit(move || woken.iter().try_for_each(|()| sync()))).ok()?;
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
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn what_is_asked_for_during_a_sync_is_one_more_sync() {
        let ((starts, started), (go_on, goes_on)) = (channel(), channel::<()>());
        let early = Early::start(move || {
            starts.send(()).unwrap();
            let _ = goes_on.recv(); // waits until the test has dropped the other end
            Ok(())
        });
        let early = early.unwrap();
        early.wake();
        started.recv().unwrap();
        for _ in 0..1000 {
            early.wake();
        }
        drop(go_on);
        early.end().unwrap();
        assert_eq!(started.iter().count(), 1, "behind the first");
    }

    #[test]
    fn an_error_is_passed_on() {
        let early = Early::start(|| Err(std::io::Error::from_raw_os_error(5))).unwrap();
        early.wake();
        early.wake(); // the thread may have ended
        assert_eq!(early.end().unwrap_err().raw_os_error(), Some(5));
    }
}
