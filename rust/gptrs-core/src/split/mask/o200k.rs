//! The borders of [`O200k`]. In doubt: numbers that are not ASCII, combining marks after others, upper case after letters
//! without case.

use super::super::cl100k::contraction;
use super::super::o200k::O200k;
use super::chars::{Masks, run_starts};
use super::cl100k::{indents, number_starts};
use super::kinds::{CASE, Kinds, Rule};
use super::last_spaces;
use super::walk::{Borders, Carry, Starts};

impl Borders for O200k {
    const PAD: u8 = b' ';
    const RULE: Rule = Rule::Case;
    const KINDS: &'static Kinds = &CASE;

    #[inline(always)]
    fn starts(here: &Masks, carry: &mut Carry, text: &[u8], at: usize) -> Starts {
        let [mark, upper, lower, _] = here.extra;
        let word = here.letter | mark | upper | lower;
        let (after_word, after_other) = (carry.letter.of(word), carry.other.of(here.other));
        // Line breaks and slashes go with the others before them, from the first line break on.
        let breaks = here.line | here.slash;
        let first_joined = here.line & after_other;
        let joined = carry.joined.0.over(first_joined, breaks) | first_joined;
        let after_joined = carry.joined.1.of(joined) & !joined;
        let (inside, after_contraction) = contractions(here.quote & after_word, carry, text, at);
        let is_first = !after_other & !carry.blank.of(here.blank) | after_joined;
        let others = here.other & is_first & !joined & !inside;
        let after_leader = carry.leaders.1.of(carry.leaders.0.whole(others, here.cont));
        let flat = here.space & !here.line;
        let indents = indents::<Self>(here, flat, flat & carry.line.of(here.line) & !after_joined, text, at);
        let spaces = run_starts(here.space, &mut carry.space) & !first_joined | indents;
        let words = word & !after_word & !carry.flat.of(flat) & !after_leader | upper & carry.lower.of(lower);
        let numbers = number_starts::<3>(here, carry);
        let caseless = carry.caseless.of(here.letter | mark);
        Starts {
            here: others | spaces | words & !inside | numbers | after_joined | after_contraction,
            later: last_spaces(here, flat, !here.space, carry),
            doubts: here.wide_number | mark & after_other | upper & caseless & !here.cont,
        }
    }
}

/// The bytes of contractions, which are those of `quotes` that one follows, and the starts of pieces after them.
#[inline(always)]
fn contractions(mut quotes: u64, carry: &mut Carry, text: &[u8], at: usize) -> (u64, u64) {
    let (mut inside, mut starts) = (u128::from(carry.inside), u128::from(carry.starts));
    while quotes != 0 {
        let place = quotes.trailing_zeros();
        let n = text.get(at + place as usize + 1..).map_or(0, contraction);
        // A contraction after another one is a word of its own.
        if n > 0 && starts >> place & 1 == 0 {
            inside |= ((2 << n) - 1) << place;
            starts |= 2 << (place + n as u32);
        }
        quotes &= quotes - 1;
    }
    (carry.inside, carry.starts) = ((inside >> 64) as u64, (starts >> 64) as u64);
    (inside as u64, starts as u64)
}
