//! The register tile every product is made of: `C[r, c] (+)= Σ_k A[k, r] · B[k, c]` for a few rows and some columns.
//!
//! Each element of C is one chain of multiply-adds in the order of k, whatever the tile's shape, so that a row's bits
//! never depend on which rows came with it or on how k was cut into pieces.

use super::{path::Checked, simd::Simd};

/// What a tile starts from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start {
    /// Zero.
    Zero,
    /// What C holds.
    Add,
    /// What C holds, row r times the r-th factor.
    Scale(*const f32),
}

/// One tile. Rows run along A, columns along B; all strides count floats.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    /// 1 to [`Checked::tile_rows`].
    pub rows: usize,
    /// A multiple of 16.
    pub columns: usize,
    /// Length of the sums.
    pub k: usize,
    /// `A[k, r]` is at `a + k·a_stride + r`.
    pub a: *const f32,
    pub a_stride: usize,
    /// `B[k, c]` is at `b + k·b_stride + c`, or at `b + index[k]·b_stride + c` where an index is given.
    pub b: *const f32,
    pub b_stride: usize,
    /// Null, or `k` row numbers of B.
    pub index: *const u32,
    /// `C[r, c]` is at `c + r·c_stride + c`.
    pub c: *mut f32,
    pub c_stride: usize,
    pub start: Start,
}

impl Checked {
    /// Computes the tile.
    ///
    /// # Safety
    /// Every element of A and B that the shape names must be readable, every element of C writable and not written by
    /// another thread meanwhile; `rows` and `columns` must be within their bounds.
    pub(super) unsafe fn tile(self, tile: &Tile) {
        debug_assert!(tile.rows >= 1 && tile.rows <= self.tile_rows() && tile.columns.is_multiple_of(16));
        // SAFETY: the caller's promise; the vector types prove their instructions.
        unsafe {
            match self {
                Checked::Portable(simd) => portable(simd, tile),
                #[cfg(target_arch = "x86_64")]
                Checked::Avx2(simd) => avx2(simd, tile),
                #[cfg(target_arch = "x86_64")]
                Checked::Avx512(simd) => avx512(simd, tile),
                #[cfg(not(target_arch = "x86_64"))]
                Checked::Avx2(simd) => match simd.0 {},
                #[cfg(not(target_arch = "x86_64"))]
                Checked::Avx512(simd) => match simd.0 {},
            }
        }
    }
}

/// Cuts the columns into vectors and picks the kernel made for this number of rows.
macro_rules! kernels {
    ($(#[$attribute:meta])* $name:ident, $simd:ty, [$($rows:literal)*]) => {
        $(#[$attribute])*
        unsafe fn $name(simd: $simd, tile: &Tile) {
            let mut column = 0;
            while column < tile.columns {
                // SAFETY: the caller's promise, for columns `column ..` of the tile.
                unsafe {
                    if tile.columns - column >= 2 * <$simd>::LANES {
                        match tile.rows {
                            $($rows => kernel::<_, $rows, 2>(simd, tile, column),)*
                            _ => unreachable!("tiles have at most as many rows as the path allows"),
                        }
                        column += 2 * <$simd>::LANES;
                    } else {
                        match tile.rows {
                            $($rows => kernel::<_, $rows, 1>(simd, tile, column),)*
                            _ => unreachable!("tiles have at most as many rows as the path allows"),
                        }
                        column += <$simd>::LANES;
                    }
                }
            }
        }
    };
}

use super::simd::{Avx2, Avx512, Portable};
kernels!(portable, Portable, [1 2 3 4]);
#[cfg(target_arch = "x86_64")]
kernels!(
    #[target_feature(enable = "avx2,fma,f16c")]
    avx2, Avx2, [1 2 3 4 5 6]);
// 12 rows of 2 vectors fill 24 of the 32 registers: enough independent chains to hide the latency of the multiply-add,
// and 14 loads for 24 of them.
#[cfg(target_arch = "x86_64")]
kernels!(
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    avx512, Avx512, [1 2 3 4 5 6 7 8 9 10 11 12]);

#[inline(always)]
unsafe fn kernel<S: Simd, const ROWS: usize, const VECTORS: usize>(s: S, tile: &Tile, column: usize) {
    // SAFETY: (whole body) offsets stay within what the caller promised of the tile.
    unsafe {
        let mut sums = [[s.splat(0.0); VECTORS]; ROWS];
        let c = tile.c.add(column);
        match tile.start {
            Start::Zero => {}
            Start::Add => {
                for (r, row) in sums.iter_mut().enumerate() {
                    for (v, sum) in row.iter_mut().enumerate() {
                        *sum = s.load(c.add(r * tile.c_stride + v * S::LANES));
                    }
                }
            }
            Start::Scale(factors) => {
                for (r, row) in sums.iter_mut().enumerate() {
                    let factor = s.splat(*factors.add(r));
                    for (v, sum) in row.iter_mut().enumerate() {
                        *sum = s.mul(factor, s.load(c.add(r * tile.c_stride + v * S::LANES)));
                    }
                }
            }
        }
        let mut a = tile.a;
        let b = tile.b.add(column);
        if tile.index.is_null() {
            let mut b = b;
            for _ in 0..tile.k {
                step::<S, ROWS, VECTORS>(s, &mut sums, a, b);
                a = a.add(tile.a_stride);
                b = b.add(tile.b_stride);
            }
        } else {
            for k in 0..tile.k {
                let row = *tile.index.add(k) as usize;
                step::<S, ROWS, VECTORS>(s, &mut sums, a, b.add(row * tile.b_stride));
                a = a.add(tile.a_stride);
            }
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                s.store(c.add(r * tile.c_stride + v * S::LANES), *sum);
            }
        }
    }
}

#[inline(always)]
unsafe fn step<S: Simd, const ROWS: usize, const VECTORS: usize>(
    s: S,
    sums: &mut [[S::V; VECTORS]; ROWS],
    a: *const f32,
    b: *const f32,
) {
    // SAFETY: the caller's promise for one k.
    unsafe {
        let mut columns = [s.splat(0.0); VECTORS];
        for (v, column) in columns.iter_mut().enumerate() {
            *column = s.load(b.add(v * S::LANES));
        }
        for (r, row) in sums.iter_mut().enumerate() {
            let x = s.splat(*a.add(r));
            for (sum, column) in row.iter_mut().zip(columns) {
                *sum = s.fma(x, column, *sum);
            }
        }
    }
}
