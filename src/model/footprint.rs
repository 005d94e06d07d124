//! What a model's state takes in memory, from its configuration alone: the one place that knows, for the scheduler's
//! limits and for the plan that is made before anything is loaded.

use super::config::{Config, LayerKind};
use super::options::DeviceChoice;
use crate::kernels::ElementType;
use crate::kernels::cpu::{KvElement, KvPool, PAGE_TOKENS, PackedMatrix, Packing};
use crate::pass::Limits;

const F32: u64 = 4;

/// Columns of a vocabulary tile: our kernels keep one within a cache, the twins want few large products.
pub(super) const TILE: usize = 256;
pub(super) const TWIN_TILE: usize = 4096;

/// Bytes of one page (64 positions) of keys and values, all layers of the kind together.
pub fn page_bytes(config: &Config, kind: LayerKind, element: KvElement) -> u64 {
    let attention = config.attention(kind);
    (KvPool::page_bytes(element, attention.kv_heads, attention.head_dim) * config.count(kind)) as u64
}

/// What a model of this configuration is to whoever schedules it.
pub(super) fn limits(config: &Config, keys_and_values: KvElement, row_bytes: u64) -> Limits {
    Limits {
        canvas: config.canvas,
        vocabulary: config.vocabulary,
        context: config.context,
        window: config.window,
        page_tokens: PAGE_TOKENS,
        full_page_bytes: page_bytes(config, LayerKind::Full, keys_and_values),
        sliding_page_bytes: page_bytes(config, LayerKind::Sliding, keys_and_values),
        slot_bytes: slot_bytes(config),
        row_bytes,
    }
}

/// Most pages of a sliding layer that one request holds of which so many rows are encoded at once: what they still write and
/// what has just left the window overlap for a moment.
pub fn sliding_pages(window: usize, rows: usize, page_tokens: usize) -> usize {
    (window + rows).div_ceil(page_tokens) + 2
}

/// Bytes of a quantised matrix `[outputs, inputs]` where products are of bytes, or of a stack `[.., outputs, inputs]` of
/// them, which is one of experts. Nothing where a size is zero, whatever the others are: a file may say anything there.
/// Of others the file's length bounds the product.
pub fn coarse_bytes(element: ElementType, stack: &[usize], outputs: usize, inputs: usize) -> u64 {
    let packing = if stack.is_empty() { Packing::Fast } else { Packing::Compact };
    stacked(stack, (outputs, inputs), |outputs, inputs| PackedMatrix::coarse_bytes(element, outputs, inputs, packing))
}

/// The same where quantised matrices are held value for value.
pub fn strips_bytes(element: ElementType, stack: &[usize], outputs: usize, inputs: usize) -> u64 {
    stacked(stack, (outputs, inputs), |outputs, inputs| PackedMatrix::strips_bytes(element, outputs, inputs))
}

fn stacked(stack: &[usize], (outputs, inputs): (usize, usize), each: impl Fn(usize, usize) -> usize) -> u64 {
    if outputs == 0 || inputs == 0 || stack.contains(&0) {
        return 0;
    }
    stack.iter().fold(each(outputs, inputs) as u64, |all, &count| all.saturating_mul(count as u64))
}

/// Bytes of one canvas's soft embedding.
pub fn slot_bytes(config: &Config) -> u64 {
    (config.canvas * config.hidden) as u64 * F32
}

/// Bytes that live at once for one row of a pass, with our kernels an upper estimate: the stream and its copies, the widest
/// of attention and feed-forward, or a tile of logits with its exponentials. The twins' attention holds a number per head and
/// key besides, of which a row cannot know: with long texts they need more than this.
pub fn row_bytes(config: &Config, device: DeviceChoice) -> u64 {
    let tile = match device {
        DeviceChoice::Cpu => TILE,
        DeviceChoice::Cuda(_) | DeviceChoice::Metal(_) => TWIN_TILE,
    };
    with_tile(config, tile)
}

/// The same for a tile of so many columns.
pub(super) fn with_tile(config: &Config, tile: usize) -> u64 {
    let wide = config.heads * config.sliding.head_dim.max(config.full.head_dim);
    let experts = config.experts.map_or(0, |e| e.top_k * (4 * e.intermediate + 3 * config.hidden));
    let layer = (3 * wide).max(4 * config.intermediate + experts);
    let numbers = 8 * config.hidden + layer.max(4 * tile + 2 * config.hidden);
    numbers as u64 * F32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_any_width_takes_nothing() {
        let huge = usize::MAX / 256 * 256;
        for (stack, outputs, inputs) in [(&[][..], 0, huge), (&[], huge, 0), (&[0], huge, huge), (&[huge, 0], 1, huge)]
        {
            assert_eq!(coarse_bytes(ElementType::Q4K, stack, outputs, inputs), 0);
            assert_eq!(strips_bytes(ElementType::Q4K, stack, outputs, inputs), 0);
        }
        assert!(coarse_bytes(ElementType::Q4K, &[2], 1, 256) > 0);
        assert_eq!(strips_bytes(ElementType::Q4K, &[2], 1, 256), 2 * strips_bytes(ElementType::Q4K, &[], 32, 256));
    }
}
