//! Work under every fault at every one of its file operations, until it makes no more.

use std::path::Path;

use super::fault::{EDQUOT, EINTR, EIO, ENOSPC, Fault, at, at_read};
use crate::error::{Error, Result};

/// Every way in which an operation that changes files can end.
pub(crate) const WRITE_FAULTS: [Fault; 12] = [
    Fault::Error(ENOSPC),
    Fault::Error(EIO),
    Fault::Error(EDQUOT),
    Fault::Error(EINTR),
    Fault::Short(0),
    Fault::Short(ENOSPC),
    Fault::Short(EIO),
    Fault::Kill,
    Fault::PowerCut(None),
    Fault::PowerCut(Some(1)),
    Fault::PowerCut(Some(2)),
    Fault::PowerCut(Some(3)),
];

/// Every way in which an operation that reads can end.
pub(crate) const READ_FAULTS: [Fault; 5] =
    [Fault::Error(EIO), Fault::Error(EINTR), Fault::Short(0), Fault::Short(EIO), Fault::End];

/// A folder in memory where there is one: these tests sync thousands of files.
pub(crate) fn temporary_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Runs `work` with each of `faults` at each of its changes of files, each time after `start`; `check` sees what is left
/// and whether the work ended well. Returns the number of changes.
pub(crate) fn each_change(
    faults: &[Fault],
    mut start: impl FnMut(),
    mut work: impl FnMut() -> Result<()>,
    mut check: impl FnMut(bool, &str),
) -> u64 {
    let mut most = 0;
    for &fault in faults {
        for n in 0.. {
            start();
            let (end, is_reached) = at(fault, n, &mut work);
            let what = format!("{fault:?} at change {n}");
            match &end {
                Ok(()) => assert!(!is_reached || matches!(fault, Fault::Short(_)) || fault.is_harmless(), "{what}"),
                Err(Error::Io { .. }) => assert!(is_reached && !fault.is_harmless(), "{what}"),
                Err(other) => panic!("{what}: {other}"),
            }
            check(end.is_ok(), &what);
            most = most.max(n);
            if !is_reached {
                break;
            }
        }
    }
    most
}

/// Runs `work` with each of [`READ_FAULTS`] at each of its reads: it ends well or in an error that names `file`.
/// Returns the number of reads.
pub(crate) fn each_read(file: &str, mut work: impl FnMut() -> Result<()>) -> u64 {
    let mut most = 0;
    for fault in READ_FAULTS {
        for n in 0.. {
            let (end, is_reached) = at_read(fault, n, &mut work);
            let what = format!("{fault:?} at read {n}: {end:?}");
            match &end {
                Ok(()) => assert!(!is_reached || fault != Fault::Error(EIO), "{what}"),
                Err(error) => {
                    assert!(is_reached && !fault.is_harmless() && error.to_string().contains(file), "{what}");
                    let is_end = fault == Fault::End && matches!(error, Error::Format { .. });
                    assert!(matches!(error, Error::Io { .. }) || is_end, "{what}");
                }
            }
            most = most.max(n);
            if !is_reached {
                break;
            }
        }
    }
    most
}
