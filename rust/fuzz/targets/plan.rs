#![no_main]

#[path = "../inputs.rs"]
#[allow(dead_code, reason = "each target calls one function")]
mod inputs;

libfuzzer_sys::fuzz_target!(|data: &[u8]| inputs::plan(data));
