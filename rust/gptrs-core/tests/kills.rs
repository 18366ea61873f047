//! Processes that prepare a dataset are killed at random moments; what is started again ends in the same bytes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fixtures/corpus.rs"]
mod corpus;
#[path = "fixtures/random.rs"]
mod random;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use gptrs_core::io::FolderLock;
use gptrs_core::prepare::{PrepareOptions, prepare};
use gptrs_core::{Control, Error};
use random::Random;

const CHILD: &str = "GPTRS_TEST_KILLS";

/// Not a test of its own: the process that the tests kill. Its words are the folder, then threads and segment bytes, or
/// nothing for a process that holds the folder's lock.
#[test]
fn child() {
    let Ok(words) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = words.split('\n').collect();
    let dir = Path::new(words[0]);
    if let [_, threads, segment_bytes] = words[..] {
        let (threads, segment_bytes) = (threads.parse().unwrap(), segment_bytes.parse().unwrap());
        run(dir, &dir.join("out"), threads, segment_bytes).unwrap();
        return;
    }
    let _lock = FolderLock::take(&dir.join("out")).unwrap();
    fs::write(dir.join("ready"), "").unwrap();
    sleep(Duration::from_secs(60));
}

fn start(words: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child"]).env(CHILD, words).stdout(Stdio::null()).stderr(Stdio::null());
    child.spawn().unwrap()
}

fn run(dir: &Path, out: &Path, threads: usize, segment_bytes: usize) -> gptrs_core::Result<()> {
    let paths = ["a.txt", "b.jsonl", "c.txt"].map(|name| dir.join("text").join(name));
    let options = PrepareOptions { threads, segment_bytes, ..corpus::options(3000) };
    prepare(&paths, &corpus::tokenizer(), out, &options, &Control::new()).map(drop)
}

/// The files of a dataset but the lock, which is empty.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| !path.ends_with(".lock"));
    files.map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap())).collect()
}

/// Kills, with any threads and segments each time, and a last run that may end.
fn schedules(n_schedules: u64) {
    let dir = corpus::temporary_dir();
    corpus::write_corpus(&dir.path().join("text"), 12_000);
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    run(dir.path(), &whole, 2, 1 << 20).unwrap();
    let whole = content(&whole);
    assert!(whole.len() > 30, "{} files", whole.len());
    let (mut n_killed, mut n_resumed) = (0, 0);
    for schedule in 0..n_schedules {
        let mut random = Random(schedule);
        let mut n_done = 0;
        let _ = fs::remove_dir_all(&out);
        for _ in 0..=random.below(6) {
            let threads = [1, 2, 3, 8][random.below(4)];
            let segment_bytes = [256, 4096, 50_000, 1 << 20][random.below(4)];
            let mut child = start(&format!("{}\n{threads}\n{segment_bytes}", dir.path().display()));
            // Waiting for a shard makes the moments as many on a slow machine as on a fast one.
            n_done += random.below(whole.len() - n_done);
            let shard = out.join(format!("shard-{n_done:05}.gts"));
            while !shard.exists() && child.try_wait().unwrap().is_none() {
                sleep(Duration::from_micros(100));
            }
            sleep(Duration::from_micros(random.below(3000) as u64));
            child.kill().unwrap();
            n_killed += u64::from(!child.wait().unwrap().success());
            let is_half = out.join("prepare.json").exists() && out.join("shard-00000.gts").exists();
            n_resumed += u64::from(is_half);
        }
        run(dir.path(), &out, [1, 2, 3, 8][random.below(4)], 256 << random.below(12)).unwrap();
        assert!(content(&out) == whole, "schedule {schedule}");
    }
    assert!(n_killed >= n_schedules && n_resumed * 3 > n_schedules, "{n_killed} kills, {n_resumed} in the middle");
}

#[test]
fn a_killed_process_is_continued_to_the_same_bytes_in_20_schedules() {
    schedules(20);
}

#[test]
#[ignore = "minutes"]
fn a_killed_process_is_continued_to_the_same_bytes_in_1000_schedules() {
    schedules(1000);
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_segments() {
    let dir = corpus::temporary_dir();
    corpus::write_corpus(&dir.path().join("text"), 3000);
    let mut first = None;
    for threads in [1, 2, 3, 8, 16] {
        for segment_bytes in [7, 256, 4096, 50_000, 1 << 20] {
            let out = dir.path().join(format!("{threads}-{segment_bytes}"));
            run(dir.path(), &out, threads, segment_bytes).unwrap();
            let content = content(&out);
            assert!(content == *first.get_or_insert(content.clone()), "{threads} threads, {segment_bytes} bytes");
        }
    }
}

#[test]
fn a_second_process_on_the_folder_is_refused_at_once_and_a_dead_one_does_not_block() {
    let dir = corpus::temporary_dir();
    corpus::write_corpus(&dir.path().join("text"), 300);
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let mut other = start(&dir.path().display().to_string());
    while !dir.path().join("ready").exists() {
        assert!(other.try_wait().unwrap().is_none());
        sleep(Duration::from_millis(1));
    }
    let begin = Instant::now();
    let end = run(dir.path(), &out, 1, 1000);
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(30), "the lock is not waited for");
    let message = match end {
        Err(error @ Error::Locked { .. }) => error.to_string(),
        end => panic!("{end:?}"),
    };
    assert!(message.contains(out.to_str().unwrap()) && message.contains("another process"), "{message}");
    run(dir.path(), &out, 1, 1000).unwrap();
}
