//! The number of every GGUF tensor type, its name and its block.

use crate::kernels::ElementType;

/// A tensor type as GGUF numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GgufType {
    /// Its number in the file.
    pub(crate) code: u32,
    /// Its usual spelling, such as `Q4_K`.
    pub(crate) name: &'static str,
    /// Weights of one block.
    pub(crate) block: u64,
    /// Bytes of one block.
    pub(crate) bytes: u64,
    /// What the model can compute with; `None` for the types that it cannot.
    pub(crate) element: Option<ElementType>,
}

const fn known(code: u32, name: &'static str, element: ElementType) -> GgufType {
    let (block, bytes) = element.block();
    GgufType { code, name, block: block as u64, bytes: bytes as u64, element: Some(element) }
}

const fn foreign(code: u32, name: &'static str, block: u64, bytes: u64) -> GgufType {
    GgufType { code, name, block, bytes, element: None }
}

/// Every type a file may hold. Those without an element type are listed so that their tensors can be measured and named.
const TYPES: &[GgufType] = &[
    known(0, "F32", ElementType::F32),
    known(1, "F16", ElementType::F16),
    known(2, "Q4_0", ElementType::Q4_0),
    known(3, "Q4_1", ElementType::Q4_1),
    known(6, "Q5_0", ElementType::Q5_0),
    known(7, "Q5_1", ElementType::Q5_1),
    known(8, "Q8_0", ElementType::Q8_0),
    foreign(9, "Q8_1", 32, 40),
    known(10, "Q2_K", ElementType::Q2K),
    known(11, "Q3_K", ElementType::Q3K),
    known(12, "Q4_K", ElementType::Q4K),
    known(13, "Q5_K", ElementType::Q5K),
    known(14, "Q6_K", ElementType::Q6K),
    foreign(15, "Q8_K", 256, 292),
    foreign(16, "IQ2_XXS", 256, 66),
    foreign(17, "IQ2_XS", 256, 74),
    foreign(18, "IQ3_XXS", 256, 98),
    foreign(19, "IQ1_S", 256, 50),
    foreign(20, "IQ4_NL", 32, 18),
    foreign(21, "IQ3_S", 256, 110),
    foreign(22, "IQ2_S", 256, 82),
    foreign(23, "IQ4_XS", 256, 136),
    foreign(24, "I8", 1, 1),
    foreign(25, "I16", 1, 2),
    foreign(26, "I32", 1, 4),
    foreign(27, "I64", 1, 8),
    foreign(28, "F64", 1, 8),
    foreign(29, "IQ1_M", 256, 56),
    known(30, "BF16", ElementType::Bf16),
    foreign(34, "TQ1_0", 256, 54),
    foreign(35, "TQ2_0", 256, 66),
    foreign(39, "MXFP4", 32, 17),
    foreign(40, "NVFP4", 64, 36),
    foreign(41, "Q1_0", 128, 18),
];

impl GgufType {
    /// The type of this number.
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        TYPES.iter().find(|kind| kind.code == code).copied()
    }

    /// The type that holds these elements.
    pub(crate) fn of(element: ElementType) -> Self {
        // Every element type has its row; a test walks them all.
        TYPES.iter().find(|kind| kind.element == Some(element)).copied().unwrap_or(TYPES[0])
    }

    /// Bytes of so many rows of `inner` weights; `None` where blocks do not fit the row or the number overflows.
    pub(crate) fn size(self, inner: u64, rows: u64) -> Option<u64> {
        if !inner.is_multiple_of(self.block) {
            return None;
        }
        (inner / self.block).checked_mul(self.bytes)?.checked_mul(rows)
    }
}
