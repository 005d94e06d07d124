//! AMX in software, so that its kernels are tested on machines without it: an illegal instruction raises a signal, and
//! the handler here decodes it, executes it on tiles of the thread's own, and goes on behind it.
//!
//! Decoding and results follow the manual (Intel's *Software Developer's Manual*, volume 2, the entries of each
//! instruction): configuration checks, zeroing of what lies beyond a tile, denormals as zeros and rounding to nearest
//! even in `tdpbf16ps`, wrapping sums in the integer products. Whatever the manual makes a fault ends the process. Where
//! the processor has AMX, nothing is installed, and the same tests run on it.

use std::{arch::asm, cell::UnsafeCell, ffi::c_void, sync::OnceLock};

use super::super::amx::Amx;

/// The registers of one thread.
struct State {
    palette: u8,
    start_row: u8,
    rows: [usize; 8],
    /// Bytes of a row.
    bytes: [usize; 8],
    tiles: [[[u8; 64]; 16]; 8],
}

impl State {
    const INITIAL: State = State { palette: 0, start_row: 0, rows: [0; 8], bytes: [0; 8], tiles: [[[0; 64]; 16]; 8] };
}

thread_local! {
    static STATE: UnsafeCell<State> = const { UnsafeCell::new(State::INITIAL) };
}

/// Makes AMX executable in this process where it is not; false where that is not possible.
pub(in crate::cpu) fn provide() -> bool {
    static PROVIDED: OnceLock<bool> = OnceLock::new();
    *PROVIDED.get_or_init(|| {
        // SAFETY: the handler has the signature that SA_SIGINFO asks for, and touches nothing but the faulting
        // thread's registers and tiles.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()) == 0
        }
    })
}

/// # Safety
/// Called by the operating system alone.
unsafe extern "C" fn handle(_signal: i32, _info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: SA_SIGINFO makes the context one of this type; it is valid until the handler returns.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: an instruction that the processor has just read; the longest of ours has eleven bytes, and code is
    // followed by more code.
    let code: [u8; 11] = std::array::from_fn(|i| unsafe { *at.add(i) });
    let done = STATE.with(|state| {
        // SAFETY: the thread's own state, and this handler does not interrupt itself: it contains no such instruction.
        let state = unsafe { &mut *state.get() };
        Instruction::decode(&code, registers).and_then(|instruction| {
            // SAFETY: addresses are those that the program gave the instruction.
            unsafe { state.execute(&instruction) }?;
            Some(instruction.length)
        })
    });
    match done {
        Some(length) => registers[libc::REG_RIP as usize] += length as i64,
        None => {
            const MESSAGE: &[u8] = b"an illegal instruction that is no valid AMX one\n";
            // SAFETY: writes a constant, and puts the default back: the instruction faults again and ends the process.
            unsafe {
                libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len());
                libc::signal(libc::SIGILL, libc::SIG_DFL);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operation {
    LoadConfig,
    StoreConfig,
    Release,
    Zero,
    Load,
    Store,
    /// `tdpbf16ps`.
    Floats,
    /// `tdpb…d`: whether A's and B's bytes are signed.
    Bytes(bool, bool),
}

#[derive(Debug, Clone, Copy)]
struct Instruction {
    operation: Operation,
    /// Sums, or the tile loaded or stored.
    tile: usize,
    a: usize,
    b: usize,
    address: usize,
    stride: isize,
    length: usize,
}

impl Instruction {
    /// Reads a three-byte VEX instruction of map 0F38.
    fn decode(code: &[u8; 11], registers: &[i64; 23]) -> Option<Instruction> {
        // R, X and B are stored inverted; W and L must be zero.
        let (r, x, b) = (code[1] >> 7 ^ 1, code[1] >> 6 & 1 ^ 1, code[1] >> 5 & 1 ^ 1);
        if code[0] != 0xc4 || code[1] & 31 != 2 || code[2] & 0x84 != 0 || r != 0 {
            return None;
        }
        let (vvvv, prefix) = (code[2] >> 3 & 15 ^ 15, code[2] & 3);
        let (form, reg, rm) = (code[4] >> 6, code[4] >> 3 & 7, code[4] & 7);
        let registers_only = form == 3;
        let operation = match (code[3], prefix, registers_only) {
            (0x49, 0, false) if reg == 0 => Operation::LoadConfig,
            (0x49, 1, false) if reg == 0 => Operation::StoreConfig,
            (0x49, 0, true) if code[4] == 0xc0 => Operation::Release,
            (0x49, 3, true) if rm == 0 => Operation::Zero,
            (0x4b, 1 | 3, false) if rm == 4 => Operation::Load,
            (0x4b, 2, false) if rm == 4 => Operation::Store,
            (0x5c, 2, true) => Operation::Floats,
            (0x5e, 3, true) => Operation::Bytes(true, true),
            (0x5e, 2, true) => Operation::Bytes(true, false),
            (0x5e, 1, true) => Operation::Bytes(false, true),
            (0x5e, 0, true) => Operation::Bytes(false, false),
            _ => return None,
        };
        let product = matches!(operation, Operation::Floats | Operation::Bytes(..));
        // Only products have a third operand; there are eight tiles.
        if (product && (vvvv > 7 || b != 0)) || (!product && vvvv != 0) {
            return None;
        }
        let mut instruction =
            Instruction { operation, tile: reg.into(), a: rm.into(), b: vvvv.into(), address: 0, stride: 0, length: 5 };
        if !registers_only {
            instruction.locate(code, registers, (x, b))?;
        }
        Some(instruction)
    }

    /// The memory operand: base, for tiles index and scale (the stride of their rows), displacement.
    fn locate(&mut self, code: &[u8; 11], registers: &[i64; 23], (x, b): (u8, u8)) -> Option<()> {
        let (form, rm) = (code[4] >> 6, code[4] & 7);
        let mut base = rm;
        if rm == 4 {
            let sib = code[5];
            self.length += 1;
            base = sib & 7;
            let index = sib >> 3 & 7 | x << 3;
            if index != 4 {
                self.stride = (register(registers, index) << (sib >> 6)) as isize;
            }
        }
        let at = self.length;
        let displacement = match form {
            0 if base == 5 => return None,
            0 => 0,
            1 => i64::from(code[at] as i8),
            _ => i64::from(i32::from_le_bytes([code[at], code[at + 1], code[at + 2], code[at + 3]])),
        };
        self.length += [0, 1, 4][usize::from(form)];
        self.address = register(registers, base | b << 3).wrapping_add(displacement) as usize;
        // The configuration's operand is one address.
        if !matches!(self.operation, Operation::Load | Operation::Store) {
            self.address = self.address.wrapping_add_signed(self.stride);
        }
        Some(())
    }
}

/// A general register by its number in instructions.
fn register(registers: &[i64; 23], number: u8) -> i64 {
    const ORDER: [i32; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    registers[ORDER[usize::from(number)] as usize]
}

impl State {
    /// Executes one instruction; `None` where it faults.
    ///
    /// # Safety
    /// Its memory must be accessible as the instruction's would.
    unsafe fn execute(&mut self, i: &Instruction) -> Option<()> {
        match i.operation {
            Operation::LoadConfig => {
                // SAFETY: the caller's promise, for 64 bytes.
                let config = unsafe { (i.address as *const [u8; 64]).read_unaligned() };
                *self = State::configured(&config)?;
            }
            Operation::StoreConfig => {
                // SAFETY: the caller's promise, for 64 bytes.
                unsafe { (i.address as *mut [u8; 64]).write_unaligned(self.config()) };
            }
            Operation::Release => *self = State::INITIAL,
            Operation::Zero => {
                self.need(i.tile)?;
                self.tiles[i.tile] = [[0; 64]; 16];
            }
            Operation::Load => {
                self.need(i.tile)?;
                let mut tile = [[0; 64]; 16];
                for (row, to) in tile.iter_mut().enumerate().take(self.rows[i.tile]) {
                    let from = i.address.wrapping_add_signed(i.stride.wrapping_mul(row as isize)) as *const u8;
                    // SAFETY: the caller's promise, for the row's bytes.
                    unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), self.bytes[i.tile]) };
                }
                self.tiles[i.tile] = tile;
            }
            Operation::Store => {
                self.need(i.tile)?;
                for (row, from) in self.tiles[i.tile].iter().enumerate().take(self.rows[i.tile]) {
                    let to = i.address.wrapping_add_signed(i.stride.wrapping_mul(row as isize)) as *mut u8;
                    // SAFETY: the caller's promise, for the row's bytes.
                    unsafe { from.as_ptr().copy_to_nonoverlapping(to, self.bytes[i.tile]) };
                }
            }
            Operation::Floats => self.multiply(i, floats)?,
            Operation::Bytes(a_signed, b_signed) => {
                self.multiply(i, |a, b, sum| bytes(a, b, sum, a_signed, b_signed))?
            }
        }
        Some(())
    }

    fn configured(config: &[u8; 64]) -> Option<State> {
        let mut state = State { palette: config[0], start_row: config[1], ..State::INITIAL };
        if state.palette == 0 {
            return Some(State::INITIAL);
        }
        let reserved = [&config[2..16], &config[32..48], &config[56..64]].into_iter().flatten();
        if state.palette != 1 || state.start_row != 0 || reserved.clone().any(|&byte| byte != 0) {
            return None;
        }
        for tile in 0..8 {
            let bytes = usize::from(u16::from_le_bytes([config[16 + 2 * tile], config[17 + 2 * tile]]));
            let rows = usize::from(config[48 + tile]);
            if bytes > 64 || rows > 16 || (bytes == 0) != (rows == 0) {
                return None;
            }
            (state.bytes[tile], state.rows[tile]) = (bytes, rows);
        }
        Some(state)
    }

    fn config(&self) -> [u8; 64] {
        let mut config = [0; 64];
        (config[0], config[1]) = (self.palette, self.start_row);
        for tile in 0..8 {
            config[16 + 2 * tile] = self.bytes[tile] as u8;
            config[48 + tile] = self.rows[tile] as u8;
        }
        config
    }

    /// `None` unless the tile is configured.
    fn need(&self, tile: usize) -> Option<()> {
        (self.palette == 1 && self.rows[tile] > 0).then_some(())
    }

    /// A product of tiles: `line` adds words `a` of one row of A times rows `b` of B to a row of sums.
    fn multiply(&mut self, i: &Instruction, line: impl Fn(&[u32], &[[u32; 16]], &mut [u32])) -> Option<()> {
        let (c, a, b) = (i.tile, i.a, i.b);
        for tile in [c, a, b] {
            self.need(tile)?;
            if !self.bytes[tile].is_multiple_of(4) {
                return None;
            }
        }
        let fits = self.rows[c] == self.rows[a] && self.bytes[a] / 4 == self.rows[b] && self.bytes[c] == self.bytes[b];
        if !fits || c == a || c == b || a == b {
            return None;
        }
        let words = |row: &[u8; 64]| -> [u32; 16] {
            std::array::from_fn(|i| u32::from_le_bytes([row[4 * i], row[4 * i + 1], row[4 * i + 2], row[4 * i + 3]]))
        };
        let right: [[u32; 16]; 16] = std::array::from_fn(|row| words(&self.tiles[b][row]));
        let (depth, columns) = (self.bytes[a] / 4, self.bytes[c] / 4);
        for row in 0..16 {
            let mut sums = [0; 16];
            if row < self.rows[c] {
                sums = words(&self.tiles[c][row]);
                let left = words(&self.tiles[a][row]);
                line(&left[..depth], &right[..depth], &mut sums[..columns]);
                sums[columns..].fill(0);
            }
            for (to, sum) in self.tiles[c][row].chunks_exact_mut(4).zip(sums) {
                to.copy_from_slice(&sum.to_le_bytes());
            }
        }
        Some(())
    }
}

/// `tdpbf16ps` for one row: even and odd numbers are summed apart, then added, then added to what was there.
fn floats(a: &[u32], b: &[[u32; 16]], sums: &mut [u32]) {
    /// A denormal counts as zero.
    fn flush(x: f32) -> f32 {
        if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
    }
    let half = |word: u32, odd: bool| flush(f32::from_bits(if odd { word & 0xffff_0000 } else { word << 16 }));
    for (column, sum) in sums.iter_mut().enumerate() {
        let (mut even, mut odd) = (0f32, 0f32);
        for (a, b) in a.iter().zip(b) {
            even = flush(half(*a, false).mul_add(half(b[column], false), even));
            odd = flush(half(*a, true).mul_add(half(b[column], true), odd));
        }
        *sum = flush(flush(f32::from_bits(*sum)) + flush(even + odd)).to_bits();
    }
}

/// The integer products for one row.
fn bytes(a: &[u32], b: &[[u32; 16]], sums: &mut [u32], a_signed: bool, b_signed: bool) {
    let byte = |word: u32, n: usize, signed: bool| {
        let byte = word.to_le_bytes()[n];
        if signed { i32::from(byte as i8) } else { i32::from(byte) }
    };
    for (column, sum) in sums.iter_mut().enumerate() {
        for (a, b) in a.iter().zip(b) {
            for n in 0..4 {
                let product = byte(*a, n, a_signed) * byte(b[column], n, b_signed);
                *sum = sum.wrapping_add(product as u32);
            }
        }
    }
}

/// A configuration of eight tiles.
#[repr(C, align(64))]
struct Config([u8; 64]);

impl Config {
    fn new(tiles: [(usize, usize); 8]) -> Config {
        let mut config = [0; 64];
        config[0] = 1;
        for (tile, (rows, bytes)) in tiles.into_iter().enumerate() {
            config[16 + 2 * tile] = bytes as u8;
            config[48 + tile] = rows as u8;
        }
        Config(config)
    }
}

/// `$instruction tmm0, tmm1, tmm2` on a 5 × 7 result of 3 words each, with odd addressing on the way.
macro_rules! product {
    ($instruction:literal, $a:expr, $b:expr, $c:expr) => {{
        let config = Config::new([(5, 28), (5, 12), (3, 28), (2, 8), (0, 0), (0, 0), (0, 0), (16, 64)]);
        let (a, b, c): (&[u32; 15], &[u32; 21], &mut [u32; 35]) = ($a, $b, $c);
        // SAFETY: the tests' provider sees to the instructions; tiles and memory are as the configuration says.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                "tileloadd tmm0, [{c} + {seven}*4]",
                "tileloadd tmm1, [{a} + {three}*4 - 0]",
                "tileloadd tmm2, [{b} + {bytes}*1 - 1000]",
                concat!($instruction, " tmm0, tmm1, tmm2"),
                "tilestored [{c} + {seven}*4], tmm0",
                "tilezero tmm0",
                "tilerelease",
                config = in(reg) &raw const config,
                a = in(reg) a.as_ptr(),
                b = in(reg) b.as_ptr().wrapping_byte_add(1000),
                c = in(reg) c.as_mut_ptr(),
                three = in(reg) 3usize,
                seven = in(reg) 7usize,
                bytes = in(reg) 28usize,
                options(nostack),
            );
        }
    }};
}

fn words<const N: usize>(numbers: &mut super::Numbers) -> [u32; N] {
    std::array::from_fn(|_| numbers.bits() as u32)
}

#[test]
fn integer_products_of_tiles_are_exact() {
    if Amx::detect().is_none() {
        println!("skipped: AMX, which this machine can neither execute nor emulate");
        return;
    }
    let mut numbers = super::Numbers::new(41);
    let (a, b, begin): ([u32; 15], [u32; 21], [u32; 35]) =
        (words(&mut numbers), words(&mut numbers), words(&mut numbers));
    let wanted = |a_signed: bool, b_signed: bool| {
        let mut sums = begin;
        for row in 0..5 {
            for column in 0..7 {
                for k in 0..12 {
                    let x = a[row * 3 + k / 4].to_le_bytes()[k % 4];
                    let y = b[k / 4 * 7 + column].to_le_bytes()[k % 4];
                    let x = if a_signed { i64::from(x as i8) } else { i64::from(x) };
                    let y = if b_signed { i64::from(y as i8) } else { i64::from(y) };
                    let sum = &mut sums[row * 7 + column];
                    *sum = (i64::from(*sum) + x * y) as u32;
                }
            }
        }
        sums
    };
    let mut c = begin;
    product!("tdpbssd", &a, &b, &mut c);
    assert_eq!(c, wanted(true, true));
    let mut c = begin;
    product!("tdpbsud", &a, &b, &mut c);
    assert_eq!(c, wanted(true, false));
    let mut c = begin;
    product!("tdpbusd", &a, &b, &mut c);
    assert_eq!(c, wanted(false, true));
    let mut c = begin;
    product!("tdpbuud", &a, &b, &mut c);
    assert_eq!(c, wanted(false, false));
}

#[test]
fn float_products_of_tiles_round_and_flush_as_the_manual_says() {
    if Amx::detect().is_none() {
        println!("skipped: AMX, which this machine can neither execute nor emulate");
        return;
    }
    let pair = |low: f32, high: f32| low.to_bits() >> 16 | high.to_bits() & 0xffff_0000;
    let (mut a, mut b, mut c) = ([0; 15], [0; 21], [0u32; 35]);
    // Row 0: small numbers, exact. Row 1: a sum that rounds to even. Row 2: denormals. Row 3: not a number.
    a[0] = pair(1.5, -2.0);
    a[1] = pair(3.0, 0.25);
    a[3] = pair(1.0, 0.0);
    a[6] = pair(f32::from_bits(1 << 16), 1.0);
    a[9] = pair(f32::NAN, 0.0);
    b[0] = pair(4.0, 1.0);
    b[7] = pair(-1.0, 8.0);
    // Half a unit in the last place of the sum it is added to: ties go to the even neighbour.
    b[1] = pair(f32::EPSILON / 2.0, 0.0);
    c[7 + 1] = 1.0f32.to_bits();
    c[14] = 1f32.to_bits();
    c[14 + 1] = 1; // A denormal sum counts as zero.
    product!("tdpbf16ps", &a, &b, &mut c);
    let found = c.map(f32::from_bits);
    assert_eq!(found[0], 1.5 * 4.0 - 2.0 - 3.0 + 2.0);
    assert_eq!(found[8], 1.0);
    assert_eq!(found[14], 2.0);
    assert_eq!(c[15], 0);
    assert!(found[21].is_nan());
    assert_eq!(found[28..], [0.0; 7]);
}

#[test]
fn a_thread_gets_its_tiles_back() {
    let Some(amx) = Amx::detect() else {
        println!("skipped: AMX, which this machine can neither execute nor emulate");
        return;
    };
    println!("AMX is {}", if Amx::native() { "the processor's own" } else { "emulated" });
    let config = Config::new([(3, 12); 8]);
    let mut after = Config([0; 64]);
    // SAFETY: 64 bytes are read.
    unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const config, options(nostack)) };
    let mut tiles = amx.tiles();
    let (a, b, mut c) = ([0u32; 16], [0u32; 256], [7f32; 16]);
    // SAFETY: one row of one step, sixteen columns.
    unsafe {
        tiles.multiply(&super::super::pairs::PairTile {
            rows: 1,
            columns: 16,
            pairs: 16,
            a: a.as_ptr(),
            a_rows: 1,
            b: b.as_ptr(),
            b_stride: 16,
            index: std::ptr::null(),
            c: c.as_mut_ptr(),
            c_stride: 16,
            start: super::super::tile::Start::Add,
        });
    }
    assert_eq!(c, [7.0; 16]);
    drop(tiles);
    // SAFETY: 64 bytes are written.
    unsafe { asm!("sttilecfg [{0}]", "tilerelease", in(reg) &raw mut after, options(nostack)) };
    assert_eq!(after.0, config.0);
}
