//! A file that is there as a whole or not at all.

use std::fs::{self, File};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::early::Early;
use super::{TEMPORARY, create_dir, parent, remove_stale, sync_dir, system};
use crate::error::{Error, Result};

/// Bytes after which those of a file under way are sent to the disk.
pub(super) const EARLY: u64 = 8 << 20;

/// A file that appears under its name, whole and durable, at [`AtomicFile::commit`]; dropped before, it leaves nothing.
///
/// The bytes go to a locked temporary file in the same folder. The system frees the lock when the process dies, which
/// is how the leftover of a killed run is told from the file of a running one.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    path: PathBuf,
    temporary: PathBuf,
    is_committed: bool,
    /// Bytes written since the last time that a sync was asked for, and what does it, of a file that is long enough.
    n_waiting: u64,
    early: Option<Early>,
}

impl AtomicFile {
    /// Starts the file at `path`, creating folders as needed; leftovers of killed runs in its folder are removed.
    pub fn create(path: &Path) -> Result<Self> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let name = path.file_name().ok_or_else(|| {
            Error::Argument(format!("expected the path of a file, got {}; hint: add a file name", path.display()))
        })?;
        create_dir(parent(path))?;
        remove_stale(parent(path))?;
        loop {
            let mut temporary = std::ffi::OsString::from(".");
            temporary.push(name);
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            temporary.push(format!(".{}-{serial}{TEMPORARY}", std::process::id()));
            let temporary = parent(path).join(temporary);
            let file = match system::create(&temporary, true) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                end => end.map_err(Error::io("create", &temporary))?,
            };
            if lock_if_possible(&file) {
                let (path, is_committed) = (path.to_owned(), false);
                return Ok(Self { file, path, temporary, is_committed, n_waiting: 0, early: None });
            }
        }
    }

    /// The path that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        system::on(&self.file).write_all(bytes).map_err(Error::io("write", &self.path))?;
        self.n_waiting += bytes.len() as u64;
        if self.n_waiting >= EARLY {
            self.n_waiting = 0;
            self.sync_early();
        }
        Ok(())
    }

    fn sync_early(&mut self) {
        if self.early.is_none()
            && let Ok(file) = self.file.try_clone()
        {
            self.early = Early::start(move || system::sync_data(&file));
        }
        self.early.iter().for_each(Early::wake);
    }

    /// Overwrites the file's first bytes; later writes append again.
    pub fn rewrite_start(&mut self, bytes: &[u8]) -> Result<()> {
        let mut write = || {
            self.file.seek(SeekFrom::Start(0))?;
            system::on(&self.file).write_all(bytes)?;
            self.file.seek(SeekFrom::End(0))
        };
        write().map(|_| ()).map_err(Error::io("write", &self.path))
    }

    /// Makes the bytes durable and gives the file its name, replacing an older one.
    pub fn commit(mut self) -> Result<()> {
        let early = self.early.take().map_or(Ok(()), Early::end);
        early.map_err(Error::io("sync", &self.path))?;
        system::sync(&self.file).map_err(Error::io("sync", &self.path))?;
        let renamed = system::rename(&self.temporary, &self.path);
        renamed.map_err(Error::io("rename a temporary file to", &self.path))?;
        self.is_committed = true;
        sync_dir(parent(&self.path))
    }

    /// The bytes as an open file that never gets its name; the system removes it when it is closed.
    pub fn into_unnamed(self) -> Result<File> {
        self.file.try_clone().map_err(Error::io("reopen", &self.path))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        let _ = self.early.take().map(Early::end);
        if !self.is_committed && !system::is_dead() {
            // The error that led here matters more; a file that stays is removed by the next writer as stale.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Locks a new file; false when a cleaner took it for a leftover before it was locked.
fn lock_if_possible(file: &File) -> bool {
    // A file system without locks keeps leftovers (see `remove_stale`), so nobody takes the file away there. A signal
    // ends the wait for a cleaner that holds the lock, and std does not wait again.
    while let Err(error) = file.lock() {
        if error.kind() != ErrorKind::Interrupted {
            return true;
        }
    }
    file.metadata().map_or(true, |m| m.nlink() > 0)
}
