//! The rows of a Parquet file: one or several columns of strings, read page by page.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parquet::basic::{ConvertedType, Type};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{FooterTail, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::ChunkReader;
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use super::pages::{Handle, MAX_PAGES, Pages, Stored, check_footer, general};
use super::{Input, TextField};
use crate::error::{Error, Result};

/// The largest footer: decoded, it takes some forty times the memory.
const MAX_FOOTER: usize = 16 << 20;

/// Values decoded at a time, all of one page.
const BATCH: usize = 32;

/// The rows of a Parquet file, each a document; memory follows a page of each column that is read.
pub struct Rows {
    path: PathBuf,
    field: TextField,
    file: Handle,
    metadata: ParquetMetaData,
    /// The column of each field.
    columns: Vec<usize>,
    /// The row group under way, and the rows of it that are to come.
    group: usize,
    left: u64,
    readers: Vec<Column>,
    row: u64,
    values: Vec<ByteArray>,
    targets: Vec<Range<usize>>,
}

/// The values of one column of a row group.
struct Column {
    reader: ColumnReaderImpl<ByteArrayType>,
    is_nullable: bool,
    /// Rows of the page that was read last; of those, how many were taken.
    n_rows: Arc<AtomicUsize>,
    n_taken: usize,
    /// What was read and not yet given out, the last first; `None` is null.
    ready: Vec<Option<ByteArray>>,
}

impl Rows {
    /// The documents from row `row` on, counted from 0.
    pub fn open(input: &Input, field: &TextField, row: u64) -> Result<Self> {
        let path = input.path.clone();
        let (file, len) = crate::io::open_regular(&path)?;
        if len != input.n_bytes {
            return Err(input.changed());
        }
        let file = Handle(Arc::new(Stored { file, len, n: AtomicU64::new(0) }));
        let metadata = guarded(&path, || footer(&file))?;
        let columns = guarded(&path, || columns(metadata.file_metadata().schema_descr(), field))?;
        let (field, values, targets) = (field.clone(), Vec::new(), Vec::new());
        let mut rows = Self {
            path,
            field,
            file,
            metadata,
            columns,
            group: 0,
            left: 0,
            readers: Vec::new(),
            row: 0,
            values,
            targets,
        };
        rows.skip_to(row)?;
        Ok(rows)
    }

    /// The row that comes next, counted from 0.
    pub fn position(&self) -> u64 {
        self.row
    }

    /// What is to be predicted of the row read last: the bytes of [`TextField::with_targets`]' fields, always as many.
    pub fn targets(&self) -> &[Range<usize>] {
        &self.targets
    }

    /// Bytes of the file that were read so far.
    pub fn n_stored(&self) -> u64 {
        self.file.0.n.load(Ordering::Relaxed)
    }

    /// Appends the next row's document to `out` and says which row it is; `None` at the end of the file.
    ///
    /// The bytes are those of the file: whether they are UTF-8 is for the caller to see.
    pub fn next(&mut self, out: &mut Vec<u8>) -> Result<Option<u64>> {
        while self.left == 0 {
            if !self.next_group()? {
                return Ok(None);
            }
        }
        self.values.clear();
        for i in 0..self.readers.len() {
            let reader = &mut self.readers[i];
            let value = match reader.ready.pop() {
                Some(value) => value,
                None => guarded(&self.path, || reader.read())?,
            };
            let Some(value) = value else { return Err(self.null(i)) };
            self.values.push(value);
        }
        self.field.join_bytes(&self.values, out);
        self.targets = self.field.target_ranges(|number| self.values[number].len());
        (self.row, self.left) = (self.row + 1, self.left - 1);
        if self.left == 0 {
            self.end_group()?;
        }
        Ok(Some(self.row - 1))
    }

    /// Opens the row group that follows; false behind the last.
    fn next_group(&mut self) -> Result<bool> {
        self.readers.clear();
        if self.group == self.metadata.num_row_groups() {
            return Ok(false);
        }
        self.left = self.group_rows(self.group)?;
        let (limit, file, metadata, group) = (MAX_PAGES / self.columns.len(), &self.file, &self.metadata, self.group);
        let open = |&column: &usize| -> Result<Column> {
            guarded(&self.path, || Column::open(file.clone(), metadata, group, column, limit))
        };
        self.readers = self.columns.iter().map(open).collect::<Result<_>>()?;
        self.group += 1;
        if self.left == 0 {
            self.end_group()?;
        }
        Ok(true)
    }

    /// Fails when a column has more rows than its row group.
    fn end_group(&mut self) -> Result<()> {
        for reader in &mut self.readers {
            if !reader.ready.is_empty() || guarded(&self.path, || reader.fill())? {
                let reason = format!("row group {} has fewer rows than a column of it", self.group - 1);
                return Err(bad_file(&self.path, &reason));
            }
        }
        Ok(())
    }

    fn group_rows(&self, group: usize) -> Result<u64> {
        let n_rows = self.metadata.row_group(group).num_rows();
        u64::try_from(n_rows).map_err(|_| bad_file(&self.path, &format!("row group {group} has {n_rows} rows")))
    }

    fn skip_to(&mut self, row: u64) -> Result<()> {
        while self.row < row && self.group < self.metadata.num_row_groups() {
            let n_rows = self.group_rows(self.group)?;
            if self.row.checked_add(n_rows).is_some_and(|end| end <= row) {
                (self.row, self.group) = (self.row + n_rows, self.group + 1);
                continue;
            }
            self.next_group()?;
            let n = row - self.row;
            for reader in &mut self.readers {
                guarded(&self.path, || reader.skip(n))?;
            }
            (self.row, self.left) = (row, self.left - n);
        }
        if self.row == row {
            return Ok(());
        }
        Err(bad_file(&self.path, &format!("expected a row {row}, got {} rows", self.row)))
    }

    fn null(&self, column: usize) -> Error {
        let name = &self.field.names()[column];
        let hint = "hint: leave such rows out, or write an empty string";
        bad_file(&self.path, &format!("row {}: expected a string in column {name:?}, got null; {hint}", self.row))
    }
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("path", &self.path).field("row", &self.row).finish_non_exhaustive()
    }
}

impl Column {
    fn open(
        file: Handle,
        metadata: &ParquetMetaData,
        group: usize,
        column: usize,
        limit: usize,
    ) -> ParquetResult<Self> {
        let row_group = metadata.row_group(group);
        let chunk = row_group
            .columns()
            .get(column)
            .ok_or_else(|| general(format!("row group {group} has no column {column}")))?;
        let n_rows = Arc::new(AtomicUsize::new(0));
        let total = usize::try_from(row_group.num_rows())?;
        let pages = Pages::open(file, chunk, total, limit, Arc::clone(&n_rows))?;
        let descriptor = chunk.column_descr_ptr();
        let is_nullable = descriptor.max_def_level() > 0;
        let reader = ColumnReaderImpl::new(descriptor, Box::new(pages));
        Ok(Self { reader, is_nullable, n_rows, n_taken: 0, ready: Vec::new() })
    }

    /// The next value, which must be there.
    fn read(&mut self) -> ParquetResult<Option<ByteArray>> {
        self.fill()?;
        self.ready.pop().ok_or_else(|| general("a row group has more rows than a column of it".to_owned()))
    }

    /// Reads values of the page under way, or the first of the next; false when there is none.
    ///
    /// Reading on into the next page would keep both in memory.
    fn fill(&mut self) -> ParquetResult<bool> {
        let n = self.n_rows.load(Ordering::Relaxed).saturating_sub(self.n_taken);
        if n == 0 {
            self.n_taken = 0;
        }
        let (mut values, mut levels) = (Vec::new(), Vec::new());
        let (n_rows, ..) = self.reader.read_records(n.clamp(1, BATCH), Some(&mut levels), None, &mut values)?;
        self.n_taken += n_rows;
        let mut values = values.into_iter();
        if self.is_nullable {
            self.ready.extend(levels.into_iter().map(|level| if level == 1 { values.next() } else { None }));
        } else {
            self.ready.extend(values.map(Some));
        }
        self.ready.reverse();
        Ok(n_rows > 0)
    }

    fn skip(&mut self, n: u64) -> ParquetResult<()> {
        let n = usize::try_from(n)?;
        match self.reader.skip_records(n)? {
            got if got == n => {}
            got => return Err(general(format!("expected {n} rows or more in a column, got {got}"))),
        }
        // Where in its page the reader stands is not known: one value at a time until the next.
        self.n_rows.store(0, Ordering::Relaxed);
        Ok(())
    }
}

fn footer(file: &Handle) -> ParquetResult<ParquetMetaData> {
    let Some(end) = file.0.len.checked_sub(8).filter(|&end| end >= 4) else {
        return Err(general(format!("it has {} bytes, expected 12 or more", file.0.len)));
    };
    let tail = FooterTail::try_from(&file.get_bytes(end, 8)?[..])?;
    if tail.is_encrypted_footer() {
        return Err(general("expected a plain footer, got an encrypted one; hint: decrypt the file".to_owned()));
    }
    let n = tail.metadata_length();
    if n > MAX_FOOTER {
        return Err(general(format!("expected a footer of at most {MAX_FOOTER} bytes, got {n}")));
    }
    let Some(start) = end.checked_sub(n as u64) else {
        return Err(general(format!("it has {} bytes, its footer is to have {n}", file.0.len)));
    };
    let bytes = file.get_bytes(start, n)?;
    check_footer(&bytes)?;
    ParquetMetaDataReader::decode_metadata(&bytes)
}

/// The columns of the fields.
fn columns(schema: &SchemaDescriptor, field: &TextField) -> ParquetResult<Vec<usize>> {
    let all = schema.columns();
    let name = |column: &ColumnDescriptor| column.path().parts().join(".");
    let find = |field: &String| {
        let is_it = |column: &ColumnDescriptor| column.path().parts() == std::slice::from_ref(field);
        let Some(number) = all.iter().position(|column| is_it(column)) else {
            let mut names: Vec<_> = all.iter().take(50).map(|column| name(column)).collect();
            if all.len() > names.len() {
                names.push(format!("{} more", all.len() - names.len()));
            }
            let is_part = |column: &ColumnDescriptor| {
                let parts = column.path().parts();
                parts.len() > 1 && (parts[0] == *field || parts.join(".") == *field)
            };
            let hint = if all.iter().any(|column| is_part(column)) {
                "hint: nested columns are not read, write it as a column of its own"
            } else {
                "hint: name the column that holds the text with text_field"
            };
            return Err(general(format!("expected a column {field:?}, found {}; {hint}", names.join(", "))));
        };
        let column = &all[number];
        let is_text =
            matches!(column.converted_type(), ConvertedType::NONE | ConvertedType::UTF8 | ConvertedType::JSON);
        if column.physical_type() != Type::BYTE_ARRAY || !is_text || column.max_rep_level() > 0 {
            let got = (column.physical_type(), column.converted_type());
            return Err(general(format!("expected strings in column {field:?}, got {} ({})", got.0, got.1)));
        }
        Ok(number)
    };
    field.names().iter().map(find).collect()
}

/// What the parquet crate gives; a panic in it is an error of the file, which made it panic.
fn guarded<T>(path: &Path, work: impl FnOnce() -> ParquetResult<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(end) => end.map_err(|error| error_of(path, error)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(bad_file(path, &format!("its reader gave up: {text}; hint: write the file anew")))
        }
    }
}

fn error_of(path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(error) => match error.downcast::<std::io::Error>() {
            Ok(error) if error.raw_os_error().is_some() => Error::io("read", path)(*error),
            Ok(error) => bad_file(path, &error.to_string()),
            Err(error) => bad_file(path, &error.to_string()),
        },
        ParquetError::General(reason) | ParquetError::NYI(reason) | ParquetError::EOF(reason) => {
            bad_file(path, &reason)
        }
        other => bad_file(path, &other.to_string()),
    }
}

pub(super) fn bad_file(path: &Path, reason: &str) -> Error {
    Error::Format { path: path.to_owned(), format: "Parquet file", reason: reason.to_owned() }
}
