//! What is told of forks counts; a file of its own, for it counts in the whole process.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fixtures/dataset.rs"]
mod dataset;

use std::sync::Arc;

use gptrs_core::loader::{Loader, LoaderOptions, Prefetch, Rows};
use gptrs_core::order::OrderKind;
use gptrs_core::process;

#[test]
fn a_prefetcher_from_before_a_fork_that_was_told_is_refused_and_a_new_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let spec = dataset::spec(100);
    let entries = vec![dataset::write_shard(dir.path(), spec, 0, &(0..41).collect::<Vec<_>>())];
    let (rank, world_size, seed, order) = (0, 1, 1, OrderKind::Sequential);
    let options = LoaderOptions { seq_len: 4, global_batch: 2, micro_batch: 2, rank, world_size, seed, order };
    let loader = Loader::new(Arc::new(dataset::finish(dir.path(), spec, entries, 41)), options).unwrap();
    let start = || {
        let mut prefetch = Prefetch::new(loader.clone(), 0).unwrap();
        prefetch.submit(Rows::<u16>::new(&loader)).unwrap();
        assert_eq!(prefetch.next().unwrap().0, [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]);
        prefetch
    };
    let mut before = start();
    process::tells_of_forks();
    before.submit(Rows::new(&loader)).unwrap(); // made before anybody promised to tell, and in this process
    assert_eq!(before.next().unwrap().0[0], 8);
    process::forked();
    for error in [before.submit(Rows::new(&loader)).unwrap_err(), before.next().unwrap_err()] {
        assert!(error.to_string().contains("in the process that forked this one; hint: make a new loader here"));
    }
    start();
}
