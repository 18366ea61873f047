//! Files: the one file map, exact reads at an offset, and replacement that is whole or not at all.
//!
//! Large texts are mapped, because a splitter looks ahead without a bound, and so are shards on file systems of this
//! machine ([`Map::of_local`]). All else is read call by call, so a file that shrinks or a disk that fails ends in an
//! [`Error::Io`].

mod atomic;
mod early;
#[cfg(test)]
pub(crate) mod fault;
#[cfg(test)]
mod proofs;
#[cfg(test)]
pub(crate) mod sweep;
#[cfg(not(test))]
mod system;

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Error, Result};
pub use atomic::AtomicFile;
#[cfg(test)]
use fault as system;
pub(crate) use system::{inherit, on};

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
        Self::of_file(&file, path)
    }

    /// The bytes of `file`, which nobody may change or truncate until the map is dropped; `None` unless it lies on a
    /// file system of this machine.
    ///
    /// A mapped page that cannot be read kills the process. A network gives reason for that far more often than a disk.
    pub fn of_local(file: &File, path: &Path) -> Result<Option<Self>> {
        is_local(file).then(|| Self::of_file(file, path)).transpose()
    }

    fn of_file(file: &File, path: &Path) -> Result<Self> {
        // SAFETY: the map is private to this module, read-only and lent as one shared slice of the mapped length, so
        // every access is bounds-checked; that nobody changes the file meanwhile is this function's contract.
        let map = unsafe { memmap2::Mmap::map(file) }.map_err(Error::io("map", path))?;
        Ok(Self(Bytes::Mapped(map)))
    }

    /// The same bytes, read into memory.
    pub fn read(path: &Path) -> Result<Self> {
        let (file, len) = open_regular(path)?;
        Self::read_from(&file, len, path)
    }

    fn read_from(file: &File, len: u64, path: &Path) -> Result<Self> {
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        system::on(file).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
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

/// Whether a file lies on a file system that is known to be of this machine.
#[cfg(target_os = "linux")]
fn is_local(file: &File) -> bool {
    const LOCAL: [u64; 9] = [
        0xEF53,      // ext2, ext3, ext4
        0x5846_5342, // xfs
        0x9123_683E, // btrfs
        0xCA45_1A4E, // bcachefs
        0xF2F5_2010, // f2fs
        0x2FC1_2FC1, // zfs
        0x0102_1994, // tmpfs
        0x794C_7630, // overlayfs
        0x7371_7368, // squashfs
    ];
    // The field's type and sign depend on the platform; the number has 32 bits.
    rustix::fs::fstatfs(file).is_ok_and(|fs| LOCAL.contains(&(fs.f_type as u64 & 0xFFFF_FFFF)))
}

#[cfg(not(target_os = "linux"))]
fn is_local(_: &File) -> bool {
    false
}

/// Opens a regular file for reading; returns it with its length.
pub fn open_regular(path: &Path) -> Result<(File, u64)> {
    // Looked at before it is opened: opening a pipe waits for somebody to write to it.
    let kind = fs::metadata(path).map_err(Error::io("open", path))?.file_type();
    if kind.is_dir() {
        return Err(Error::io("read", path)(ErrorKind::IsADirectory.into()));
    }
    if !kind.is_file() {
        let hint = format!("expected a regular file, got {}; hint: save it to a file first", path.display());
        return Err(Error::Argument(hint));
    }
    let file = system::open(path).map_err(Error::io("open", path))?;
    let metadata = file.metadata().map_err(Error::io("read the metadata of", path))?;
    Ok((file, metadata.len()))
}

/// Fills `out` from `offset` on; a file that ends before is an error.
pub fn read_exact_at(file: &File, offset: u64, out: &mut [u8], path: &Path) -> Result<()> {
    system::on(file).read_exact_at(out, offset).map_err(Error::io("read", path))
}

/// The first `limit` bytes of the file at `path`; `None` when there is no file.
pub(crate) fn read_at_most(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match open_regular(path) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
        end => end?.0,
    };
    let mut bytes = Vec::new();
    system::on(&file).take(limit).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    Ok(Some(bytes))
}

/// Creates the folder `path` and those above it, durably.
pub fn create_dir(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if !parent(path).exists() {
        create_dir(parent(path))?;
    }
    match system::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {} // another process was faster
        end => end.map_err(Error::io("create", path))?,
    }
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
    match system::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        end => end.map_err(Error::io("remove", path)).and_then(|()| sync_dir(parent(path))),
    }
}

/// Removes the folder at `path` with all that is in it, durably; one that is not there is fine.
pub fn remove_dir(path: &Path) -> Result<()> {
    if !path.is_dir() {
        return Ok(());
    }
    for entry in system::list(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        // A link to a folder is a name like any other: what it leads to stays.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_dir(&entry.path())?;
        } else {
            system::remove_file(&entry.path()).map_err(Error::io("remove", entry.path()))?;
        }
    }
    system::remove_dir(path).map_err(Error::io("remove", path))?;
    sync_dir(parent(path))
}

/// Removes temporary files in `dir` whose writers died.
pub fn remove_stale(dir: &Path) -> Result<()> {
    for entry in system::list(dir).map_err(Error::io("list", dir))? {
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
        let file = system::create(&path, false).map_err(Error::io("create", &path))?;
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
    system::sync_dir(dir).map_err(Error::io("sync", dir))
}

/// The folder of `path`.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::atomic::EARLY;
    use super::fault::Fault;
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
        for (name, old) in [("file", Some(&b"old"[..])), ("new/folder/file", None)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(name);
            let start = || {
                let _ = fs::remove_dir_all(dir.path().join("new"));
                if let Some(old) = old {
                    fs::write(&path, old).unwrap();
                }
            };
            let n = sweep::each_change(
                &sweep::WRITE_FAULTS,
                start,
                || write_atomic(&path, b"the new one"),
                |is_written, what| match fs::read(&path).ok().as_deref() {
                    Some(b"the new one") => {}
                    now => assert!(now == old && !is_written, "{what}"),
                },
            );
            assert!(n >= 5, "create, write, sync, rename, sync: {n}");
            write_atomic(&path, b"the new one").unwrap();
            assert_eq!(names(parent(&path)), ["file"], "leftovers of the killed writers are gone");
        }
    }

    #[test]
    fn a_long_file_that_is_synced_on_the_way_holds_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let part: Vec<u8> = (0..=EARLY / 4).map(|i| (i * 31 % 251) as u8).collect();
        let write = || {
            let mut file = AtomicFile::create(&path).unwrap();
            for _ in 0..9 {
                file.write(&part).unwrap();
            }
            file.rewrite_start(b"start").unwrap();
            file.commit().unwrap();
        };
        let ((), n_changes, _) = fault::measured(write);
        let n_early = n_changes - 14; // beside create, ten writes, sync, rename and sync
        assert!((1..=2).contains(&n_early), "{n_early}: the second is one of its own if the first has begun");
        let mut expected = part.repeat(9);
        expected[..5].copy_from_slice(b"start");
        assert!(fs::read(&path).unwrap() == expected);
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(&expected).unwrap();
        drop(file);
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn a_sync_on_the_way_that_fails_leaves_the_old_file_and_no_other() {
        let dir = sweep::temporary_dir();
        let path = dir.path().join("file");
        let long = vec![7; EARLY as usize];
        let n = sweep::each_change(
            &[Fault::Error(fault::EIO), Fault::Error(fault::ENOSPC), Fault::Kill, Fault::PowerCut(None)],
            || write_atomic(&path, b"old").unwrap(),
            || write_atomic(&path, &long),
            |is_written, what| {
                let now = fs::read(&path).unwrap();
                assert!(now == long || (now == b"old" && !is_written), "{what}");
                assert!(names(dir.path()) == ["file"] || !what.starts_with("Error"), "{what}");
            },
        );
        assert_eq!(n, 6, "create, write, sync on the way, sync, rename, sync");
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
