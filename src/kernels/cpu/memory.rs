//! Buffers aligned to cache lines, and per-thread scratch that is allocated once and reused.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    cell::RefCell,
    marker::PhantomData,
    mem::size_of,
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

/// Numbers for which all-zero bytes are a value and that own nothing.
///
/// # Safety
/// Implementers accept every bit pattern and need no drop.
pub(super) unsafe trait Plain: Copy + 'static {}
// SAFETY: every bit pattern is a value of these types.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}

/// A fixed-length buffer whose start is aligned to 64 bytes (2 MiB for large ones, so that the kernel can back it with
/// huge pages), zero at first. Untouched pages of a large buffer cost no memory.
pub(super) struct Aligned<T: Plain> {
    /// What the allocator gave.
    base: NonNull<u8>,
    /// The first aligned address from `base` on.
    start: NonNull<T>,
    len: usize,
}

// SAFETY: the buffer is owned like a `Vec`'s, and `T` is plain data.
unsafe impl<T: Plain> Send for Aligned<T> {}
// SAFETY: shared access is read-only.
unsafe impl<T: Plain> Sync for Aligned<T> {}

const HUGE: usize = 2 << 20;

impl<T: Plain> Aligned<T> {
    fn bytes_of(len: usize) -> usize {
        len.checked_mul(size_of::<T>()).expect("buffer sizes are checked by the callers").max(64)
    }

    fn alignment(len: usize) -> usize {
        if Self::bytes_of(len) >= 2 * HUGE { HUGE } else { 64 }
    }

    /// What is asked of the allocator. Its own alignment is asked for, and the start is aligned by hand: zeroed memory
    /// of a larger alignment is written by the standard allocator, every page of it, instead of coming untouched.
    fn layout(len: usize) -> Layout {
        let bytes = Self::bytes_of(len).checked_add(Self::alignment(len));
        bytes
            .and_then(|bytes| Layout::from_size_align(bytes, 16).ok())
            .expect("buffer sizes are checked by the callers")
    }

    /// `len` zeros.
    pub(super) fn zeroed(len: usize) -> Aligned<T> {
        let (layout, align) = (Self::layout(len), Self::alignment(len));
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        let shift = base.as_ptr().align_offset(align);
        assert!(shift < align, "bytes can be aligned to any power of two");
        // SAFETY: the layout has `align` bytes more than the buffer, and the shift is below that.
        let start = unsafe { base.add(shift) };
        #[cfg(target_os = "linux")]
        if align == HUGE {
            // SAFETY: the range was just allocated; the advice changes no contents, and a refusal is harmless.
            unsafe { libc::madvise(start.as_ptr().cast(), Self::bytes_of(len), libc::MADV_HUGEPAGE) };
        }
        Aligned { base, start: start.cast(), len }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T: Plain> Drop for Aligned<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.len)) }
    }
}

impl<T: Plain> Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised elements, alive as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

thread_local! {
    static SPARE: RefCell<Vec<Aligned<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A per-thread buffer of floats with arbitrary contents; goes back to its thread's store when dropped.
pub(super) struct Scratch {
    buffer: Option<Aligned<f32>>,
    len: usize,
    // Belongs to the thread that made it.
    _thread: PhantomData<*const ()>,
}

impl Scratch {
    /// At least room for `len` floats, exposed as exactly `len`.
    pub(super) fn take(len: usize) -> Scratch {
        let spare = SPARE.with_borrow_mut(|spare| {
            let fit = (0..spare.len()).filter(|&i| spare[i].len() >= len).min_by_key(|&i| spare[i].len());
            fit.map(|i| spare.swap_remove(i))
        });
        let buffer = spare.unwrap_or_else(|| Aligned::zeroed(len.next_power_of_two().max(1024)));
        Scratch { buffer: Some(buffer), len, _thread: PhantomData }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() >= 16 {
                    // Sizes have changed: let go of the smallest, which serves the fewest.
                    let smallest = (0..spare.len()).min_by_key(|&i| spare[i].len()).unwrap_or(0);
                    spare.swap_remove(smallest);
                }
                spare.push(buffer);
            });
        }
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer.as_ref().expect("taken only on drop")[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer.as_mut().expect("taken only on drop")[..self.len]
    }
}

/// Asks for every line of cache of a slice.
pub(super) fn ask<T>(slice: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for at in slice.chunks(64 / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = slice;
}

/// A pointer that several threads write through, each to places of its own.
pub(super) struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}

// SAFETY: only carries the address; every use states why its writes do not overlap.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(slice: &mut [T]) -> Shared<T> {
        Shared(slice.as_mut_ptr())
    }

    /// The address; a method, so that closures capture the whole wrapper.
    pub(super) fn get(self) -> *mut T {
        self.0
    }

    /// The places `from .. from + length`, as one thread's own.
    ///
    /// # Safety
    /// They lie inside the slice, which outlives the result, and nobody else touches them meanwhile.
    pub(super) unsafe fn part<'a>(self, from: usize, length: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(from), length) }
    }
}
