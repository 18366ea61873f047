//! The Python module `gptrs._core`: arguments in, one core call, errors out.

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _core {}
