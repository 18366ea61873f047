#![no_main]

use std::sync::Once;

#[path = "../inputs.rs"]
#[allow(dead_code, reason = "each target calls one function")]
mod inputs;

static QUIET: Once = Once::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // libFuzzer's hook ends the process at any panic; those inside the parquet crate become errors.
    QUIET.call_once(|| drop(std::panic::take_hook()));
    inputs::parquet(data);
});
