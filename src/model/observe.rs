//! A window into a pass, for tests: what flows between the layers and out of the head.

/// Sees intermediate numbers of a pass. Rows are in the model's order: all encode rows, then all denoise rows.
pub trait Observer {
    /// Whether [`Observer::hidden`] is to be called.
    fn wants_hidden(&self) -> bool {
        false
    }

    /// The residual stream entering `layer`, `[rows, width]`.
    fn hidden(&mut self, layer: usize, width: usize, values: &[f32]) {
        let _ = (layer, width, values);
    }

    /// Whether [`Observer::logits`] is to be called.
    fn wants_logits(&self) -> bool {
        false
    }

    /// One tile's softcapped logits of a denoise row (counted from the first denoise row), before bias and temperature.
    fn logits(&mut self, row: usize, first_column: usize, values: &[f32]) {
        let _ = (row, first_column, values);
    }
}

/// Sees nothing.
pub(super) struct Nobody;

impl Observer for Nobody {}
