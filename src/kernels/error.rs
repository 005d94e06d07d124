//! What can go wrong in a kernel: always a wrong call or a lack of means, never a value inside the data.

use super::{ElementType, cpu::Path};

/// Why an operation did not run. Outputs are unspecified after an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A slice's length or a count contradicts the others.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which argument.
        what: &'static str,
        /// What it had to be.
        expected: usize,
        /// What it was.
        found: usize,
    },
    /// An index or a size lies outside what it refers to.
    #[error("{what}: {value} must be below {bound}")]
    Range {
        /// Which argument.
        what: &'static str,
        /// The value given.
        value: usize,
        /// The first value that is too large.
        bound: usize,
    },
    /// A row does not hold a whole number of blocks.
    #[error("a row of {length} elements is not a whole number of {element:?} blocks of {block}")]
    Block {
        /// How the numbers are encoded.
        element: ElementType,
        /// Elements in a row.
        length: usize,
        /// Elements in a block.
        block: usize,
    },
    /// This processor does not have the instructions that were asked for.
    #[error("this processor cannot run the {0:?} kernels; choose another path or leave the choice to the program")]
    Unsupported(Path),
    /// A thread of the pool panicked: a bug in this program.
    #[error("a kernel thread panicked: {0}")]
    Panicked(String),
    /// Threads could not be started.
    #[error("cannot start kernel threads: {0}")]
    Threads(String),
}

impl KernelError {
    /// `Ok` if `found` is `expected`.
    pub(crate) fn expect(what: &'static str, expected: usize, found: usize) -> Result<(), KernelError> {
        if expected == found { Ok(()) } else { Err(KernelError::Shape { what, expected, found }) }
    }

    /// `Ok` if `value < bound`.
    pub(crate) fn below(what: &'static str, value: usize, bound: usize) -> Result<(), KernelError> {
        if value < bound { Ok(()) } else { Err(KernelError::Range { what, value, bound }) }
    }
}
