//! The sizes that packed matrices, packed rows and register tiles agree on.

use std::ops::Range;

/// Output columns of a panel.
pub(super) const PANEL: usize = 32;
/// Inputs of one piece of a panel: what is decoded at a time. A multiple of every format's block.
pub(super) const DEPTH: usize = 256;
/// Inputs of a strip of quantised numbers.
pub(super) const STRIP: usize = 32;
/// Words of a packed row that lie side by side: a tile row of 64 bytes. A word holds two bf16 or four bytes.
pub(super) const WORDS: usize = 16;

/// Rows `0 .. rows` cut into blocks of at most `most`, sizes as equal as possible; gives block `index`.
pub(super) fn row_block(rows: usize, most: usize, index: usize) -> Range<usize> {
    let blocks = rows.div_ceil(most).max(1);
    rows * index / blocks..rows * (index + 1) / blocks
}
