//! Files: the one file map, exact reads at an offset, and replacement that is whole or not at all.
//!
//! Shards are read with `pread`, so a file that shrinks or a disk that fails ends in an [`Error::Io`]; only large
//! texts are mapped, because a splitter looks ahead without a bound.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Files shorter than this are read, not mapped: a map costs two system calls and a page fault for each 4 KiB.
const MAP_FROM: u64 = 64 << 10;

/// The ending of a temporary file's name.
const TEMPORARY: &str = ".gptrs-tmp";

/// A file's bytes, mapped when it is large.
#[derive(Debug)]
pub struct Map(Bytes);

#[derive(Debug)]
enum Bytes {
    Mapped(memmap2::Mmap),
    Read(Vec<u8>),
}

impl Map {
    /// The bytes of the file at `path`, which nobody may change or truncate until the map is dropped.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, len) = open_regular(path)?;
        if len < MAP_FROM {
            return Self::read_from(&file, len, path);
        }
        // SAFETY: the map is private to this module, read-only and lent as one shared slice of the mapped length, so
        // every access is bounds-checked; that nobody changes the file meanwhile is this function's contract.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Ok(Self(Bytes::Mapped(map)))
    }

    /// The same bytes, read into memory.
    pub fn read(path: &Path) -> Result<Self> {
        let (file, len) = open_regular(path)?;
        Self::read_from(&file, len, path)
    }

    fn read_from(mut file: &File, len: u64, path: &Path) -> Result<Self> {
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        Ok(Self(Bytes::Read(bytes)))
    }

    /// All bytes of the file.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(map) => map,
            Bytes::Read(bytes) => bytes,
        }
    }
}

/// Opens a regular file for reading; returns it with its length.
pub fn open_regular(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let metadata = file.metadata().map_err(Error::io("read the metadata of", path))?;
    if metadata.is_dir() {
        return Err(Error::io("read", path)(ErrorKind::IsADirectory.into()));
    }
    if !metadata.is_file() {
        let hint = format!("expected a regular file, got {}; hint: save it to a file first", path.display());
        return Err(Error::Argument(hint));
    }
    Ok((file, metadata.len()))
}

/// Fills `out` from `offset` on; a file that ends before is an error.
pub fn read_exact_at(file: &File, offset: u64, out: &mut [u8], path: &Path) -> Result<()> {
    file.read_exact_at(out, offset).map_err(Error::io("read", path))
}

/// Creates the folder `path` and those above it, durably.
pub fn create_dir(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(Error::io("create", path))?;
    sync_dir(parent(path))
}

/// Writes `bytes` as the file at `path`: afterwards it holds all of them, or on an error what it held before.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.commit()
}

/// Removes the file at `path` durably; a file that is not there is fine.
pub fn remove(path: &Path) -> Result<()> {
    fault::step("remove", path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        end => end.map_err(Error::io("remove", path)).and_then(|()| sync_dir(parent(path))),
    }
}

/// Removes the folder at `path` with all that is in it, durably; one that is not there is fine.
pub fn remove_dir(path: &Path) -> Result<()> {
    fault::step("remove", path)?;
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        end => end.map_err(Error::io("remove", path)).and_then(|()| sync_dir(parent(path))),
    }
}

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
            fault::step("create", path)?;
            let mut temporary = std::ffi::OsString::from(".");
            temporary.push(name);
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            temporary.push(format!(".{}-{serial}{TEMPORARY}", std::process::id()));
            let temporary = parent(path).join(temporary);
            let file = match OpenOptions::new().read(true).write(true).create_new(true).open(&temporary) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                end => end.map_err(Error::io("create", &temporary))?,
            };
            if lock_if_possible(&file) {
                return Ok(Self { file, path: path.to_owned(), temporary, is_committed: false });
            }
        }
    }

    /// The path that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        fault::step("write", &self.path)?;
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// Overwrites the file's first bytes; later writes append again.
    pub fn rewrite_start(&mut self, bytes: &[u8]) -> Result<()> {
        fault::step("write", &self.path)?;
        let mut write = || {
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(bytes)?;
            self.file.seek(SeekFrom::End(0))
        };
        write().map(|_| ()).map_err(Error::io("write", &self.path))
    }

    /// Makes the bytes durable and gives the file its name, replacing an older one.
    pub fn commit(mut self) -> Result<()> {
        fault::step("sync", &self.path)?;
        self.file.sync_all().map_err(Error::io("sync", &self.path))?;
        fault::step("rename", &self.path)?;
        fs::rename(&self.temporary, &self.path).map_err(Error::io("rename a temporary file to", &self.path))?;
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
        if !self.is_committed && !fault::is_dead() {
            // The error that led here matters more; a file that stays is removed by the next writer as stale.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Locks a new file; false when a cleaner took it for a leftover before it was locked.
fn lock_if_possible(file: &File) -> bool {
    // A file system without locks keeps leftovers (see `remove_stale`), so nobody takes the file away there.
    file.lock().is_err() || file.metadata().map_or(true, |m| m.nlink() > 0)
}

/// Removes temporary files in `dir` whose writers died.
pub fn remove_stale(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let name = entry.file_name();
        let is_temporary =
            name.as_encoded_bytes().starts_with(b".") && name.as_encoded_bytes().ends_with(TEMPORARY.as_bytes());
        if !is_temporary {
            continue;
        }
        // A writer that is alive holds the lock, or has just renamed its file away: both leave nothing to do.
        let Ok(file) = File::open(entry.path()) else { continue };
        if file.try_lock().is_ok() {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// The exclusive right to write in a folder, held until it is dropped or the process dies.
#[derive(Debug)]
pub struct FolderLock(File);

impl FolderLock {
    /// Takes the lock of the folder `dir` (its empty file `.lock`) or fails at once when another writer holds it.
    pub fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(".lock");
        let open = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = open.map_err(Error::io("create", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path: dir.to_owned() }),
            Err(TryLockError::Error(source)) => Err(Error::io("lock", path)(source)),
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing alone would leave the lock with a process that was forked meanwhile; closing follows if this fails.
        let _ = self.0.unlock();
    }
}

/// Makes the names in a folder durable.
fn sync_dir(dir: &Path) -> Result<()> {
    fault::step("sync", dir)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

/// The folder of `path`.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Nothing outside the tests, which make the n-th write, sync, rename or removal of a thread fail.
#[cfg(not(test))]
mod fault {
    use super::{Path, Result};

    #[inline]
    #[allow(clippy::unnecessary_wraps, reason = "the tests' twin fails")]
    pub(super) fn step(_action: &'static str, _path: &Path) -> Result<()> {
        Ok(())
    }

    pub(super) fn is_dead() -> bool {
        false
    }
}

/// Makes the n-th file operation of the calling thread fail, as a full disk or as the death of the process.
#[cfg(test)]
pub(crate) mod fault {
    use std::cell::Cell;

    use super::{Error, Path, Result};

    thread_local! {
        static PLAN: Cell<Plan> = const { Cell::new(Plan { left: u64::MAX, kills: false, is_dead: false }) };
    }

    #[derive(Clone, Copy)]
    struct Plan {
        left: u64,
        kills: bool,
        is_dead: bool,
    }

    /// Runs `work` with operation `n` (from 0) failing; true when it was reached. A killed process cleans nothing up.
    pub(crate) fn at<R>(n: u64, kills: bool, work: impl FnOnce() -> R) -> (R, bool) {
        PLAN.set(Plan { left: n, kills, is_dead: false });
        let end = work();
        let reached = PLAN.get().left == u64::MAX;
        PLAN.set(Plan { left: u64::MAX, kills: false, is_dead: false });
        (end, reached)
    }

    pub(super) fn step(action: &'static str, path: &Path) -> Result<()> {
        let mut plan = PLAN.get();
        let is_hit = plan.left == 0;
        plan.left = if is_hit { u64::MAX } else { plan.left - u64::from(plan.left != u64::MAX) };
        plan.is_dead |= is_hit && plan.kills;
        PLAN.set(plan);
        if is_hit || plan.is_dead {
            return Err(Error::io(action, path)(std::io::ErrorKind::StorageFull.into()));
        }
        Ok(())
    }

    pub(super) fn is_dead() -> bool {
        PLAN.get().is_dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_map_holds_the_bytes_that_a_read_gives() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0, 1, MAP_FROM as usize - 1, MAP_FROM as usize, 300_001] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            let path = dir.path().join("text");
            fs::write(&path, &bytes).unwrap();
            let map = Map::open(&path).unwrap();
            assert_eq!(matches!(map.0, Bytes::Mapped(_)), len as u64 >= MAP_FROM);
            assert_eq!(map.as_bytes(), bytes);
            assert_eq!(Map::read(&path).unwrap().as_bytes(), bytes);
        }
    }

    #[test]
    fn what_is_no_file_is_refused_by_path() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("absent"), PathBuf::from("/dev/null")] {
            let message = Map::open(&path).unwrap_err().to_string();
            assert!(message.contains(path.to_str().unwrap()), "{message}");
        }
    }

    #[test]
    fn a_written_file_replaces_the_old_one_and_leaves_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/folder/file");
        write_atomic(&path, b"old").unwrap();
        write_atomic(&path, b"the new one").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"the new one");
        assert_eq!(names(path.parent().unwrap()), ["file"]);
    }

    #[test]
    fn any_failing_operation_leaves_the_old_file_or_the_new_one_whole() {
        for kills in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("file");
            fs::write(&path, b"old").unwrap();
            let mut n = 0;
            loop {
                let (end, reached) = fault::at(n, kills, || write_atomic(&path, b"new"));
                if !reached {
                    end.unwrap();
                    break;
                }
                assert!(matches!(end, Err(Error::Io { .. })), "operation {n}");
                let now = fs::read(&path).unwrap();
                assert!(now == b"old" || now == b"new", "operation {n}");
                fs::write(&path, b"old").unwrap();
                n += 1;
            }
            assert!(n >= 5, "create, write, sync, rename, sync: {n}");
            assert_eq!(names(dir.path()), ["file"], "leftovers of the killed writers are gone");
        }
    }

    #[test]
    fn a_living_writers_temporary_file_is_not_stale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut first = AtomicFile::create(&path).unwrap();
        first.write(b"first").unwrap();
        write_atomic(&path, b"second").unwrap();
        first.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn a_folder_has_one_writer_and_a_dead_one_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(dir.path()).unwrap();
        assert!(matches!(FolderLock::take(dir.path()), Err(Error::Locked { .. })));
        drop(lock);
        FolderLock::take(dir.path()).unwrap();
    }
}
