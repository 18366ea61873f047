//! How a call crosses from Python to the core: interruptible, without the GIL, and with errors Python knows.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use gptrs_core::{Control, Error, Result};
use pyo3::exceptions::{
    PyBlockingIOError, PyFileNotFoundError, PyIsADirectoryError, PyKeyboardInterrupt, PyMemoryError, PyOSError,
    PyRuntimeError, PyValueError,
};
use pyo3::prelude::*;

/// How long Ctrl-C and the progress callback wait for their turn.
pub const POLL: Duration = Duration::from_millis(50);

/// The Python exception of a core error; the only place where one becomes the other.
pub fn py_err(error: Error) -> PyErr {
    match error {
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        Error::Locked { .. } => PyBlockingIOError::new_err(error.to_string()),
        // OSError picks its subclass (FileNotFoundError, PermissionError, ...) by errno.
        Error::Io { ref source, .. } => match (source.raw_os_error(), source.kind()) {
            (Some(errno), kind) => PyOSError::new_err((errno, with_hint(&error.to_string(), kind))),
            (None, io::ErrorKind::NotFound) => PyFileNotFoundError::new_err(error.to_string()),
            (None, io::ErrorKind::IsADirectory) => PyIsADirectoryError::new_err(error.to_string()),
            (None, _) => PyOSError::new_err(error.to_string()),
        },
        Error::Memory { .. } => PyMemoryError::new_err(error.to_string()),
        other => PyValueError::new_err(other.to_string()),
    }
}

/// The system's reason, without its number, which is the exception's errno, and with the likely cure.
fn with_hint(message: &str, kind: io::ErrorKind) -> String {
    let message = message.rsplit_once(" (os error").map_or(message, |(reason, _)| reason);
    let hint = match kind {
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "check the permissions of the file and its folder",
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            "a file is where a folder is meant to be, check the path"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "free some space, then run the same command again"
        }
        _ => return message.to_owned(),
    };
    format!("{message}; hint: {hint}")
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    nibbles.filter_map(|nibble| char::from_digit(nibble.into(), 16)).collect()
}

/// `work` on this thread, with the GIL; for calls of a few microseconds.
pub fn quick<T>(work: impl FnOnce() -> Result<T>) -> PyResult<T> {
    settle(catch_unwind(AssertUnwindSafe(work)))
}

/// `work` on this thread, without the GIL; for calls too short to be interrupted.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    settle(py.detach(|| catch_unwind(AssertUnwindSafe(work))))
}

/// `work` on a thread of its own, while this one watches for signals and calls `progress(stage, done, total)`.
///
/// A signal handler that raises (Ctrl-C), or an exception of the callback, cancels the work; its exception is returned
/// after the work has ended, so nothing runs on behind the caller's back.
pub fn watched<T: Send>(
    py: Python<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(&Control) -> Result<T> + Send,
) -> PyResult<T> {
    let control = Control::new();
    let progress = progress.map(|callback| callback.clone().unbind());
    let (outcome, raised) = py.detach(|| {
        thread::scope(|scope| {
            let (send, receive) = sync_channel(1);
            let control = &control;
            scope.spawn(move || {
                // The receiver outlives this thread's work: the send cannot fail.
                let _ = send.send(catch_unwind(AssertUnwindSafe(|| work(control))));
            });
            let mut raised = None;
            loop {
                match receive.recv_timeout(POLL) {
                    Ok(outcome) => return (outcome, raised),
                    Err(RecvTimeoutError::Disconnected) => return (Ok(Err(Error::Interrupted)), raised),
                    Err(RecvTimeoutError::Timeout) if raised.is_some() => {}
                    Err(RecvTimeoutError::Timeout) => {
                        raised = Python::attach(|py| poll(py, control, progress.as_ref())).err();
                        if raised.is_some() {
                            control.cancel();
                        }
                    }
                }
            }
        })
    });
    match raised {
        Some(error) => Err(error),
        None => settle(outcome),
    }
}

/// Runs pending signal handlers and tells the callback where the work stands.
fn poll(py: Python<'_>, control: &Control, progress: Option<&Py<PyAny>>) -> PyResult<()> {
    py.check_signals()?;
    if let Some(callback) = progress {
        let now = control.progress();
        if !now.stage.is_empty() {
            callback.call1(py, (now.stage, now.done, now.total))?;
        }
    }
    Ok(())
}

/// A core result as Python's; a panic is our defect and becomes a `RuntimeError`, which `except Exception` catches.
fn settle<T>(outcome: thread::Result<Result<T>>) -> PyResult<T> {
    outcome.map_err(|panic| PyRuntimeError::new_err(panic_text(&*panic)))?.map_err(py_err)
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("internal error of gptrs, please report it: {}", text.unwrap_or("no message"))
}
