//! What an index costs in each order, and a sample in a mixture: `cargo bench -p gptrs-core --bench order`.
//!
//! Prints a JSON line for each: nanoseconds an index, median and range of 301 runs of 20,000, and a checksum. Runs are
//! shorter than a time slice, so that the lowest is undisturbed on a busy machine.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark may panic and prints")]

use std::sync::Arc;
use std::time::Instant;

use gptrs_core::mixture::{Mixture, Source, Stage};
use gptrs_core::order::{BlockShape, Cursor, Order, OrderKind};

const N: u64 = 20_000;
const REPEATS: usize = 301;
/// Places all over the rows, for look-ups without order.
const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;

fn main() {
    let block = OrderKind::Block(BlockShape::default());
    for rows in [1_000_003, 1_000_000_007, (1 << 38) + 1] {
        for kind in [OrderKind::Feistel, block] {
            let order = Order::new(kind, rows, 1, 0);
            let mut cursor = Cursor::new(order.clone());
            report(&format!("{}, {rows} rows, one after another", order.name()), |i| cursor.at(i % rows));
            report(&format!("{}, {rows} rows, anywhere", order.name()), |i| order.at(i.wrapping_mul(STRIDE) % rows));
        }
    }
    for weights in [&[7.0, 2.0, 1.0, 3.0][..], &[1.0; 64], &[1.0, 0.0001]] {
        let mixture = mixture(weights);
        let of = format!("mixture-v1, {} sources, smallest share {}", weights.len(), weights[weights.len() - 1]);
        let mut walk = mixture.walk(1 << 40).unwrap();
        report(&format!("{of}, one after another"), |_| walk.next().unwrap().unwrap().index);
        report(&format!("{of}, anywhere"), |i| mixture.at(i.wrapping_mul(STRIDE) >> 20).unwrap().index);
    }
}

fn stages(weights: &[f64]) -> [Stage; 1] {
    [Stage { samples: None, weights: weights.to_vec() }]
}

fn mixture(weights: &[f64]) -> Arc<Mixture> {
    let source = |i| Source { name: format!("source {i}"), n_rows: 1_000_000_007, max_epochs: Some(1 << 30) };
    let sources = (0..weights.len()).map(source).collect();
    Arc::new(Mixture::new(sources, &stages(weights), 1).unwrap())
}

fn report(what: &str, mut index: impl FnMut(u64) -> u64) {
    let mut sum = 0;
    let mut ns: Vec<f64> = (0..REPEATS as u64)
        .map(|run| {
            let started = Instant::now();
            (run * N..(run + 1) * N).for_each(|i| sum ^= index(i));
            started.elapsed().as_secs_f64() * 1e9 / N as f64
        })
        .collect();
    ns.sort_by(f64::total_cmp);
    let (median, low, high) = (ns[REPEATS / 2], ns[0], ns[REPEATS - 1]);
    println!(
        "{{\"bench\": \"{what}\", \"ns\": {median:.1}, \"low\": {low:.1}, \"high\": {high:.1}, \"checksum\": {sum}}}"
    );
}
