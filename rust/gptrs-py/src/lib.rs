//! The Python module `gptrs._core`: arguments in, one core call, errors out.
//!
//! [`call`] is how a call crosses over, [`text`] converts arguments; the rest are thin classes over the core's.
#![allow(clippy::needless_pass_by_value)] // arguments come from Python as owned values

mod attention;
mod call;
mod dataset;
mod experts;
mod formats;
mod gemm;
mod host;
mod loader;
mod text;
mod tokenizer;
mod trainer;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    #[pymodule_export]
    use crate::attention::{attend, attend_backward};
    #[pymodule_export]
    use crate::dataset::{Dataset, import_tokens, merge_tasks, prepare, prepare_task};
    #[pymodule_export]
    use crate::experts::{experts_backward, experts_forward};
    #[pymodule_export]
    use crate::gemm::{can_multiply, multiply};
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

    /// Has the interpreter tell the core of forks, where there are any.
    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let os = module.py().import("os")?;
        if os.hasattr("register_at_fork")? {
            let options = PyDict::new(module.py());
            options.set_item("after_in_child", wrap_pyfunction!(forked, module)?)?;
            os.call_method("register_at_fork", (), Some(&options))?;
            gptrs_core::process::tells_of_forks();
        }
        Ok(())
    }

    #[pyfunction]
    fn forked() {
        gptrs_core::process::forked();
    }
}
