//! How fast one core plans packed rows, in how much memory, and with how much padding:
//! `cargo bench -p gptrs-core --bench pack [-- DATASET]`.
//!
//! Without a dataset: 10 million documents of lognormal length in four sparse shards. Prints a JSON line for each
//! `seq_len`, measured in a process of its own: million documents a second of CPU time (median and range of 7 runs),
//! bytes a document of the plan and of what the process grew by while it was planned, and padding. The slow way, all
//! rows looked at for each piece, plans the first documents, and both plans must have as many rows.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark may panic and prints")]

#[allow(dead_code, reason = "these shards are sparse")]
#[path = "../tests/fixtures/dataset.rs"]
mod dataset;
#[allow(dead_code, reason = "of its numbers only the whole ones are asked for")]
#[path = "../tests/fixtures/random.rs"]
mod random;
#[path = "../tests/fixtures/sparse_documents.rs"]
mod sparse_documents;

use std::fs;
use std::path::Path;
use std::process::Command;

use gptrs_core::Control;
use gptrs_core::dataset::Dataset;
use gptrs_core::pack::{Blank, IGNORED, Marks, Plan};
use random::Random;

const N_DOCUMENTS: usize = 10_000_000;
const N_SHARDS: usize = 4;
const N_NAIVE: usize = 20_000;
/// Planned in each run, the same ones again if need be: the clock of the processor's time may be as coarse as 4 ms.
const MIN_DOCUMENTS: u64 = 5_000_000;
const N_FAST: u32 = 1000;
const REPEATS: usize = 7;

/// Tokens of rows that are filled for one figure.
const FILLED: usize = 1 << 27;
const VOCAB_SIZE: u64 = 50_257;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if let [path, seq_len] = args.as_slice() {
        return measure(&Dataset::open(Path::new(path)).unwrap(), seq_len.parse().unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = args.first().map_or(dir.path(), Path::new);
    if args.is_empty() {
        write(dir.path(), N_DOCUMENTS, N_SHARDS);
    }
    for seq_len in ["2048", "8192", "512"] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        assert!(child.arg(path).arg(seq_len).status().unwrap().success());
    }
    compare(2048);
}

/// Lengths with a median of 200 tokens and a mean of 410, one of 36 above 2048.
fn lens() -> impl Iterator<Item = u64> {
    let mut random = Random(1);
    let mut unit = move || (random.next() >> 11) as f64 / (1u64 << 53) as f64;
    std::iter::repeat_with(move || {
        let normal = (-2.0 * (1.0 - unit()).ln()).sqrt() * (std::f64::consts::TAU * unit()).cos();
        (200.0 * (1.2 * normal).exp()).ceil() as u64
    })
}

fn write(dir: &Path, n: usize, n_shards: usize) -> Dataset {
    let spec = dataset::spec(VOCAB_SIZE);
    let mut lens = lens();
    let shard = |i| sparse_documents::write_sparse_shard(dir, spec, i, lens.by_ref().take(n / n_shards));
    dataset::finish(dir, spec, (0..n_shards).map(shard).collect(), 1 << 40)
}

fn measure(dataset: &Dataset, seq_len: usize) {
    let control = Control::new();
    let before = reset_peak();
    let plan = Plan::bestfit(dataset, seq_len, 1, &control).unwrap();
    let grown = peak().saturating_sub(before);
    let n_plans = MIN_DOCUMENTS.div_ceil(dataset.n_documents());
    let mut rates: Vec<f64> = Vec::new();
    for _ in 0..REPEATS {
        let started = cpu_seconds();
        for _ in 0..n_plans {
            assert_eq!(Plan::bestfit(dataset, seq_len, 1, &control).unwrap(), plan);
        }
        rates.push((n_plans * dataset.n_documents()) as f64 / (cpu_seconds() - started) / 1e6);
    }
    rates.sort_by(f64::total_cmp);
    let (n, n_rows) = (dataset.n_documents() as f64, plan.n_rows());
    let padding = 100.0 * plan.padding() as f64 / (n_rows * seq_len as u64) as f64;
    println!(
        "{{\"bench\": \"plan, {n} documents, {} tokens, seq_len {seq_len}\", \"million_per_s\": {:.1}, \"low\": {:.1}, \
         \"high\": {:.1}, \"plan_bytes_per_document\": {:.2}, \"grown_bytes_per_document\": {:.2}, \"rows\": {n_rows}, \
         \"max_pieces\": {}, \"padding_percent\": {padding:.5}}}",
        dataset.n_tokens(),
        rates[REPEATS / 2],
        rates[0],
        rates[REPEATS - 1],
        plan.memory() as f64 / n,
        grown as f64 / n,
        plan.max_pieces(),
    );
    fill(dataset, &plan);
}

/// Fills rows here and there, all tokens of them read once before.
fn fill(dataset: &Dataset, plan: &Plan) {
    let seq_len = plan.seq_len();
    let (mut tokens, mut targets, mut cu_seqlens) =
        (vec![0i64; seq_len], vec![0i64; seq_len], vec![0i32; plan.max_pieces() + 2]);
    let blank = Blank { token: 0, target: IGNORED };
    let mut random = Random(5);
    let rows: Vec<u64> = (0..2000).map(|_| random.next() % plan.n_rows()).collect();
    // The clock of a thread moves every few milliseconds.
    let n_rows = FILLED / seq_len;
    let mut rates: Vec<f64> = Vec::new();
    for _ in 0..=REPEATS {
        let started = cpu_seconds();
        for &row in rows.iter().cycle().take(n_rows) {
            let mut marks = Marks { cu_seqlens: &mut cu_seqlens, ..Marks::default() };
            plan.fill_row(dataset, row, blank, &mut tokens, &mut targets, &mut marks).unwrap();
        }
        rates.push((n_rows * seq_len) as f64 / (cpu_seconds() - started) / 1e6);
    }
    rates.remove(0);
    rates.sort_by(f64::total_cmp);
    let [median, low, high] = [rates[REPEATS / 2], rates[0], rates[REPEATS - 1]];
    println!(
        "{{\"bench\": \"fill rows of {seq_len}, tokens\", \"million_per_s\": {median:.1}, \"low\": {low:.1}, \
         \"high\": {high:.1}}}"
    );
}

/// Plans the same documents by looking at all rows for each piece.
fn compare(seq_len: u64) {
    let dir = tempfile::tempdir().unwrap();
    let dataset = write(dir.path(), N_NAIVE, 1);
    let started = cpu_seconds();
    let plans = (0..N_FAST).map(|_| Plan::bestfit(&dataset, seq_len as usize, 1, &Control::new()).unwrap());
    let plan = plans.last().unwrap();
    let fast = (cpu_seconds() - started) / f64::from(N_FAST);
    let started = cpu_seconds();
    let mut n_full = 0;
    let mut rests: Vec<u64> = Vec::new();
    for len in lens().take(N_NAIVE) {
        n_full += (len - 1) / seq_len;
        rests.push((len - 1) % seq_len + 1);
    }
    rests.sort_unstable_by(|a, b| b.cmp(a));
    let mut rooms: Vec<u64> = Vec::new();
    for len in rests {
        match rooms.iter_mut().filter(|room| **room >= len).min() {
            Some(room) => *room -= len,
            None => rooms.push(seq_len - len),
        }
    }
    let slow = cpu_seconds() - started;
    assert_eq!(n_full + rooms.len() as u64, plan.n_rows());
    let [fast, slow] = [fast, slow].map(|seconds| N_NAIVE as f64 / seconds / 1e6);
    println!(
        "{{\"bench\": \"{N_NAIVE} documents, seq_len {seq_len}, all rows looked at\", \
         \"million_per_s\": {slow:.3}, \"bestfit\": {fast:.1}}}"
    );
}

/// What the calling thread has used, whatever else the machine does.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Makes the resident memory of now the peak, and returns it.
fn reset_peak() -> u64 {
    fs::write("/proc/self/clear_refs", "5").unwrap();
    peak()
}

/// The most resident memory since the last reset, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}
