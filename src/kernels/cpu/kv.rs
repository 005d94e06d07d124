//! Keys and values in pages of 64 positions, laid out as attention reads them.

use half::bf16;

use super::{
    Cpu,
    memory::{Aligned, Shared},
};
use crate::KernelError;

/// Positions of a page.
pub const PAGE_TOKENS: usize = 64;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvElement {
    /// Four bytes, exact.
    F32,
    /// Two bytes, rounded to nearest even on writing.
    Bf16,
}

/// The pages of one layer: `[page][kv head]` blocks, each keys `[head_dim, 64]` (so that a page of keys is the right
/// side of a product) and then values `[64, head_dim]`. Pages that were never written cost no memory.
pub struct KvPool {
    pages: usize,
    kv_heads: usize,
    head_dim: usize,
    data: Data,
}

enum Data {
    F32(Aligned<f32>),
    Bf16(Aligned<u16>),
}

/// Keys `[head_dim, 64]` and values `[64, value stride]` of one head in a page.
pub(super) enum Stored<'a> {
    F32(&'a [f32], &'a [f32]),
    Bf16(&'a [u16], &'a [u16]),
}

/// Rows to store: consecutive positions of one request.
#[derive(Debug, Clone)]
pub struct KvWrite<'a> {
    /// First row of `k` and `v` to take.
    pub row: usize,
    /// How many rows.
    pub rows: usize,
    /// Position of the first one.
    pub position: usize,
    /// Pages of the request, 64 positions each.
    pub pages: &'a [u32],
    /// Position of the first token in `pages[0]`, a multiple of 64.
    pub from: usize,
}

impl KvPool {
    /// Room for pages `0 .. pages`.
    pub fn new(element: KvElement, pages: usize, kv_heads: usize, head_dim: usize) -> KvPool {
        let len = pages * kv_heads * Self::block(head_dim);
        let data = match element {
            KvElement::F32 => Data::F32(Aligned::zeroed(len)),
            KvElement::Bf16 => Data::Bf16(Aligned::zeroed(len)),
        };
        KvPool { pages, kv_heads, head_dim, data }
    }

    /// Bytes of one page.
    pub fn page_bytes(element: KvElement, kv_heads: usize, head_dim: usize) -> usize {
        let size = match element {
            KvElement::F32 => 4,
            KvElement::Bf16 => 2,
        };
        kv_heads * Self::block(head_dim) * size
    }

    /// Pages in the pool.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Numbers in a key or value.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// How keys and values are stored.
    pub fn element(&self) -> KvElement {
        match self.data {
            Data::F32(_) => KvElement::F32,
            Data::Bf16(_) => KvElement::Bf16,
        }
    }

    /// Distance between two values: the head's width rounded up to what a tile reads at once.
    pub(super) fn value_stride(head_dim: usize) -> usize {
        head_dim.next_multiple_of(16)
    }

    /// Numbers of one head's keys and values in a page.
    fn block(head_dim: usize) -> usize {
        PAGE_TOKENS * (head_dim + Self::value_stride(head_dim))
    }

    /// One head's keys and values in a page: in place, or widened into `scratch` (as long as a block).
    pub(super) fn head<'a>(&'a self, page: u32, head: usize, scratch: &'a mut [f32]) -> (&'a [f32], &'a [f32]) {
        let length = Self::block(self.head_dim);
        let at = (page as usize * self.kv_heads + head) * length;
        let block = match &self.data {
            Data::F32(data) => &data[at..at + length],
            Data::Bf16(data) => {
                for (y, &bits) in scratch[..length].iter_mut().zip(&data[at..at + length]) {
                    *y = f32::from_bits(u32::from(bits) << 16);
                }
                &scratch[..length]
            }
        };
        block.split_at(PAGE_TOKENS * self.head_dim)
    }

    /// One head's keys and values in a page, as they are stored.
    pub(super) fn stored(&self, page: u32, head: usize) -> Stored<'_> {
        let length = Self::block(self.head_dim);
        let at = (page as usize * self.kv_heads + head) * length;
        let keys = PAGE_TOKENS * self.head_dim;
        match &self.data {
            Data::F32(data) => Stored::F32(&data[at..at + keys], &data[at + keys..at + length]),
            Data::Bf16(data) => Stored::Bf16(&data[at..at + keys], &data[at + keys..at + length]),
        }
    }

    /// Length of the scratch that [`KvPool::head`] needs.
    pub(super) fn scratch(&self) -> usize {
        match self.data {
            Data::F32(_) => 0,
            Data::Bf16(_) => Self::block(self.head_dim),
        }
    }

    /// Copies one position's key and value of one head out of the pool, as attention reads them.
    pub fn read(
        &self,
        page: u32,
        offset: usize,
        head: usize,
        key: &mut [f32],
        value: &mut [f32],
    ) -> Result<(), KernelError> {
        KernelError::below("page", page as usize, self.pages)?;
        KernelError::below("offset in a page", offset, PAGE_TOKENS)?;
        KernelError::below("key head", head, self.kv_heads)?;
        KernelError::expect("length of a key", self.head_dim, key.len())?;
        KernelError::expect("length of a value", self.head_dim, value.len())?;
        let mut scratch = vec![0.0; self.scratch()];
        let (keys, values) = self.head(page, head, &mut scratch);
        for (d, y) in key.iter_mut().enumerate() {
            *y = keys[d * PAGE_TOKENS + offset];
        }
        value.copy_from_slice(&values[offset * Self::value_stride(self.head_dim)..][..self.head_dim]);
        Ok(())
    }
}

impl std::fmt::Debug for KvPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvPool")
            .field("element", &self.element())
            .field("pages", &self.pages)
            .field("kv_heads", &self.kv_heads)
            .field("head_dim", &self.head_dim)
            .finish()
    }
}

impl Cpu {
    /// Stores rows of `k` and `v`, both `[rows, kv_heads, head_dim]`. No two writes may name the same position of a
    /// page.
    pub fn write(&self, pool: &mut KvPool, k: &[f32], v: &[f32], writes: &[KvWrite<'_>]) -> Result<(), KernelError> {
        let width = pool.kv_heads * pool.head_dim;
        KernelError::expect("values to store", k.len(), v.len())?;
        let rows = super::rows::whole_rows("keys to store", k.len(), width)?;
        for write in writes {
            KernelError::below("end of the rows to store", write.row.saturating_add(write.rows), rows + 1)?;
            if write.rows == 0 {
                continue;
            }
            KernelError::expect("first position of the pages, in whole pages", 0, write.from % PAGE_TOKENS)?;
            KernelError::below("first position of the pages", write.from, write.position + 1)?;
            let end = (write.position + write.rows - write.from).div_ceil(PAGE_TOKENS);
            KernelError::below("last page to store in", end.saturating_sub(1), write.pages.len())?;
            for &page in write.pages {
                KernelError::below("page", page as usize, pool.pages)?;
            }
        }
        let (heads, dim) = (pool.kv_heads, pool.head_dim);
        match &mut pool.data {
            Data::F32(data) => self.store(heads, dim, Shared::new(data), k, v, writes, |x| x),
            Data::Bf16(data) => {
                self.store(heads, dim, Shared::new(data), k, v, writes, |x| bf16::from_f32(x).to_bits())
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn store<T: Copy + Send>(
        &self,
        heads: usize,
        dim: usize,
        data: Shared<T>,
        k: &[f32],
        v: &[f32],
        writes: &[KvWrite<'_>],
        convert: impl Fn(f32) -> T + Sync,
    ) -> Result<(), KernelError> {
        let (block, stride) = (KvPool::block(dim), KvPool::value_stride(dim));
        self.pool().run(heads, |head| {
            for write in writes {
                for i in 0..write.rows {
                    let at = write.position + i - write.from;
                    let (page, offset) = (write.pages[at / PAGE_TOKENS] as usize, at % PAGE_TOKENS);
                    let from = ((write.row + i) * heads + head) * dim;
                    // SAFETY: pages and offsets were checked; each head's blocks are written by one call.
                    unsafe {
                        let keys = data.get().add((page * heads + head) * block);
                        for (d, &x) in k[from..from + dim].iter().enumerate() {
                            *keys.add(d * PAGE_TOKENS + offset) = convert(x);
                        }
                        let values = keys.add(PAGE_TOKENS * dim + offset * stride);
                        for (d, &x) in v[from..from + dim].iter().enumerate() {
                            *values.add(d) = convert(x);
                        }
                    }
                }
            }
        })
    }
}
