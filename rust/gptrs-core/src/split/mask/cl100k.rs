//! The borders of [`Cl100kLike`]. In doubt: numbers that are not ASCII, where a piece has several.

use super::super::cl100k::{Cl100kLike, contraction};
use super::super::class::{SPACE, class_at};
use super::chars::{Masks, run_starts};
use super::kinds::{COARSE, Kinds, Rule};
use super::last_spaces;
use super::walk::{Borders, Carry, Digits, Starts};

impl<const DIGITS: usize, const WHOLE_END: bool> Borders for Cl100kLike<DIGITS, WHOLE_END> {
    const PAD: u8 = if WHOLE_END { b'\n' } else { b' ' };
    const RULE: Rule = Rule::Coarse;
    const KINDS: &'static Kinds = &COARSE;

    #[inline(always)]
    fn starts(here: &Masks, carry: &mut Carry, text: &[u8], at: usize) -> Starts {
        // Marks: a blank goes with them, line breaks follow them; a single one without a blank leads a word.
        let after_other = carry.other.of(here.other);
        let others = here.other & !after_other & !carry.blank.of(here.blank);
        let after_leader = carry.leaders.1.of(carry.leaders.0.whole(others, here.cont));
        let first_joined = here.line & after_other;
        let after_joined = carry.joined.1.of(carry.joined.0.over(first_joined, here.line));
        // White space: up to its last line break, then all but its last character, which leads a word.
        let flat = here.space & !here.line;
        let indents = indents::<Self>(here, flat, flat & carry.line.of(here.line) & !after_joined, text, at);
        let spaces = run_starts(here.space, &mut carry.space) & !first_joined | flat & after_joined | indents;
        let words = run_starts(here.letter, &mut carry.letter) & !carry.flat.of(flat) & !after_leader;
        let numbers = number_starts::<DIGITS>(here, carry);
        let mut starts = others | spaces | words | numbers | std::mem::take(&mut carry.starts);
        let mut endings = carry.quotes.of(here.quote & others) & here.letter;
        while endings != 0 {
            let place = endings.trailing_zeros();
            let n = contraction(&text[at + place as usize..]);
            if n > 0 {
                let end = 1u128 << (place + n as u32);
                starts |= end as u64;
                carry.starts = (end >> 64) as u64;
            }
            endings &= endings - 1;
        }
        Starts {
            here: starts,
            later: last_spaces(here, flat, !here.space, carry),
            doubts: if DIGITS == 1 { 0 } else { here.wide_number },
        }
    }
}

/// Which of `firsts`, white space after a line break, start a piece: not when another line break follows in the run.
#[inline(always)]
pub(super) fn indents<B: Borders>(here: &Masks, flat: u64, firsts: u64, text: &[u8], at: usize) -> u64 {
    // A one added to the first of a run of bits moves past its last.
    let (sum, over) = flat.overflowing_add(firsts);
    let mut ends = sum & here.line;
    let mut indents = firsts;
    if over && line_follows::<B>(text, at + 64) {
        indents &= !(1 << firsts.ilog2());
    }
    while ends != 0 {
        let below = firsts & ((ends & ends.wrapping_neg()) - 1);
        indents &= !(1 << below.ilog2());
        ends &= ends - 1;
    }
    indents
}

/// Whether the run of white space that goes on at `at`, perhaps inside a character, has a line break.
#[inline(never)]
fn line_follows<B: Borders>(text: &[u8], mut at: usize) -> bool {
    while text.get(at).is_some_and(|byte| byte & 0xC0 == 0x80) {
        at += 1;
    }
    loop {
        match text.get(at) {
            None => return B::PAD == b'\n',
            Some(b'\r' | b'\n') => return true,
            Some(_) => match class_at(text, at) {
                (SPACE, len) => at += len,
                _ => return false,
            },
        }
    }
}

/// Starts of pieces of at most `MOST` numbers, each of one byte.
#[inline(always)]
pub(super) fn number_starts<const MOST: usize>(here: &Masks, carry: &mut Carry) -> u64 {
    if MOST == 1 {
        return here.number & !here.cont;
    }
    let Digits { numbers, starts } = carry.digits;
    let number = here.number;
    let shifted = |n: usize| (number << n).wrapping_add(numbers >> (64 - n));
    let mut inner = number & shifted(1);
    let mut all = number & !inner;
    for n in 2..=MOST {
        inner &= shifted(n);
    }
    if inner != 0 {
        // `inner`: a number after `MOST` others. Starts are every `MOST` along it, found by doubling the step.
        all |= inner & (all << MOST | starts >> (64 - MOST));
        let mut step = MOST;
        while step < 64 {
            all |= inner & all << step;
            inner &= inner << step;
            step *= 2;
        }
    }
    carry.digits = Digits { numbers: number, starts: all };
    all
}
