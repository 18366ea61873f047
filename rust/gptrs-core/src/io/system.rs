//! The system calls of the data path, as they are; under the crate's own tests `fault` stands here.

use std::fs::{self, File, OpenOptions, ReadDir};
use std::io::Result;
use std::path::Path;

/// `work` for a thread that works for this one: as it is, outside the tests.
#[inline]
pub(crate) fn inherit<R, F: FnOnce() -> R>(work: F) -> F {
    work
}

/// What reads and writes the bytes of `file`.
#[inline]
pub(crate) fn on(file: &File) -> &File {
    file
}

#[inline]
pub(super) fn open(path: &Path) -> Result<File> {
    File::open(path)
}

/// Opens `path` for writing, as a new file only or whether it is there or not.
#[inline]
pub(super) fn create(path: &Path, is_new: bool) -> Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).create_new(is_new).open(path)
}

#[inline]
pub(super) fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir(path)
}

#[inline]
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to)
}

#[inline]
pub(super) fn remove_file(path: &Path) -> Result<()> {
    fs::remove_file(path)
}

/// Removes an empty folder.
#[inline]
pub(super) fn remove_dir(path: &Path) -> Result<()> {
    fs::remove_dir(path)
}

#[inline]
pub(super) fn list(dir: &Path) -> Result<ReadDir> {
    fs::read_dir(dir)
}

#[inline]
pub(super) fn sync(file: &File) -> Result<()> {
    file.sync_all()
}

/// Makes the bytes of a file durable, but not what else is known of it.
#[inline]
pub(super) fn sync_data(file: &File) -> Result<()> {
    file.sync_data()
}

#[inline]
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)?.sync_all()
}

/// Whether the process is to be taken for dead: never, outside the tests.
#[inline]
pub(super) fn is_dead() -> bool {
    false
}
