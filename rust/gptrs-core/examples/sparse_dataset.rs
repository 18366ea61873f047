//! Writes a dataset of zeros that takes no space, for `benches/bench_seek.py`: folder, shards, tokens of each.

use std::path::Path;
use std::process::ExitCode;

#[path = "../tests/fixtures/sparse.rs"]
mod sparse;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, n_shards, shard_tokens] = &arguments[..] else { return ExitCode::from(2) };
    let (Ok(n_shards), Ok(shard_tokens)) = (n_shards.parse(), shard_tokens.parse()) else { return ExitCode::from(2) };
    match sparse::write(Path::new(dir), n_shards, shard_tokens) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
