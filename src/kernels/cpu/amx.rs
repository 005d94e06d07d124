//! AMX: products of bf16 in tiles of 16 rows by 16 columns by 32 inputs, by inline assembly (the compiler has no stable
//! functions for it).
//!
//! Nothing here depends on the compiler leaving tiles alone between two pieces of assembly: each piece takes its sums
//! from memory and puts them back there. A thread's tiles are set up per [`Tiles`], whose end restores the set-up it
//! found, so that other code on the thread, candle's own products say, does not notice.
//!
//! Correct on every machine that runs the tests: where there is no AMX, the tests execute these instructions in
//! software (see `tests/amx.rs`). Its speed has not been measured.

use std::{
    arch::{asm, x86_64::__cpuid_count},
    marker::PhantomData,
    sync::OnceLock,
};

use super::{layout::WORDS, pairs::PairTile, tile::Start};

/// Proof that AMX with bf16 exists here, and that this process may use it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amx(());

impl Amx {
    /// Looks for the instructions and asks the operating system for the registers, once per process.
    pub(super) fn detect() -> Option<Amx> {
        static THERE: OnceLock<bool> = OnceLock::new();
        let there = *THERE.get_or_init(|| {
            let there = in_processor() && permitted();
            #[cfg(all(test, target_os = "linux"))]
            let there = there || super::tests::amx::provide();
            there
        });
        there.then_some(Amx(()))
    }

    /// Whether the processor itself executes the instructions.
    #[cfg(all(test, target_os = "linux"))]
    pub(super) fn native() -> bool {
        in_processor() && permitted()
    }

    /// Four products of whole tiles, so many times, on numbers in registers.
    pub(super) fn spin(self, rounds: usize) {
        let shape = Shape::of(2 * WORDS);
        // SAFETY: `self` proves the instructions; tiles are set up and given back within.
        unsafe {
            asm!(
                "ldtilecfg [{shape}]",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                "tilerelease",
                shape = in(reg) &raw const shape,
                rounds = inout(reg) rounds.max(1) => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }

    /// The calling thread's tiles.
    pub(super) fn tiles(self) -> Tiles {
        let mut found = Shape::NONE;
        // SAFETY: `self` proves the instructions; 64 bytes are written.
        unsafe { asm!("sttilecfg [{0}]", in(reg) &raw mut found, options(nostack, preserves_flags)) };
        Tiles { found, rows: 0, offsets: Vec::new(), _thread: PhantomData }
    }
}

/// AMX tiles, bf16 and 8-bit integers, and an operating system that saves the registers.
fn in_processor() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const TILE_STATE: u32 = 1 << 17 | 1 << 18;
    if __cpuid_count(0, 0).eax < 7 || __cpuid_count(1, 0).ecx & OSXSAVE == 0 {
        return false;
    }
    let state: u32;
    // SAFETY: OSXSAVE says that the instruction exists; it writes two registers.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") state, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    __cpuid_count(7, 0).edx & BF16_TILE_INT8 == BF16_TILE_INT8 && state & TILE_STATE == TILE_STATE
}

/// Asks for the registers: they make a thread's saved state larger by 8 KiB, which a process must want.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call changes nothing but what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// What `ldtilecfg` reads: palette 1 has eight tiles of up to 16 rows of 64 bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row, per tile.
    bytes: [u16; 16],
    /// Rows, per tile.
    rows: [u8; 16],
}

impl Shape {
    /// No tiles.
    const NONE: Shape = Shape { palette: 0, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };

    /// Tiles 0 to 3 are sums, 4 and 5 rows of A, 6 and 7 columns of B; 0, 1 and 4 for the first 16 rows, 2, 3 and 5
    /// for the rest.
    fn of(rows: usize) -> Shape {
        let (first, rest) = (rows.min(WORDS) as u8, rows.saturating_sub(WORDS) as u8);
        let mut shape = Shape { palette: 1, ..Shape::NONE };
        for (tile, rows) in [first, first, rest, rest, first, rest, WORDS as u8, WORDS as u8].into_iter().enumerate() {
            shape.rows[tile] = rows;
            shape.bytes[tile] = if rows > 0 { 64 } else { 0 };
        }
        shape
    }
}

/// The calling thread's tiles while it multiplies.
pub(super) struct Tiles {
    /// The set-up to restore.
    found: Shape,
    /// Rows that the tiles are set up for; 0 before the first.
    rows: usize,
    /// Where B's steps begin, in bytes; kept for its memory.
    offsets: Vec<u64>,
    _thread: PhantomData<*const ()>,
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if self.rows == 0 {
            return;
        }
        // SAFETY: a `Tiles` exists only where the instructions do; 64 bytes are read.
        unsafe {
            if self.found.palette == 0 {
                asm!("tilerelease", options(nomem, nostack, preserves_flags));
            } else {
                asm!("ldtilecfg [{0}]", in(reg) &raw const self.found, options(nostack, readonly, preserves_flags));
            }
        }
    }
}

/// One piece of assembly: the tiles named first are loaded from C, summed up over all steps, and stored again.
macro_rules! sums {
    ($run:expr, [$($load:literal)*], [$($step:literal)*], [$($store:literal)*]) => {
        asm!(
            $($load,)*
            "2:",
            "mov {b}, [{offsets}]",
            "add {b}, {b_start}",
            $($step,)*
            "add {a}, {a_step}",
            "add {offsets}, 8",
            "dec {steps}",
            "jnz 2b",
            $($store,)*
            a = inout(reg) $run.a => _,
            a_step = in(reg) $run.a_step,
            b_start = in(reg) $run.b,
            b_stride = in(reg) $run.b_stride,
            b = out(reg) _,
            offsets = inout(reg) $run.offsets => _,
            steps = inout(reg) $run.steps => _,
            c = in(reg) $run.c,
            rest = in(reg) $run.rest,
            c_stride = in(reg) $run.c_stride,
            line = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// What a piece of assembly works on; strides in bytes.
struct Run {
    a: *const u32,
    a_step: usize,
    b: *const u32,
    b_stride: usize,
    offsets: *const u64,
    steps: usize,
    c: *mut f32,
    /// C's row 16.
    rest: *mut f32,
    c_stride: usize,
}

impl Tiles {
    /// Computes the tile.
    ///
    /// # Safety
    /// As for [`super::pairs::Session::tile`]; B holds whole steps.
    pub(super) unsafe fn multiply(&mut self, tile: &PairTile) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.rows != tile.rows {
                let shape = Shape::of(tile.rows);
                asm!("ldtilecfg [{0}]", in(reg) &raw const shape, options(nostack, readonly, preserves_flags));
                self.rows = tile.rows;
            }
            self.begin(tile);
            let row = (tile.b_stride * 4) as u64;
            self.offsets.clear();
            for first in (0..tile.pairs).step_by(WORDS) {
                let at = if tile.index.is_null() { first as u64 } else { u64::from(*tile.index.add(first)) };
                self.offsets.push(at * row);
            }
            if self.offsets.is_empty() {
                return;
            }
            let mut column = 0;
            while column < tile.columns {
                let c = tile.c.add(column);
                let run = Run {
                    a: tile.a,
                    a_step: tile.a_rows * 64,
                    b: tile.b.add(column),
                    b_stride: tile.b_stride * 4,
                    offsets: self.offsets.as_ptr(),
                    steps: self.offsets.len(),
                    c,
                    rest: c.wrapping_add(WORDS * tile.c_stride),
                    c_stride: tile.c_stride * 4,
                };
                let wide = tile.columns - column >= 32;
                match (tile.rows > WORDS, wide) {
                    (true, true) => two_by_two(run),
                    (false, true) => one_by_two(run),
                    (true, false) => two_by_one(run),
                    (false, false) => one_by_one(run),
                }
                column += if wide { 32 } else { 16 };
            }
        }
    }

    /// Brings C to what the sums start from.
    ///
    /// # Safety
    /// As for [`Tiles::multiply`].
    unsafe fn begin(&self, tile: &PairTile) {
        for r in 0..tile.rows {
            // SAFETY: the caller's promise.
            unsafe {
                let row = std::slice::from_raw_parts_mut(tile.c.add(r * tile.c_stride), tile.columns);
                match tile.start {
                    Start::Zero => row.fill(0.0),
                    Start::Add => {}
                    Start::Scale(factors) => {
                        let factor = *factors.add(r);
                        row.iter_mut().for_each(|x| *x *= factor);
                    }
                }
            }
        }
    }
}

/// # Safety
/// (of the four below) As for [`Tiles::multiply`], with tiles set up for as many rows and at least one step.
unsafe fn two_by_two(run: Run) {
    // SAFETY: the caller's promise.
    unsafe {
        sums!(
            run,
            ["tileloadd tmm0, [{c} + {c_stride}*1]"
             "tileloadd tmm1, [{c} + {c_stride}*1 + 64]"
             "tileloadd tmm2, [{rest} + {c_stride}*1]"
             "tileloadd tmm3, [{rest} + {c_stride}*1 + 64]"],
            ["tileloadd tmm4, [{a} + {line}*1]"
             "tileloadd tmm6, [{b} + {b_stride}*1]"
             "tdpbf16ps tmm0, tmm4, tmm6"
             "tileloadd tmm7, [{b} + {b_stride}*1 + 64]"
             "tdpbf16ps tmm1, tmm4, tmm7"
             "tileloadd tmm5, [{a} + {line}*1 + 1024]"
             "tdpbf16ps tmm2, tmm5, tmm6"
             "tdpbf16ps tmm3, tmm5, tmm7"],
            ["tilestored [{c} + {c_stride}*1], tmm0"
             "tilestored [{c} + {c_stride}*1 + 64], tmm1"
             "tilestored [{rest} + {c_stride}*1], tmm2"
             "tilestored [{rest} + {c_stride}*1 + 64], tmm3"]
        );
    }
}

unsafe fn one_by_two(run: Run) {
    // SAFETY: the caller's promise.
    unsafe {
        sums!(
            run,
            ["/* {rest} */"
             "tileloadd tmm0, [{c} + {c_stride}*1]"
             "tileloadd tmm1, [{c} + {c_stride}*1 + 64]"],
            ["tileloadd tmm4, [{a} + {line}*1]"
             "tileloadd tmm6, [{b} + {b_stride}*1]"
             "tdpbf16ps tmm0, tmm4, tmm6"
             "tileloadd tmm7, [{b} + {b_stride}*1 + 64]"
             "tdpbf16ps tmm1, tmm4, tmm7"],
            ["tilestored [{c} + {c_stride}*1], tmm0"
             "tilestored [{c} + {c_stride}*1 + 64], tmm1"]
        );
    }
}

unsafe fn two_by_one(run: Run) {
    // SAFETY: the caller's promise.
    unsafe {
        sums!(
            run,
            ["tileloadd tmm0, [{c} + {c_stride}*1]"
             "tileloadd tmm2, [{rest} + {c_stride}*1]"],
            ["tileloadd tmm4, [{a} + {line}*1]"
             "tileloadd tmm6, [{b} + {b_stride}*1]"
             "tdpbf16ps tmm0, tmm4, tmm6"
             "tileloadd tmm5, [{a} + {line}*1 + 1024]"
             "tdpbf16ps tmm2, tmm5, tmm6"],
            ["tilestored [{c} + {c_stride}*1], tmm0"
             "tilestored [{rest} + {c_stride}*1], tmm2"]
        );
    }
}

unsafe fn one_by_one(run: Run) {
    // SAFETY: the caller's promise.
    unsafe {
        sums!(
            run,
            ["/* {rest} */"
             "tileloadd tmm0, [{c} + {c_stride}*1]"],
            ["tileloadd tmm4, [{a} + {line}*1]"
             "tileloadd tmm6, [{b} + {b_stride}*1]"
             "tdpbf16ps tmm0, tmm4, tmm6"],
            ["tilestored [{c} + {c_stride}*1], tmm0"]
        );
    }
}
