//! The system calls of the data path, any of which can be made to fail on the calling thread and those that inherit it.
//!
//! The twin of `system` in this crate's own tests. Operations are counted one by one: those that change files, or those
//! that read them. A power cut is undone from a record of what was not synced: a file goes back to the bytes that its
//! last sync saw, and in each folder the names created, renamed or removed since its last sync go back, latest first.
//! The retries of interrupted and short reads and writes are std's own code. Its other calls retry `EINTR` themselves,
//! or the system never gives it, so there it does nothing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, ReadDir};
use std::io::{self, Error, ErrorKind, Read, Result, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

#[path = "../../tests/fixtures/random.rs"]
pub(crate) mod random;
use random::Random;

pub(crate) const EINTR: i32 = 4;
pub(crate) const EIO: i32 = 5;
pub(crate) const ENOSPC: i32 = 28;
pub(crate) const EDQUOT: i32 = if cfg!(target_os = "linux") { 122 } else { 69 };

/// What happens at an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The system refuses it with this error.
    Error(i32),
    /// Half of the bytes are written or read, then the next operation ends with this error; 0 for none.
    Short(i32),
    /// A read finds the end of the file.
    End,
    /// The process dies, in the middle of a write, and cleans nothing up.
    Kill,
    /// As `Kill`, and what was not synced is lost: all of it, or by a seed a part of it. At the latest behind the work.
    PowerCut(Option<u64>),
}

impl Fault {
    /// Whether work goes on as though nothing was: std tries again.
    pub(crate) fn is_harmless(self) -> bool {
        matches!(self, Self::Error(EINTR) | Self::Short(0))
    }
}

#[derive(Default)]
struct Disk {
    fault: Option<Fault>,
    /// Operations before the fault; `None` behind it.
    left: Option<u64>,
    counts_reads: bool,
    is_reached: bool,
    is_dead: bool,
    /// Changes of files, and bytes that were asked for.
    n_changes: u64,
    n_bytes: u64,
    files: Vec<Written>,
    names: Vec<Name>,
}

/// A file and what a power cut leaves of it.
struct Written {
    file: File,
    synced: Vec<u8>,
}

/// A change of a folder that a power cut undoes.
struct Name {
    dir: PathBuf,
    change: Change,
}

enum Change {
    Created(PathBuf),
    CreatedDir(PathBuf),
    /// With the bytes of the file that it replaced.
    Renamed(PathBuf, PathBuf, Option<Vec<u8>>),
    Removed(PathBuf, Vec<u8>),
    RemovedDir(PathBuf),
}

thread_local! {
    static DISK: RefCell<Arc<Mutex<Disk>>> = RefCell::default();
}

fn with_disk<R>(f: impl FnOnce(&mut Disk) -> R) -> R {
    DISK.with_borrow(|disk| f(&mut disk.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// `work` for a thread that works for this one: its operations are counted and fail as this one's do.
pub(crate) fn inherit<R, F: FnOnce() -> R>(work: F) -> impl FnOnce() -> R {
    let disk = DISK.with_borrow(Arc::clone);
    move || {
        DISK.set(disk);
        work()
    }
}

/// Runs `work`, of which nothing fails; how many changes of files it made, and how many bytes it asked to read.
pub(crate) fn measured<R>(work: impl FnOnce() -> R) -> (R, u64, u64) {
    let (end, disk) = run(Disk::default(), work);
    (end, disk.n_changes, disk.n_bytes)
}

/// Runs `work` with `fault` at its change `n` of files, counted from 0; true when there was one.
pub(crate) fn at<R>(fault: Fault, n: u64, work: impl FnOnce() -> R) -> (R, bool) {
    let (end, disk) = run(Disk { fault: Some(fault), left: Some(n), ..Disk::default() }, work);
    (end, disk.is_reached)
}

/// Runs `work` with `fault` at its operation `n` that reads, counted from 0; true when there was one.
pub(crate) fn at_read<R>(fault: Fault, n: u64, work: impl FnOnce() -> R) -> (R, bool) {
    let (end, disk) = run(Disk { fault: Some(fault), left: Some(n), counts_reads: true, ..Disk::default() }, work);
    (end, disk.is_reached)
}

/// Runs `work` on `disk`, whose threads must have ended with it.
fn run<R>(disk: Disk, work: impl FnOnce() -> R) -> (R, Disk) {
    DISK.set(Arc::new(Mutex::new(disk)));
    let end = work();
    let mut disk = with_disk(std::mem::take);
    if let Some(Fault::PowerCut(seed)) = disk.fault {
        disk.cut_power(seed).unwrap();
    }
    (end, disk)
}

/// How an operation ends that does not fail.
#[derive(Clone, Copy)]
enum End {
    Whole,
    Half,
    Nothing,
}

fn operation(is_read: bool) -> Result<End> {
    with_disk(|disk| {
        if disk.is_dead {
            return Err(Error::from_raw_os_error(EIO));
        }
        disk.n_changes += u64::from(!is_read);
        match &mut disk.left {
            Some(left) if is_read == disk.counts_reads && *left > 0 => *left -= 1,
            Some(_) if is_read == disk.counts_reads => return disk.hit(),
            _ => {}
        }
        Ok(End::Whole)
    })
}

/// An operation that has no half.
fn step(is_read: bool) -> Result<()> {
    match operation(is_read) {
        Err(error) if error.kind() != ErrorKind::Interrupted => Err(error),
        Ok(End::Half) if is_dead() => Err(Error::from_raw_os_error(EIO)),
        _ => Ok(()),
    }
}

impl Disk {
    fn hit(&mut self) -> Result<End> {
        (self.left, self.is_reached) = (None, true);
        match self.fault {
            Some(Fault::Error(number)) => return Err(Error::from_raw_os_error(number)),
            Some(Fault::Short(0)) => {}
            Some(Fault::Short(number)) => (self.fault, self.left) = (Some(Fault::Error(number)), Some(0)),
            Some(Fault::Kill | Fault::PowerCut(_)) => self.is_dead = true,
            Some(Fault::End) => return Ok(End::Nothing),
            None => return Ok(End::Whole),
        }
        Ok(End::Half)
    }

    fn is_recording(&self) -> bool {
        matches!(self.fault, Some(Fault::PowerCut(_)))
    }

    fn durable(&self, path: &Path) -> Option<Vec<u8>> {
        let id = id(&fs::metadata(path).ok()?);
        let written = self.files.iter().find(|written| written.file.metadata().is_ok_and(|m| self::id(&m) == id));
        written.map(|written| written.synced.clone()).or_else(|| fs::read(path).ok())
    }

    /// Undoes what was not synced: everything, or from a place in each folder's changes on and of some files.
    fn cut_power(&mut self, seed: Option<u64>) -> Result<()> {
        let mut random = seed.map(Random);
        let mut below = |n: usize| random.as_mut().map_or(0, |random| random.below(n));
        for Written { mut file, mut synced } in std::mem::take(&mut self.files) {
            let mut now = Vec::new();
            file.read_to_end(&mut now)?;
            match below(3) {
                0 => {}
                1 => synced = now,
                _ => synced.resize(now.len().max(synced.len()), 0), // its length came to the disk, its bytes did not
            }
            file.set_len(0)?;
            file.write_all_at(&synced, 0)?;
        }
        let mut n_kept: BTreeMap<PathBuf, usize> = BTreeMap::new(); // the first changes of each folder, which stay
        for name in &self.names {
            *n_kept.entry(name.dir.clone()).or_default() += 1;
        }
        for n in n_kept.values_mut() {
            *n = below(*n + 1);
        }
        let mut is_undone = |name: &Name| match n_kept.get_mut(&name.dir) {
            Some(n) if *n > 0 => {
                *n -= 1;
                false
            }
            _ => true,
        };
        let mut undone = std::mem::take(&mut self.names);
        undone.retain(|name| is_undone(name));
        for name in undone.into_iter().rev() {
            match name.change.undo() {
                Err(error) if error.kind() == ErrorKind::NotFound => {} // a temporary file that was removed since
                end => end?,
            }
        }
        Ok(())
    }
}

impl Change {
    fn undo(self) -> Result<()> {
        match self {
            Self::Created(path) => fs::remove_file(path),
            Self::CreatedDir(path) => fs::remove_dir_all(path),
            Self::Removed(path, bytes) => fs::write(path, bytes),
            Self::RemovedDir(path) => fs::create_dir(path),
            Self::Renamed(from, to, replaced) => {
                fs::rename(&to, from)?;
                replaced.map_or(Ok(()), |bytes| fs::write(to, bytes))
            }
        }
    }
}

fn id(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// What a power cut leaves of the file at `path`, if there is one.
fn durable(path: &Path) -> Option<Vec<u8>> {
    with_disk(|disk| if disk.is_recording() { disk.durable(path) } else { None })
}

/// Records a change of the names in the folder of `path`.
fn record(path: &Path, change: Change) {
    with_disk(|disk| {
        if disk.is_recording() {
            disk.names.push(Name { dir: super::parent(path).to_owned(), change });
        }
    });
}

/// Bytes of a file, read and written as the plan says.
pub(crate) struct OnFile<'f>(&'f File);

pub(crate) fn on(file: &File) -> OnFile<'_> {
    OnFile(file)
}

impl Read for OnFile<'_> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let n = room(out)?;
        self.0.read(&mut out[..n])
    }
}

impl Write for OnFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let n = part(bytes.len(), operation(false)?);
        self.0.write(&bytes[..n])
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl FileExt for OnFile<'_> {
    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        let n = room(out)?;
        self.0.read_at(&mut out[..n], offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<usize> {
        Err(io::Error::from(ErrorKind::Unsupported))
    }
}

/// How many bytes to read.
fn room(out: &[u8]) -> Result<usize> {
    let n = part(out.len(), operation(true)?);
    with_disk(|disk| disk.n_bytes += n as u64);
    Ok(n)
}

fn part(len: usize, end: End) -> usize {
    match end {
        End::Whole => len,
        End::Half => len.div_ceil(2),
        End::Nothing => 0,
    }
}

pub(super) fn open(path: &Path) -> Result<File> {
    step(true)?;
    File::open(path)
}

pub(super) fn create(path: &Path, is_new: bool) -> Result<File> {
    step(false)?;
    let was_there = path.exists();
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).create_new(is_new).open(path)?;
    if !was_there {
        record(path, Change::Created(path.to_owned()));
        // Opened again: a copy of the handle would share the file's lock.
        let again = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(file), // another thread took it for a leftover
            end => end?,
        };
        with_disk(|disk| {
            if disk.is_recording() {
                disk.files.push(Written { file: again, synced: Vec::new() });
            }
        });
    }
    Ok(file)
}

pub(super) fn create_dir(path: &Path) -> Result<()> {
    step(false)?;
    fs::create_dir(path)?;
    record(path, Change::CreatedDir(path.to_owned()));
    Ok(())
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    step(false)?;
    let replaced = durable(to);
    fs::rename(from, to)?;
    record(to, Change::Renamed(from.to_owned(), to.to_owned(), replaced));
    Ok(())
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    step(false)?;
    let removed = durable(path);
    fs::remove_file(path)?;
    if let Some(bytes) = removed {
        record(path, Change::Removed(path.to_owned(), bytes));
    }
    Ok(())
}

/// Removes an empty folder.
pub(super) fn remove_dir(path: &Path) -> Result<()> {
    step(false)?;
    fs::remove_dir(path)?;
    record(path, Change::RemovedDir(path.to_owned()));
    Ok(())
}

pub(super) fn list(dir: &Path) -> Result<ReadDir> {
    step(true)?;
    fs::read_dir(dir)
}

pub(super) fn sync(file: &File) -> Result<()> {
    sync_by(file, File::sync_all)
}

pub(super) fn sync_data(file: &File) -> Result<()> {
    sync_by(file, File::sync_data)
}

fn sync_by(file: &File, sync: fn(&File) -> Result<()>) -> Result<()> {
    step(false)?;
    with_disk(|disk| {
        // Another thread may write to the file meanwhile: what is there before is what is synced.
        let id = id(&file.metadata()?);
        for written in &mut disk.files {
            let metadata = written.file.metadata()?;
            if self::id(&metadata) == id {
                written.synced = vec![0; metadata.len() as usize];
                written.file.read_exact_at(&mut written.synced, 0)?;
            }
        }
        sync(file)
    })
}

pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    step(false)?;
    File::open(dir)?.sync_all()?;
    with_disk(|disk| disk.names.retain(|name| name.dir != dir));
    Ok(())
}

pub(super) fn is_dead() -> bool {
    with_disk(|disk| disk.is_dead)
}
