//! Files of text to one array of ids, by the same segments and workers as shards.

use std::path::PathBuf;

use super::journal::Position;
use super::options::check_options;
use super::survey::Survey;
use super::{Encode, PrepareOptions, check, encode, pipeline, segments};
use crate::batch::Encoded;
use crate::control::Control;
use crate::corpus;
use crate::error::{Error, Result};
use crate::ids::Ids;
use crate::parallel::resolve_threads;
use crate::ranges::Range;

/// The ids of every document of `paths`, in order, as [`prepare`](super::prepare) would write them.
///
/// Files are mapped, and a large one is cut where cutting changes nothing, so that all threads work on it. Memory
/// follows the ids. Fails with [`Error::NotUtf8`](crate::Error::NotUtf8) on the first byte that is not UTF-8.
pub fn encode_files<E: Encode>(
    paths: &[PathBuf],
    tokenizer: &E,
    options: &PrepareOptions,
    control: &Control,
) -> Result<Encoded> {
    check_options(options)?;
    if !options.loss_fields.is_empty() {
        return Err(Error::Argument("an array of ids has no loss bits; hint: prepare a dataset".to_owned()));
    }
    let inputs = corpus::inputs(paths)?;
    let stamps = check::stamps(&inputs)?;
    let n_bytes = inputs.iter().map(|input| input.n_bytes).sum();
    let threads = resolve_threads(options.threads);
    let survey = Survey::take(&inputs, Range::whole(&inputs).start, options, control)?;
    tokenizer.warm_up(n_bytes, threads, control)?;
    control.begin("encode bytes", n_bytes);
    let eot_id = if options.append_eot { tokenizer.eot_id() } else { None };
    let encoder = encode::Encoder::new(&inputs, tokenizer, options, eot_id, &[], &survey)?
        .checking_utf8()
        .expecting(n_bytes, threads);
    let safe_cut = |text: &[u8], at| tokenizer.safe_cut(text, at);
    let segments = segments::Segments::new(&inputs, Position::START, encoder.reading(&safe_cut));
    let mut array = Array::new(tokenizer.vocab_size());
    pipeline::run(segments, &encoder, threads, control, |encoded| array.push(&encoded))?;
    check::refuse_changed(&inputs, &stamps)?;
    Ok(Encoded { ids: array.ids, offsets: array.offsets })
}

struct Array {
    ids: Ids,
    offsets: Vec<i64>,
}

impl Array {
    fn new(vocab_size: usize) -> Self {
        Self { ids: Ids::with_room(vocab_size, 0), offsets: vec![0] }
    }

    fn push(&mut self, encoded: &encode::Encoded) -> Result<()> {
        let before = self.ids.len();
        self.ids.append(&encoded.ids)?;
        let ends = encoded.spans.iter().filter(|span| span.ends_document).map(|span| before + span.ids_end);
        self.offsets.extend(ends.map(|end| end as i64));
        Ok(())
    }
}
