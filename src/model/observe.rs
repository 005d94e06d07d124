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

    /// A tile of softcapped logits of the denoise rows, `[rows, columns]`, before bias and temperature.
    fn logits(&mut self, first_column: usize, columns: usize, values: &[f32]) {
        let _ = (first_column, columns, values);
    }
}

/// Sees nothing.
pub(super) struct Nobody;

impl Observer for Nobody {}
