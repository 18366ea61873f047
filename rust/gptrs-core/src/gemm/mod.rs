//! Products of float32 matrices on tile units that multiply bfloat16 only (Intel AMX), as exact as float32 allows.
//!
//! A number of 24 significant bits is the sum of three bfloat16 of 8 bits each. Of the nine products of such parts the six
//! largest are summed, in float32; what the other three would add is below 2⁻²⁴ of the product. A tile unit multiplies
//! sixteen times as many bfloat16 as the vector unit multiplies float32, so a sixth of that is still more than twice as fast.
//!
//! ```text
//! a (m, k) ─ split into parts ─▶ panels of 32 rows    ─┐
//! b (k, n) ─ split into parts ─▶ panels of 32 columns ─┴─ tiles of 32 × 32 ─▶ out (m, n)
//! ```
//!
//! The factor with fewer lines (rows of `a`, columns of `b`) is split once for all threads; of the other one each task splits
//! some panels, which stay in its second cache. Where `k` is long, this goes stretch by stretch, and `out` is added to. Every
//! number of `out` is summed in one order, whatever the threads.
//!
//! Three things differ from sums of float32: what is infinite, or above 3.3895e38, makes sums that are not numbers, as a part
//! of the other factor may be zero; numbers below the smallest normal one count as zeros, and so do parts below it.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod panel;
mod plan;

use std::sync::atomic::{AtomicUsize, Ordering};

pub use self::panel::Factor;
pub(crate) use self::panel::{DEPTH, Kind, Line, SIDE, STEP};
use self::plan::{Plan, Stage};
use crate::error::{Error, Result};
use crate::spare::Spare;

/// Whether this processor has tiles, and the system lets this process use them. Elsewhere products are as exact, and slow.
pub fn is_available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return amx::is_available();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// One product under way: any number of threads may work on it at once.
#[derive(Debug)]
pub struct Product<'a> {
    a: Factor<'a>,
    b: Factor<'a>,
    out: Out,
    plan: Plan,
    /// The next task, and how many are done, over all stages.
    next: AtomicUsize,
    n_done: AtomicUsize,
    /// What is split once for all threads.
    shared: Shared,
    _out: std::marker::PhantomData<&'a mut [f32]>,
}

/// Where products go: rows of `step` numbers, of which those of different tasks do not overlap.
#[derive(Debug)]
struct Out {
    numbers: *mut f32,
    len: usize,
    step: usize,
    is_added: bool,
}

/// Panels that one stage writes, task by task, and the next one reads.
#[derive(Debug)]
struct Shared {
    lines: *mut Line,
    memory: Vec<Line>,
}

// SAFETY: `work` is the only way to the pointers. Tasks of a stage write places of their own, and a stage that reads what the
// one before has written begins when all tasks of that are counted as done.
unsafe impl Sync for Product<'_> {}

impl<'a> Product<'a> {
    /// `a · b` to be put into `out`, rows of which begin `step` numbers apart, or to be added to what is there, by so many
    /// `threads` as it is cut for; fewer or more may work on it.
    ///
    /// # Errors
    /// Argument for factors that do not fit together or `out`.
    pub fn new(
        a: Factor<'a>,
        b: Factor<'a>,
        out: &'a mut [f32],
        step: usize,
        is_added: bool,
        threads: usize,
    ) -> Result<Self> {
        let (m, n, k) = (a.n_lines(), b.n_lines(), a.depth());
        if b.depth() != k {
            return Err(Error::Argument(format!("expected factors of one depth, got (…, {k}) and ({}, …)", b.depth())));
        }
        let needed = if m == 0 || n == 0 { 0 } else { (m - 1).saturating_mul(step).saturating_add(n) };
        if needed > out.len() || (m > 1 && step < n) {
            let len = out.len();
            return Err(Error::Argument(format!(
                "expected room for {m} rows of {n}, got {len} numbers, a row each {step}"
            )));
        }
        let plan = Plan::new(m, n, k, threads);
        let mut memory = SPARE.take(plan.shared_lines());
        let shared = Shared { lines: memory.as_mut_ptr(), memory };
        let out = Out { numbers: out.as_mut_ptr(), len: out.len(), step, is_added };
        let (next, n_done) = Default::default();
        Ok(Self { a, b, out, plan, next, n_done, shared, _out: std::marker::PhantomData })
    }

    /// Works on what is left, and returns when there is nothing more to begin.
    ///
    /// Each thread that works on a product calls this; the product is done when the last of them has returned.
    pub fn work(&self) {
        let mut own = SPARE.take(self.plan.own_lines());
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(stage) = self.plan.stage(task) else { break };
            // Tasks are taken in order, so those of the stage before have been begun by threads that will end them.
            while self.n_done.load(Ordering::Acquire) < stage.n_before {
                std::hint::spin_loop();
            }
            if stage.is_split {
                self.split(&stage);
            } else {
                self.multiply(&stage, &mut own);
            }
            self.n_done.fetch_add(1, Ordering::Release);
        }
        SPARE.give(own);
    }

    /// Splits some panels for all threads.
    fn split(&self, stage: &Stage) {
        let n = self.plan.panel_lines();
        let (at, len) = ((stage.own.start - stage.shared.start) * n, stage.own.len() * n);
        debug_assert!(at + len <= self.shared.memory.len());
        // SAFETY: the plan has room for all panels of a stage; each is written by the one task that has it.
        let lines = unsafe { std::slice::from_raw_parts_mut(self.shared.lines.add(at), len) };
        let (factor, kind) = if self.plan.is_a_shared { (&self.a, Kind::Rows) } else { (&self.b, Kind::Columns) };
        factor.split(kind, stage.own.start * SIDE, stage.depth.clone(), n, lines);
    }

    /// Splits some panels of the other factor, and multiplies them with all that are shared.
    fn multiply(&self, stage: &Stage, own: &mut [Line]) {
        let (n, is_first) = (self.plan.panel_lines(), stage.depth.start == 0);
        let (factor, kind) = if self.plan.is_a_shared { (&self.b, Kind::Columns) } else { (&self.a, Kind::Rows) };
        factor.split(kind, stage.own.start * SIDE, stage.depth.clone(), n, &mut own[..stage.own.len() * n]);
        // SAFETY: the stage before has written these, and none writes them before all tasks of this one are done.
        let shared = unsafe { std::slice::from_raw_parts(self.shared.lines.cast_const(), stage.shared.len() * n) };
        let mut tile = Box::new(Tile::ZERO);
        for (one, lines) in stage.shared.clone().zip(shared.chunks(n)) {
            // Few panels stay in the second cache; of more the next one is asked for while this one is multiplied.
            let ahead = if size_of_val(shared) <= STAYS { &[] } else { &shared[(one - stage.shared.start + 1) * n..] };
            for (i, (other, own)) in stage.own.clone().zip(own.chunks(n)).enumerate() {
                let (a, b, row, column) =
                    if self.plan.is_a_shared { (lines, own, one, other) } else { (own, lines, other, one) };
                let ahead = &ahead[(i * n / stage.own.len()).min(ahead.len())..];
                let asked = Asked { ahead, nth: stage.own.len(), out: self.rows(row * SIDE, column * SIDE) };
                multiply_panels(a, b, &asked, &mut tile);
                self.put(&tile, row * SIDE, column * SIDE, !is_first || self.out.is_added);
            }
        }
    }

    /// Puts or adds a tile to its place.
    fn put(&self, tile: &Tile, row: usize, column: usize, is_added: bool) {
        let Rows { first, step, count, n } = self.rows(row, column);
        let rows = (0..count).map(|i| {
            // SAFETY: `new` has seen room for all rows and columns; a tile belongs to one task of a stage, which holds one row
            // at a time.
            unsafe { std::slice::from_raw_parts_mut(first.add(i * step), n) }
        });
        put_rows(rows, tile, is_added);
    }

    /// The rows of `out` that a tile is put into, of which those of different tiles do not overlap.
    fn rows(&self, row: usize, column: usize) -> Rows {
        let (count, n) = ((self.a.n_lines() - row).min(SIDE), (self.b.n_lines() - column).min(SIDE));
        let at = row * self.out.step + column;
        debug_assert!(at + (count - 1) * self.out.step + n <= self.out.len);
        Rows { first: self.out.numbers.wrapping_add(at), step: self.out.step, count, n }
    }
}

/// Some columns of some rows of what a product is put into.
#[derive(Debug)]
struct Rows {
    first: *mut f32,
    step: usize,
    count: usize,
    n: usize,
}

/// What is asked for while panels are multiplied: an `nth` of a panel from the start of `ahead` on, if it is not empty, and the
/// place of the sums.
#[derive(Debug)]
struct Asked<'a> {
    ahead: &'a [Line],
    nth: usize,
    out: Rows,
}

/// Puts or adds the rows of a tile.
pub(crate) fn put_rows<'o>(rows: impl Iterator<Item = &'o mut [f32]>, tile: &Tile, is_added: bool) {
    by_wide_registers(Put { rows, tile, is_added });
}

struct Put<'t, Rows> {
    rows: Rows,
    tile: &'t Tile,
    is_added: bool,
}

impl<'o, Rows: Iterator<Item = &'o mut [f32]>> Wide for Put<'_, Rows> {
    #[expect(clippy::inline_always, reason = "compiled for wide registers where it is called for them")]
    #[inline(always)]
    fn run(self) {
        for (out, sums) in self.rows.zip(self.tile.0.chunks(SIDE)) {
            if let (Some(out), Some(sums)) = (out.first_chunk_mut::<SIDE>(), sums.first_chunk::<SIDE>()) {
                *out = if self.is_added { std::array::from_fn(|i| out[i] + sums[i]) } else { *sums };
            } else if self.is_added {
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
            } else {
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum);
            }
        }
    }
}

/// Work that gains from registers of 16 numbers. Implementations are always inlined, so that they are compiled for these.
pub(crate) trait Wide {
    fn run(self);
}

/// Does work by registers of 16 numbers, where there are tiles, and by those of the build's target elsewhere.
pub(crate) fn by_wide_registers(work: impl Wide) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if amx::is_available() {
        return amx::by_wide_registers(work);
    }
    work.run();
}

impl Drop for Product<'_> {
    fn drop(&mut self) {
        SPARE.give(std::mem::take(&mut self.shared.memory));
    }
}

/// 32 × 32 sums, row by row.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(crate) struct Tile(pub(crate) [f32; SIDE * SIDE]);

impl Tile {
    pub(crate) const ZERO: Self = Self([0.0; SIDE * SIDE]);

    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32; SIDE]> {
        self.0.as_chunks_mut().0.iter_mut()
    }

    /// Puts its rows as a step of a panel of rows at the start of `rows`, and its columns as one of a panel of columns.
    pub(crate) fn split(&self, rows: &mut [Line], columns: Option<&mut [Line]>) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if amx::is_available() {
            return amx::split_tile(self, rows, columns);
        }
        Factor::of_tile(self).split_each(Kind::Rows, 0, 0..DEPTH, STEP, &mut rows[..STEP]);
        if let Some(columns) = columns {
            Factor::of_tile(self).turned().split_each(Kind::Columns, 0, 0..DEPTH, STEP, &mut columns[..STEP]);
        }
    }

    /// Puts its rows as columns.
    pub(crate) fn turn(&self, to: &mut Self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if amx::is_available() {
            return amx::turn(self, to);
        }
        (0..SIDE * SIDE).for_each(|at| to.0[at] = self.0[at % SIDE * SIDE + at / SIDE]);
    }
}

/// Pairs of a panel of rows and one of columns, a step of both behind the pair before; lengths are in steps of panels.
#[derive(Debug)]
pub(crate) struct Many<'a> {
    pub(crate) a: &'a [Line],
    pub(crate) a_step: usize,
    pub(crate) b: &'a [Line],
    pub(crate) b_step: usize,
    /// How deep each pair is.
    pub(crate) depth: usize,
    /// Whether sums are added to what is in the tiles.
    pub(crate) is_added: bool,
}

/// The sums of pairs of panels, each in its tile.
pub(crate) fn multiply_many(many: &Many<'_>, tiles: &mut [Tile]) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if amx::is_available() {
        return amx::multiply_many(many, tiles);
    }
    let mut sums = Tile::ZERO;
    for (i, tile) in tiles.iter_mut().enumerate() {
        let [a, b] = [(many.a, many.a_step), (many.b, many.b_step)]
            .map(|(lines, step)| &lines[i * step * STEP..][..many.depth * STEP]);
        panel::multiply(a, b, if many.is_added { &mut sums } else { &mut *tile });
        if many.is_added {
            tile.0.iter_mut().zip(sums.0).for_each(|(tile, sum)| *tile += sum);
        }
    }
}

/// The sums of one panel of rows with one of columns.
fn multiply_panels(a: &[Line], b: &[Line], asked: &Asked<'_>, tile: &mut Tile) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if amx::is_available() {
        return amx::multiply(a, b, asked, tile);
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    let _ = asked;
    panel::multiply(a, b, tile);
}

/// Bytes that stay in a second cache beside those of a task.
const STAYS: usize = 1 << 19;

/// Memory of products that are done, for those to come.
pub(crate) static SPARE: Spare<Line> = Spare::new();

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "what is compared so is exact")]
mod tests {
    use super::panel::DEPTH;
    use super::*;

    /// Numbers of all sizes, some of them special, in an order that does not repeat soon.
    fn numbers(n: usize, seed: u64, has_special: bool) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut draw = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let special =
            [0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, 3.3895e38, 1e-38, 1e-45];
        let special = special.into_iter().chain([f32::from_bits(0x7F80_0001), f32::from_bits(0xFFFF_FFFF)]);
        let special: Vec<f32> = special.collect();
        (0..n)
            .map(|_| match draw() % 16 {
                0 if has_special => special[draw() as usize % special.len()],
                1 if has_special => f32::from_bits(draw() as u32),
                _ => (draw() as i32) as f32 / (1_u64 << (28 + draw() % 8)) as f32,
            })
            .collect()
    }

    #[test]
    fn a_number_is_the_sum_of_its_parts() {
        let value = |part: u16| f64::from(f32::from_bits(u32::from(part) << 16));
        for x in numbers(100_000, 1, true) {
            let found: f64 = panel::parts(x).into_iter().map(value).sum();
            let is_same = match f64::from(x) {
                x if x.is_nan() => found.is_nan(),
                x if x.abs() >= f64::from(f32::from_bits(0x7F7F_8000)) => {
                    found.abs() == f64::INFINITY && found.signum() == x.signum()
                }
                // Of the smallest numbers the last bits are below what there is.
                x => (found - x).abs() <= f64::from(f32::MIN_POSITIVE).min(x.abs()),
            };
            assert!(is_same, "{x:e} {found:e}");
        }
    }

    #[test]
    fn panels_are_split_together_as_number_by_number() {
        for (case, (n_lines, depth)) in [(1, 1), (31, 33), (32, 32), (40, 64), (100, 77)].into_iter().enumerate() {
            let numbers = numbers(2 * n_lines * depth, case as u64, true);
            for steps in [(depth, 1), (2 * depth, 1), (1, n_lines), (1, 2 * n_lines)] {
                let factor = Factor::new(&numbers, n_lines, depth, steps).expect("there are enough numbers");
                for (kind, first, start) in [Kind::Rows, Kind::Columns].into_iter().flat_map(|kind| {
                    (0..n_lines)
                        .step_by(SIDE)
                        .flat_map(move |first| (0..depth).step_by(DEPTH).map(move |at| (kind, first, at)))
                }) {
                    let mut panels = [(); 2].map(|()| vec![Line::default(); 6 * panel::STEP]);
                    factor.split(kind, first, start..depth.min(start + 2 * DEPTH), 2 * panel::STEP, &mut panels[0]);
                    factor.split_each(
                        kind,
                        first,
                        start..depth.min(start + 2 * DEPTH),
                        2 * panel::STEP,
                        &mut panels[1],
                    );
                    assert!(panels[0] == panels[1], "{n_lines} {depth} {steps:?} {kind:?} {first} {start}");
                }
            }
        }
    }

    /// What a product should be, and the sum of the sizes of what is summed.
    fn expected(a: &Factor<'_>, b: &Factor<'_>, row: usize, column: usize) -> (f64, f64) {
        let number = |factor: &Factor<'_>, line, at| f64::from(factor.number(line, at, at + 1));
        (0..a.depth())
            .map(|at| number(a, row, at) * number(b, column, at))
            .fold((0.0, 0.0), |(s, t), x| (s + x, t + x.abs()))
    }

    /// The largest error of a product of these sizes, and that of sums of float32 one after the other; as shares of the sizes of
    /// what is summed.
    fn check(m: usize, n: usize, k: usize, is_added: bool, n_threads: usize) -> (f64, f64) {
        let (a, b) = (numbers(m * k, 1, false), numbers(n * k, 2, false));
        let (mut worst, mut worst_plain, step, mut first) = (0.0_f64, 0.0_f64, n + 3, None);
        let layouts = [((k, 1), (k, 1)), ((1, m), (k, 1)), ((k, 1), (1, n)), ((1, m), (1, n))];
        for ((a_steps, b_steps), cut_for) in layouts.into_iter().zip([n_threads, 1, 5, 64]) {
            // The same numbers, laid out one way or the other.
            let laid = |numbers: &[f32], lines: usize, steps: (usize, usize)| {
                let mut laid = vec![0.0; numbers.len()];
                (0..lines * k).for_each(|i| laid[i / k * steps.0 + i % k * steps.1] = numbers[i]);
                laid
            };
            let (a, b) = (laid(&a, m, a_steps), laid(&b, n, b_steps));
            let a = Factor::new(&a, m, k, a_steps).expect("there are enough numbers");
            let b = Factor::new(&b, n, k, b_steps).expect("there are enough numbers");
            let mut out = vec![1.5; m * step];
            {
                let product = Product::new(a, b, &mut out, step, is_added, cut_for).expect("all fit");
                std::thread::scope(|scope| (0..n_threads).for_each(|_| drop(scope.spawn(|| product.work()))));
            }
            for (row, out) in out.chunks(step).enumerate() {
                assert!(out[n..].iter().all(|&x| x == 1.5), "nothing else is written");
                for column in (0..n).step_by(1 + n / 40) {
                    let (sum, size) = expected(&a, &b, row, column);
                    let sum = if is_added { sum + 1.5 } else { sum };
                    worst = worst.max((f64::from(out[column]) - sum).abs() / (size + 1.5));
                    let plain = (0..k).fold(if is_added { 1.5 } else { 0.0 }, |s: f32, i| {
                        s + a.number(row, i, k) * b.number(column, i, k)
                    });
                    worst_plain = worst_plain.max((f64::from(plain) - sum).abs() / (size + 1.5));
                }
            }
            let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
            assert!(
                *first.get_or_insert_with(|| bits.clone()) == bits,
                "neither the layout nor the cut changes anything"
            );
        }
        (worst, worst_plain)
    }

    #[test]
    fn products_are_those_of_float32() {
        let sizes =
            [(1, 1, 1), (3, 5, 7), (32, 32, 32), (33, 65, 100), (100, 300, 769), (300, 40, 2000), (7, 2100, 30)];
        for (case, (m, n, k)) in sizes.into_iter().enumerate() {
            let (worst, plain) = check(m, n, k, case % 2 == 1, 1 + case % 3);
            assert!(worst <= plain, "{m} {n} {k}: {worst:e}, one after the other {plain:e}");
        }
        // Nothing to multiply: zeros, or what was there.
        let none = |lines| Factor::new(&[], lines, 0, (0, 1)).expect("nothing is enough");
        for is_added in [false, true] {
            let mut out = [1.5; 6];
            Product::new(none(2), none(3), &mut out, 3, is_added, 1).expect("all fit").work();
            assert_eq!(out, [if is_added { 1.5 } else { 0.0 }; 6]);
        }
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn tiles_multiply_as_numbers_do() {
        if !amx::is_available() {
            return;
        }
        for (seed, n_steps) in [1, 2, 5, 24].into_iter().enumerate() {
            let depth = n_steps * DEPTH;
            let numbers = [1, 2].map(|i| numbers(SIDE * depth, i + 2 * seed as u64, false));
            let mut panels = [(); 2].map(|()| vec![Line::default(); n_steps * panel::STEP]);
            for (kind, (numbers, panel)) in [Kind::Rows, Kind::Columns].into_iter().zip(numbers.iter().zip(&mut panels))
            {
                let factor = Factor::new(numbers, SIDE, depth, (depth, 1)).expect("there are enough numbers");
                factor.split_each(kind, 0, 0..depth, n_steps * panel::STEP, panel);
            }
            let mut tiles = [(); 2].map(|()| Tile([f32::NAN; SIDE * SIDE]));
            let out = Rows { first: std::ptr::null_mut(), step: 0, count: SIDE, n: SIDE };
            let asked = Asked { ahead: &panels[0], nth: 3, out };
            amx::multiply(&panels[0], &panels[1], &asked, &mut tiles[0]);
            panel::multiply(&panels[0], &panels[1], &mut tiles[1]);
            let [fast, slow] = &tiles;
            let size = slow.0.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
            let worst = fast.0.iter().zip(&slow.0).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-5 * size, "{n_steps}: {worst:e} of {size:e}");
        }
    }

    #[test]
    fn tiles_are_split_and_turned_as_numbers_are() {
        for seed in 0..20 {
            let mut tile = Tile::ZERO;
            tile.0.copy_from_slice(&numbers(SIDE * SIDE, seed, seed % 2 == 1));
            let [mut rows, mut columns] = [(); 2].map(|()| vec![Line::default(); 2 * STEP]);
            let mut expected = vec![Line::default(); STEP];
            tile.split(&mut rows[STEP..], Some(&mut columns[STEP..]));
            let behind = [rows.clone(), columns.clone()];
            tile.split(&mut rows, Some(&mut columns));
            let factor = Factor::of_tile(&tile);
            for (found, kind, factor) in [(&rows, Kind::Rows, factor), (&columns, Kind::Columns, factor.turned())] {
                factor.split_each(kind, 0, 0..DEPTH, STEP, &mut expected);
                assert!(found[..STEP] == expected, "{seed} {kind:?}");
            }
            assert!(
                behind[0][STEP..] == rows[STEP..] && behind[1][STEP..] == columns[STEP..],
                "nothing else is written"
            );
            let mut turned = Tile::ZERO;
            tile.turn(&mut turned);
            let is_turned = |i: usize| turned.0[i].to_bits() == tile.0[i % SIDE * SIDE + i / SIDE].to_bits();
            assert!((0..SIDE * SIDE).all(is_turned), "{seed}");
        }
    }

    #[test]
    fn many_products_are_those_of_each_pair() {
        let (n, depth) = (3, 2);
        let panels = [(Kind::Rows, 1), (Kind::Columns, 2)].map(|(kind, seed)| {
            let (n_lines, columns) = (n * SIDE, depth * DEPTH);
            let numbers = numbers(n_lines * columns, seed, false);
            let factor = Factor::new(&numbers, n_lines, columns, (columns, 1)).expect("there are enough numbers");
            let mut panels = vec![Line::default(); n * depth * STEP];
            factor.split(kind, 0, 0..columns, depth * STEP, &mut panels);
            panels
        });
        let [a, b] = &panels;
        for (a_step, b_step, is_added) in [(0, depth, false), (depth, 0, true), (depth, depth, true), (1, 2, false)] {
            let mut tiles = vec![Tile([if is_added { 1.5 } else { f32::NAN }; SIDE * SIDE]); n];
            multiply_many(&Many { a, a_step, b, b_step, depth, is_added }, &mut tiles);
            for (i, found) in tiles.iter().enumerate() {
                let mut expected = Tile::ZERO;
                let [a, b] = [(a, a_step), (b, b_step)].map(|(all, step)| &all[i * step * STEP..][..depth * STEP]);
                panel::multiply(a, b, &mut expected);
                let start = if is_added { 1.5 } else { 0.0 };
                let worst = found.0.iter().zip(expected.0).map(|(x, y)| (x - (y + start)).abs()).fold(0.0, f32::max);
                let size = expected.0.iter().fold(1.0_f32, |size, x| size.max(x.abs()));
                assert!(worst <= 1e-5 * size, "{i} {a_step} {b_step}: {worst:e} of {size:e}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_spoils_its_row_alone() {
        let mut a = vec![1.0; 40 * 40];
        (a[0], a[40], a[80], a[120]) = (f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX);
        let (b, mut out) = (vec![0.5; 40 * 40], vec![0.0; 40 * 40]);
        let factor = |numbers| Factor::new(numbers, 40, 40, (40, 1)).expect("there are enough numbers");
        Product::new(factor(&a), factor(&b), &mut out, 40, false, 1).expect("all fit").work();
        assert!(out[..160].iter().all(|x| !x.is_finite()) && out[160..].iter().all(|&x| x == 20.0));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let numbers = [0.0; 12];
        for (n_lines, depth, steps) in
            [(3, 5, (5, 1)), (2, 2, (4, 3)), (usize::MAX, 2, (usize::MAX, 1)), (4, 4, (1, 4))]
        {
            assert!(Factor::new(&numbers, n_lines, depth, steps).is_err(), "{n_lines} {depth} {steps:?}");
        }
        let factor = |n_lines, depth| Factor::new(&numbers, n_lines, depth, (depth, 1)).expect("there are enough");
        for (a, b, len, step) in [((2, 3), (2, 4), 4, 2), ((2, 3), (2, 3), 3, 2), ((2, 3), (2, 3), 9, 1)] {
            assert!(Product::new(factor(a.0, a.1), factor(b.0, b.1), &mut vec![0.0; len], step, false, 1).is_err());
        }
    }
}
