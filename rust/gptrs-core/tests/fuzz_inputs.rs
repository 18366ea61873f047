//! Every input that the fuzz targets keep, through the same functions: `make fuzz` looks for new ones.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic and says which input did")]

#[path = "../../fuzz/inputs.rs"]
mod inputs;

use std::fs;
use std::panic;
use std::path::Path;

/// Runs `target` on its committed inputs and on short inputs that every target should have met.
fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut paths: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 3, "expected inputs in {}", folder.display());
    for path in paths {
        let data = fs::read(&path).unwrap();
        if let Err(panic) = panic::catch_unwind(|| target(&data)) {
            eprintln!("the input is {}", path.display());
            panic::resume_unwind(panic);
        }
    }
    for data in [&b""[..], b"\0", b"{}", b"\xFF\xFE", b"{\"model\": {}}"] {
        target(data);
    }
}

#[test]
fn tokenizer_json() {
    replay("tokenizer_json", inputs::tokenizer_json);
}

#[test]
fn tiktoken() {
    replay("tiktoken", inputs::tiktoken);
}

#[test]
fn merges() {
    replay("merges", inputs::merges);
}

#[test]
fn corpus() {
    replay("corpus", inputs::corpus);
}

#[test]
fn parquet() {
    replay("parquet", inputs::parquet);
}

#[test]
fn shard() {
    replay("shard", inputs::shard);
}

#[test]
fn index() {
    replay("index", inputs::index);
}

#[test]
fn foreign() {
    replay("foreign", inputs::foreign);
}

#[test]
fn plan() {
    replay("plan", inputs::plan);
}

#[test]
fn count_file() {
    replay("count_file", inputs::count_file);
}

#[test]
fn manifest() {
    replay("manifest", inputs::manifest);
}

#[test]
fn encode() {
    replay("encode", inputs::encode);
}
