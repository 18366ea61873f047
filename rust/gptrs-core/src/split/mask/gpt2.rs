//! The borders of [`Gpt2`]: all of them by shifts, but for a look at each apostrophe that may start a contraction.

use super::super::gpt2::{Gpt2, contraction};
use super::chars::{Masks, run_starts};
use super::kinds::{COARSE, Kinds, Rule};
use super::last_spaces;
use super::walk::{Borders, Carry, Starts};

impl Borders for Gpt2 {
    const PAD: u8 = b' ';
    const RULE: Rule = Rule::Coarse;
    const KINDS: &'static Kinds = &COARSE;

    #[inline(always)]
    fn starts(here: &Masks, carry: &mut Carry, text: &[u8], at: usize) -> Starts {
        // A blank goes with the word, number or marks after it.
        let after_blank = carry.blank.of(here.blank);
        let others = run_starts(here.other, &mut carry.other) & !after_blank;
        let words = run_starts(here.letter, &mut carry.letter) | run_starts(here.number, &mut carry.number);
        let spaces = run_starts(here.space, &mut carry.space);
        let mut starts = words & !after_blank | others | spaces | std::mem::take(&mut carry.starts);
        let mut endings = carry.quotes.of(here.quote & others) & here.letter;
        while endings != 0 {
            let place = endings.trailing_zeros();
            let n = contraction(&text[at + place as usize..]);
            if n > 0 {
                let end = 1u128 << (place + n as u32);
                starts = starts & !(1 << place) | end as u64;
                carry.starts = (end >> 64) as u64;
            }
            endings &= endings - 1;
        }
        Starts { here: starts, later: last_spaces(here, here.space, !here.space, carry), doubts: 0 }
    }
}
