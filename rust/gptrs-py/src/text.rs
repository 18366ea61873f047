//! Python's texts, special-token arguments and ids as the core wants them.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple, PyType};

/// The bytes of a `str` (UTF-8) or `bytes`, borrowed from the Python object without copying.
pub enum Text {
    /// From a `str`.
    Str(PyBackedStr),
    /// From `bytes`, valid UTF-8 or not.
    Bytes(PyBackedBytes),
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Str(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Text {
    type Error = PyErr;

    /// As tiktoken: a surrogate pair in a `str` counts as its character, a lone surrogate as U+FFFD.
    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(text) = object.cast::<PyString>() {
            return match PyBackedStr::try_from(text.to_owned()) {
                Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(object.py()) => {
                    let utf16 = text.call_method1("encode", ("utf-16-le", "surrogatepass"))?;
                    let whole = utf16.call_method1("decode", ("utf-16-le", "replace"))?;
                    Ok(Self::Str(whole.extract()?))
                }
                backed => Ok(Self::Str(backed?)),
            };
        }
        match object.cast::<PyBytes>() {
            Ok(bytes) => Ok(Self::Bytes(PyBackedBytes::from(bytes.to_owned()))),
            Err(_) => Err(PyTypeError::new_err(format!("expected str or bytes, got {}", object.get_type().name()?))),
        }
    }
}

/// Every text of an iterable; a single `str` or `bytes` is refused, as its items are not texts.
pub fn texts(object: &Bound<'_, PyAny>) -> PyResult<Vec<Text>> {
    if object.is_instance_of::<PyString>() || object.is_instance_of::<PyBytes>() {
        return Err(PyTypeError::new_err("expected a list of texts, got one text; hint: wrap it in a list"));
    }
    let mut texts = Vec::with_capacity(object.len().unwrap_or(0));
    for (index, text) in object.try_iter()?.enumerate() {
        texts.push(text?.extract().map_err(|error| in_text(object.py(), error, index))?);
    }
    Ok(texts)
}

fn in_text(py: Python<'_>, error: PyErr, index: usize) -> PyErr {
    if !error.is_instance_of::<PyTypeError>(py) {
        return error;
    }
    PyTypeError::new_err(format!("text {index}: {}", error.value(py)))
}

/// `allowed_special` or `disallowed_special`: `"all"` or the texts of special tokens.
pub enum Names {
    /// Every special token.
    All,
    /// These.
    Some(Vec<String>),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Names {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        match object.cast::<PyString>() {
            Ok(word) if word == "all" => Ok(Self::All),
            // A string is a collection of characters, never what was meant.
            Ok(word) => {
                let word = word.repr()?;
                Err(PyValueError::new_err(format!(
                    "expected \"all\" or a set of texts, got {word}; hint: use {{{word}}}"
                )))
            }
            Err(_) if object.cast::<PyTuple>().is_ok_and(|names| names.is_empty()) => Ok(Self::Some(Vec::new())),
            Err(_) => {
                let Ok(names) = object.try_iter() else {
                    let got = object.get_type().name()?;
                    return Err(PyTypeError::new_err(format!("expected \"all\" or a set of texts, got {got}")));
                };
                Ok(Self::Some(names.map(|name| name?.extract()).collect::<PyResult<_>>()?))
            }
        }
    }
}

/// From so many items on, a list is read by `array.array`, which takes a fifth of the time of a call per item.
const MANY: usize = 64;

/// The ids of an array (uint16, uint32, int32 or int64, without a call per id) or of any iterable of ints.
pub fn ids(object: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let py = object.py();
    if let Ok(buffer) = PyUntypedBuffer::get(object) {
        if let Ok(ids) = buffer.as_typed::<u32>() {
            return ids.to_vec(py);
        }
        if let Ok(ids) = buffer.as_typed::<u16>() {
            return Ok(ids.to_vec(py)?.into_iter().map(u32::from).collect());
        }
        if let Ok(ids) = buffer.as_typed::<i64>() {
            return checked(ids.to_vec(py)?.into_iter());
        }
        if let Ok(ids) = buffer.as_typed::<i32>() {
            return checked(ids.to_vec(py)?.into_iter().map(i64::from));
        }
    }
    let is_list = object.is_exact_instance_of::<PyList>() || object.is_exact_instance_of::<PyTuple>();
    if is_list && object.len()? >= MANY {
        static ARRAY: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        // What it refuses is named with its place below.
        if let Ok(array) = ARRAY.import(py, "array", "array")?.call1(("I", object))
            && let Ok(ids) = PyUntypedBuffer::get(&array)?.as_typed::<u32>()
        {
            return ids.to_vec(py);
        }
    }
    let mut ids = Vec::with_capacity(object.len().unwrap_or(0));
    for (position, id) in object.try_iter()?.enumerate() {
        ids.push(one_id(&id?).map_err(|error| at(py, error, position))?);
    }
    Ok(ids)
}

/// One id; an int outside of u32 is a wrong value, not a defect of the call.
pub fn one_id(object: &Bound<'_, PyAny>) -> PyResult<u32> {
    object.extract::<u32>().map_err(|error| {
        if !error.is_instance_of::<PyOverflowError>(object.py()) {
            return error;
        }
        PyValueError::new_err(format!("id {object} is out of range"))
    })
}

fn at(py: Python<'_>, error: PyErr, position: usize) -> PyErr {
    if !error.is_instance_of::<PyValueError>(py) {
        return error;
    }
    PyValueError::new_err(format!("{} at position {position}", error.value(py)))
}

fn checked(ids: impl Iterator<Item = i64>) -> PyResult<Vec<u32>> {
    ids.enumerate()
        .map(|(position, id)| {
            u32::try_from(id)
                .map_err(|_| PyValueError::new_err(format!("id {id} is out of range at position {position}")))
        })
        .collect()
}
