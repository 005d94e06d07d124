//! The few operations candle does not do fast enough: [`cpu`] holds products over packed weights, grouped experts,
//! paged attention and the streaming vocabulary sweep.
//!
//! All `unsafe` is here, but for the mapping of files into memory (`checkpoint`). A crate of its own: development builds
//! optimise it fully, and the compiler holds it apart from the other rooms. It works on plain slices and knows neither candle nor the model: `model` wraps these
//! operations and gives them meaning. The rest of the house says `crate::kernels`.
#![warn(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]
// Read by those who work on it, and built with its private items.
#![allow(rustdoc::private_intra_doc_links)]

pub mod cpu;
mod error;

pub use error::KernelError;

/// How the numbers of a stored tensor are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are those of the formats.
pub enum ElementType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl ElementType {
    /// Elements of one block and its bytes; `(1, size)` for plain numbers.
    pub const fn block(self) -> (usize, usize) {
        match self {
            ElementType::F32 => (1, 4),
            ElementType::F16 | ElementType::Bf16 => (1, 2),
            ElementType::Q4_0 => (32, 18),
            ElementType::Q4_1 => (32, 20),
            ElementType::Q5_0 => (32, 22),
            ElementType::Q5_1 => (32, 24),
            ElementType::Q8_0 => (32, 34),
            ElementType::Q2K => (256, 84),
            ElementType::Q3K => (256, 110),
            ElementType::Q4K => (256, 144),
            ElementType::Q5K => (256, 176),
            ElementType::Q6K => (256, 210),
        }
    }
}
