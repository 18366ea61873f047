//! A dataset cut into rows.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::dataset::{Dataset, Held, Spot};
use crate::error::{Error, Result};
use crate::pack::{self, Blank, Plan, fill_stream_marks};
use crate::shard::{Token, widen_row};

/// The rows of one dataset.
///
/// In the *stream* row `r` is the `seq_len + 1` tokens from `r * seq_len` on, so each token but the first is a target
/// once an epoch, across the ends of documents. Under a plan rows are packed from whole documents ([`crate::pack`]). In
/// both, a token whose loss bit is 0 is an input and no target.
#[derive(Debug, Clone)]
pub struct RowSource {
    dataset: Arc<Dataset>,
    plan: Option<Arc<Plan>>,
    seq_len: usize,
    n_rows: u64,
}

impl RowSource {
    /// The rows of the stream.
    pub fn stream(dataset: Arc<Dataset>, seq_len: usize) -> Result<Self> {
        let n_rows = dataset.n_rows(seq_len);
        if n_rows == 0 {
            let (n_tokens, needed) = (dataset.n_tokens(), seq_len.saturating_add(1));
            let message = format!("seq_len ({seq_len}) needs {needed} tokens, the dataset has {n_tokens}");
            return Err(Error::Argument(format!("{message}; hint: use a smaller seq_len or more text")));
        }
        Ok(Self { dataset, plan: None, seq_len, n_rows })
    }

    /// The rows of a plan of `dataset`.
    pub fn packed(dataset: Arc<Dataset>, plan: Arc<Plan>) -> Result<Self> {
        let (seq_len, n_rows) = (plan.seq_len(), plan.n_rows());
        if n_rows == 0 {
            return Err(Error::Argument("the dataset has no tokens to pack; hint: prepare more text".to_owned()));
        }
        Ok(Self { dataset, plan: Some(plan), seq_len, n_rows })
    }

    /// The dataset.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// The plan of its rows, if they are packed.
    pub fn plan(&self) -> Option<&Arc<Plan>> {
        self.plan.as_ref()
    }

    /// Inputs of a row.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Rows of an epoch.
    pub fn n_rows(&self) -> u64 {
        self.n_rows
    }

    /// The first token of row `row` in the dataset.
    pub fn start(&self, row: u64) -> Result<u64> {
        match &self.plan {
            None => Ok(row * self.seq_len as u64),
            Some(plan) => Ok(plan.row(&self.dataset, row)?.first().map_or(0, |piece| piece.start)),
        }
    }

    /// Whether its targets are more than its tokens moved by one.
    pub fn has_own_targets(&self) -> bool {
        self.plan.is_some() || self.dataset.has_loss_bits()
    }

    /// Where row `row` of the stream begins; `None` where no shard has all of it, and for packed rows.
    pub(super) fn spot(&self, row: u64, held: &mut Held) -> Result<Option<Spot>> {
        if self.plan.is_some() {
            return Ok(None);
        }
        held.spot(&self.dataset, row * self.seq_len as u64, self.seq_len + 1)
    }

    /// The `seq_len + 1` tokens of row `row` of the stream, at `spot`, as stored; nothing for packed rows.
    pub(super) fn bytes<'h>(&self, row: u64, spot: Option<Spot>, held: &'h Held) -> Result<Cow<'h, [u8]>> {
        if self.plan.is_some() {
            return Ok(Cow::Borrowed(&[]));
        }
        held.bytes(&self.dataset, spot, row * self.seq_len as u64, self.seq_len + 1)
    }

    /// Fills `tokens` and `targets`, `seq_len` each, and `marks` with row `row`, which is `stored` unless it is packed; calls
    /// `beside` as [`widen_row`] does.
    pub(super) fn fill<T: Token>(
        &self,
        row: u64,
        stored: &[u8],
        beside: impl FnMut(Range<usize>),
        tokens: &mut [T],
        targets: &mut [T],
        marks: &mut pack::Marks<'_>,
    ) -> Result<()> {
        let Some(plan) = &self.plan else {
            widen_row(self.dataset.dtype(), stored, tokens, targets, beside);
            if self.dataset.has_loss_bits() {
                let first = row * self.seq_len as u64 + 1;
                self.dataset.mask_targets(first, targets, ignored::<T>("rows of a dataset with loss bits")?)?;
            }
            let is_wanted = !(marks.positions.is_empty() && marks.doc_ids.is_empty() && marks.cu_seqlens.is_empty());
            return if is_wanted { fill_stream_marks(&self.dataset, row, self.seq_len, marks) } else { Ok(()) };
        };
        let target = ignored("packed rows")?;
        let token = T::from_u32(self.dataset.eot_id().unwrap_or(0));
        plan.fill_row(&self.dataset, row, Blank { token, target }, tokens, targets, marks)
    }
}

/// The target that predicts nothing; `what` needs it.
fn ignored<T: Token>(what: &str) -> Result<T> {
    T::IGNORED.ok_or_else(|| {
        let message = format!("{what} need signed targets, for those that predict nothing");
        Error::Argument(format!("{message}; hint: use int32 or int64"))
    })
}
