//! The borders of [`DeepSeekV3`]. In doubt: numbers that are not ASCII, and what no alternative of the pattern takes.

use super::super::deepseek::DeepSeekV3;
use super::chars::{Masks, run_starts};
use super::cl100k::{indents, number_starts};
use super::kinds::{Kinds, Rule, SCRIPT};
use super::last_spaces;
use super::walk::{Borders, Carry, Starts};

impl Borders for DeepSeekV3 {
    const PAD: u8 = b' ';
    const RULE: Rule = Rule::Script;
    const KINDS: &'static Kinds = &SCRIPT;

    #[inline(always)]
    fn starts(here: &Masks, carry: &mut Carry, text: &[u8], at: usize) -> Starts {
        let [gap, ideograph, ideograph_mark, ideograph_gap] = here.extra;
        let after_other = carry.other.of(here.other);
        let others = here.other & !after_other & !carry.blank.of(here.blank);
        let first_joined = here.line & after_other;
        let after_joined = carry.joined.1.of(carry.joined.0.over(first_joined, here.line));
        // An ASCII mark leads ASCII letters, and no others after them.
        let narrow = here.letter & !here.high;
        let first_led = narrow & carry.leaders.1.of(others & !here.high);
        let after_led = carry.led.1.of(carry.led.0.over(first_led, narrow)) & here.letter & here.high;
        let flat = here.space & !here.line;
        let indents = indents::<Self>(here, flat, flat & carry.line.of(here.line) & !after_joined, text, at);
        let spaces = run_starts(here.space, &mut carry.space) & !first_joined | flat & after_joined | indents;
        let words = run_starts(here.letter, &mut carry.letter) & !carry.flat.of(flat) & !first_led | after_led;
        let ideographs =
            run_starts(ideograph, &mut carry.ideograph) | run_starts(ideograph_mark, &mut carry.ideograph_mark);
        let numbers = number_starts::<3>(here, carry);
        Starts {
            here: others | spaces | words | ideographs | numbers,
            // Text ends before a number or an ideograph.
            later: last_spaces(here, flat, here.letter | here.other | gap, carry),
            doubts: here.wide_number | gap | ideograph_gap,
        }
    }
}
