//! Where the model's loader gets tensors from, by their hub names (model.md §2); implemented by `checkpoint`.

use std::borrow::Cow;

use crate::kernels::{ElementType, cpu};

/// A stored tensor: its shape, row-major with the innermost dimension last (`[out, in]` for a matrix), and its bytes.
#[derive(Debug, Clone)]
pub struct RawTensor<'a> {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// How `bytes` encodes the numbers; blocks run along the innermost dimension.
    pub element: ElementType,
    /// Little-endian, exactly as long as shape and element say. No alignment is promised.
    pub bytes: Cow<'a, [u8]>,
}

/// Why a tensor cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// The file is damaged or cannot be read.
    #[error("tensor {name}: {why}")]
    Unreadable {
        /// The tensor's name.
        name: String,
        /// What is wrong, and what to do about it.
        why: String,
    },
}

/// A checkpoint's tensors, whatever file format they came in, under the hub's names.
pub trait Weights: Send + Sync {
    /// Every tensor's name.
    fn names(&self) -> Vec<String>;

    /// The tensor, or `None` if the checkpoint has none of that name.
    fn get(&self, name: &str) -> Result<Option<RawTensor<'_>>, WeightError>;

    /// The type in which [`Weights::get`] gives the tensor, without reading it where that can be told.
    fn element(&self, name: &str) -> Result<Option<ElementType>, WeightError> {
        Ok(self.get(name)?.map(|raw| raw.element))
    }

    /// Says that the tensor will not be read again, so that its mapped pages may be dropped.
    fn release(&self, name: &str);
}

/// The numbers of any element type as f32, exactly; `name` is the tensor that an error is about.
///
/// # Errors
/// Where the bytes are no whole number of blocks.
pub fn widened(name: &str, element: ElementType, bytes: &[u8]) -> Result<Vec<f32>, WeightError> {
    let (elements, size) = element.block();
    let mut values = vec![0.0; bytes.len() / size * elements];
    cpu::dequantise(element, bytes, &mut values)
        .map_err(|error| WeightError::Unreadable { name: name.to_owned(), why: error.to_string() })?;
    Ok(values)
}
