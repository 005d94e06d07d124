//! The soft embedding: probabilities times the table, accumulated tile by tile.

mod bytes;
mod wide;

use std::ops::Range;

use self::{bytes::ByteSoft, wide::WideSoft};
use super::super::{bytes::Vnni, pack::PackedMatrix, pairs::Pairs, path::Checked};

/// Sums of `exp(z − max)·table` per row.
pub(super) enum Soft<'a> {
    /// In f32 or bf16.
    Wide(WideSoft<'a>),
    /// In bytes, where the table is.
    Bytes(ByteSoft<'a>),
}

impl<'a> Soft<'a> {
    /// Nothing yet, of `rows` rows.
    pub(super) fn new(
        path: Checked,
        pairs: Option<Pairs>,
        bytes: Option<Vnni>,
        table: &'a PackedMatrix,
        rows: usize,
    ) -> Soft<'a> {
        match (bytes, table.coarse()) {
            (Some(vnni), Some(coarse)) if coarse.is_stored() => {
                Soft::Bytes(ByteSoft::new(path, vnni, coarse, table.outputs(), table.inputs(), rows))
            }
            _ => Soft::Wide(WideSoft::new(path, pairs, table, rows)),
        }
    }

    /// Multiplies a row's sums.
    pub(super) fn scale(&mut self, row: usize, factor: f32) {
        match self {
            Soft::Wide(soft) => soft.scale(row, factor),
            Soft::Bytes(soft) => soft.scale(row, factor),
        }
    }

    /// Adds a tile: `weights[rows, stride]` times the table's panels, `stride` a multiple of 64. `so_far` gives a row's
    /// sum of weights, this tile's included. Leaves other weights behind.
    pub(super) fn add(
        &mut self,
        panels: Range<usize>,
        weights: &mut [f32],
        stride: usize,
        so_far: impl Fn(usize) -> f64,
    ) {
        match self {
            Soft::Wide(soft) => soft.add(panels, weights, stride),
            Soft::Bytes(soft) => soft.add(panels, weights, stride, so_far),
        }
    }

    /// A row's soft embedding, its weights having the sum given.
    pub(super) fn finish(&self, row: usize, sum: f32, out: &mut [f32]) {
        match self {
            Soft::Wide(soft) => soft.finish(row, sum, out),
            Soft::Bytes(soft) => soft.finish(row, sum, out),
        }
    }
}
