//! The Python module `gptrs._core`: arguments in, one core call, errors out.
//!
//! [`call`] is how a call crosses over, [`text`] converts arguments; the rest are thin classes over the core's.
#![allow(clippy::needless_pass_by_value)] // arguments come from Python as owned values

mod call;
mod dataset;
mod formats;
mod host;
mod loader;
mod text;
mod tokenizer;
mod trainer;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use crate::dataset::{Dataset, import_tokens, merge_tasks, prepare, prepare_task};
    #[pymodule_export]
    use crate::host::{HostMemory, HostRing};
    #[pymodule_export]
    use crate::loader::{Loader, Plan, Ring, max_documents};
    #[pymodule_export]
    use crate::tokenizer::{StreamDecoder, Tokenizer};
    #[pymodule_export]
    use crate::trainer::{Trainer, count, count_pattern, measure, merge_counts};

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "Python's name")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
