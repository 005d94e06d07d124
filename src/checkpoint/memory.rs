//! What a model needs in memory: a server refuses early instead of being killed half-way.

use std::collections::HashMap;

use super::error::CheckpointError;
use super::quantize::Quantization;
use crate::kernels::ElementType;
use crate::model::{
    Config, DeviceChoice, EMBEDDING, LayerKind, LoadOptions, PAGE_TOKENS, WeightType, coarse_bytes, page_bytes,
    row_bytes, sliding_pages, slot_bytes, strips_bytes,
};

/// A tensor as a file holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name on the hub.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its type as the file's format spells it.
    pub kind: String,
    /// Its type, if it is one that can be computed with.
    pub element: Option<ElementType>,
    /// Its bytes.
    pub bytes: u64,
    /// Bytes that are made on the way from the file to the packed form, all that exist at one time.
    pub made: u64,
}

impl Stored {
    /// Numbers in it.
    pub fn numbers(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    /// Whether the model's text part reads it (the vision tower and tied copies are left in the file).
    fn is_read(&self) -> bool {
        self.name.starts_with("model.decoder.") || self.name.ends_with(".layer_scalar")
    }

    /// The error for a tensor that cannot be computed with.
    pub(crate) fn unusable(&self, file: &str) -> CheckpointError {
        let why = format!("tensor {} is stored as {}, which cannot be computed with", self.name, self.kind);
        CheckpointError::unsupported(file, format!("{why}; use the bfloat16 checkpoint or a GGUF file of the model"))
    }

    /// Becomes what a quantization makes of it.
    pub(crate) fn quantize(&mut self, file: &str, scheme: Quantization, layers: usize) -> Result<(), CheckpointError> {
        let Some(target) = scheme.target(&self.name, &self.shape, layers) else { return Ok(()) };
        match self.element {
            None => return Err(self.unusable(file)),
            Some(element) if element != target && element.block().0 > 1 => {
                let why = format!("tensor {} is {} already; quantize the bfloat16 checkpoint", self.name, self.kind);
                return Err(CheckpointError::unsupported(file, why));
            }
            Some(_) => {}
        }
        let (block, bytes) = target.block();
        self.bytes = self.numbers() / block as u64 * bytes as u64;
        if self.element != Some(target) {
            // What the blocks are made from lives until they are there.
            self.made = self.made.saturating_add(self.bytes);
        }
        self.element = Some(target);
        self.kind = super::block_types::GgufType::of(target).name.to_owned();
        Ok(())
    }
}

/// Bytes that serving a checkpoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The weights, packed.
    pub weights: u64,
    /// Most that loading takes beside them: the largest tensor that is made and packed then.
    pub loading: u64,
    /// Keys and values of one page, the layers that see everything.
    full_page: u64,
    /// Keys and values of one page, the sliding layers.
    sliding_page: u64,
    /// Most pages of a sliding layer that one request holds.
    sliding_pages: u64,
    /// One canvas's soft embedding.
    slot: u64,
    /// Working memory of one row.
    row: u64,
    /// Rows of one canvas.
    canvas: u64,
    /// The program and its tokenizer.
    program: u64,
    /// Most positions of one request.
    pub context: usize,
}

/// Rows of prompt that may run beside the canvases.
const PROMPT_ROWS: u64 = 1024;
/// The program itself and what the allocator keeps; and its tokenizer, for each token.
const PROGRAM: u64 = 48 << 20;
const TOKEN: u64 = 1 << 10;

impl Needs {
    /// Estimates from above what loading with these options and serving takes.
    pub(crate) fn of(config: &Config, tensors: &[Stored], options: &LoadOptions) -> Self {
        let dtype = options.dtype;
        let embedding = tensors.iter().find(|stored| stored.name == EMBEDDING).and_then(|stored| stored.element);
        let keys_and_values = options.keys_and_values(embedding);
        let page = |kind| page_bytes(config, kind, keys_and_values);
        let read = || tensors.iter().filter(|stored| stored.is_read());
        let blocks = Blocks::of(options);
        let elements: HashMap<&str, _> = read().map(|stored| (stored.name.as_str(), stored.element)).collect();
        // Products of gate and up read one format: where a file has two, and no conversion is asked for, both are widened.
        let widened = |stored: &Stored| {
            let other = other_half(&stored.name).and_then(|name| elements.get(name.as_str()));
            blocks != Blocks::Stored && dtype.is_none() && other.is_some_and(|element| *element != stored.element)
        };
        let packed = |stored: &Stored| match widened(stored) {
            true => stored.numbers().saturating_mul(4),
            false => packed(stored, dtype, blocks),
        };
        let passing = |stored: &Stored| match widened(stored) {
            // Both halves as bytes, and the values that one of them is made from.
            true => passing(stored, dtype).saturating_add(stored.numbers().saturating_mul(3 * 4)),
            false => passing(stored, dtype),
        };
        let weights = read().map(packed).sum();
        // The embedding comes first: whatever it takes in passing is there before the rest is.
        let beside = |stored: &Stored| match stored.name == EMBEDDING {
            true => passing(stored).saturating_sub(u64::saturating_sub(weights, packed(stored))),
            false => passing(stored),
        };
        Self {
            weights,
            loading: read().map(beside).max().unwrap_or(0),
            full_page: page(LayerKind::Full),
            sliding_page: page(LayerKind::Sliding),
            sliding_pages: sliding_pages(config.window, config.canvas, PAGE_TOKENS) as u64,
            slot: slot_bytes(config),
            row: row_bytes(config, options.device),
            canvas: config.canvas as u64,
            program: PROGRAM + config.vocabulary as u64 * TOKEN,
            context: config.context,
        }
    }

    /// Keys and values of one request of so many positions.
    pub fn request(&self, positions: usize) -> u64 {
        let pages = positions.div_ceil(PAGE_TOKENS) as u64;
        pages * self.full_page + pages.min(self.sliding_pages) * self.sliding_page + self.slot
    }

    /// Working memory of so many canvases in one pass, prompt rows beside them, and of the program.
    fn work(&self, requests: usize) -> u64 {
        let rows = (requests as u64).saturating_mul(self.canvas).saturating_add(PROMPT_ROWS);
        rows.saturating_mul(self.row).saturating_add(self.program)
    }

    /// Working memory of a pass of so many rows.
    pub fn rows(&self, rows: usize) -> u64 {
        (rows as u64).saturating_mul(self.row)
    }

    /// Everything while the model is being loaded.
    pub fn while_loading(&self) -> u64 {
        self.weights.saturating_add(self.loading).saturating_add(self.program)
    }

    /// Everything, with so many requests of so many positions at once; or what loading takes, if that is more.
    pub fn total(&self, positions: usize, requests: usize) -> u64 {
        let kept = (requests as u64).saturating_mul(self.request(positions));
        let serving = self.weights.saturating_add(kept).saturating_add(self.work(requests));
        serving.max(self.while_loading())
    }

    /// Refuses a model that does not fit, before any of it is read.
    ///
    /// # Errors
    /// [`CheckpointError::Memory`] with the numbers and what to change.
    pub fn check(&self, free: u64, positions: usize, requests: usize) -> Result<(), CheckpointError> {
        let total = self.total(positions, requests);
        if total <= free {
            return Ok(());
        }
        let advice = if self.total(positions, 1) <= free {
            let fits = (1..requests).rev().find(|&fewer| self.total(positions, fewer) <= free).unwrap_or(1);
            format!("allow fewer requests at once ({fits} fit)")
        } else if self.total(PAGE_TOKENS, 1) <= free {
            let fits =
                (1..positions.div_ceil(PAGE_TOKENS)).rev().find(|&pages| self.total(pages * PAGE_TOKENS, 1) <= free);
            format!("allow a shorter context ({} positions fit)", fits.unwrap_or(1) * PAGE_TOKENS)
        } else {
            "use a smaller quantization (a Q4_K_M file, or --quantize q4_k_m) or a machine with more memory".to_owned()
        };
        let loading = match self.loading {
            0 => String::new(),
            bytes => format!(" (and {} while loading)", gib(bytes)),
        };
        Err(CheckpointError::Memory(format!(
            "the model needs {} of memory and {} are available: weights {}{loading}, {requests} request(s) of {positions} \
             positions {}, work {}; {advice}",
            gib(total),
            gib(free),
            gib(self.weights),
            gib(self.request(positions).saturating_mul(requests as u64)),
            gib(self.work(requests)),
        )))
    }
}

impl Needs {
    /// Refuses so much memory for keys and values beside the weights.
    ///
    /// # Errors
    /// [`CheckpointError::Memory`] with the numbers.
    pub fn check_kv(&self, free: u64, kv: u64) -> Result<(), CheckpointError> {
        let rest = self.weights.saturating_add(self.work(1));
        if rest.saturating_add(kv) <= free {
            return Ok(());
        }
        Err(CheckpointError::Memory(format!(
            "{} for keys and values, {} of weights and some {} for the work are more than the {} available; allow at most {} for keys \
             and values (kv_memory)",
            gib(kv),
            gib(self.weights),
            gib(rest - self.weights),
            gib(free),
            gib(free.saturating_sub(rest)),
        )))
    }
}

/// How quantised matrices are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blocks {
    /// As they are stored: on other devices.
    Stored,
    /// Value for value in the order of our kernels, four bits a number at least.
    Strips,
    /// Rounded to coarse bytes.
    Bytes,
}

impl Blocks {
    fn of(options: &LoadOptions) -> Self {
        match options.device {
            DeviceChoice::Cpu if options.precision.packs_bytes(options.path) => Self::Bytes,
            DeviceChoice::Cpu => Self::Strips,
            DeviceChoice::Cuda(_) | DeviceChoice::Metal(_) => Self::Stored,
        }
    }
}

/// The matrix with which a dense gate or up projection is packed.
fn other_half(name: &str) -> Option<String> {
    const GATE: &str = ".gate_proj.weight";
    const UP: &str = ".up_proj.weight";
    let other = |from, to| name.strip_suffix(from).map(|stem| format!("{stem}{to}"));
    other(GATE, UP).or_else(|| other(UP, GATE))
}

/// Bytes of a tensor in the form that products read: vectors and F16 are widened, quantised matrices are held as `blocks`,
/// everything else keeps its size unless it is converted.
fn packed(stored: &Stored, dtype: Option<WeightType>, blocks: Blocks) -> u64 {
    match (dtype, stored.element, stored.shape.as_slice()) {
        (_, _, [] | [_]) => stored.numbers().saturating_mul(4),
        (Some(WeightType::F32), ..) | (None, Some(ElementType::F16), _) => stored.numbers().saturating_mul(4),
        (Some(WeightType::Bf16), ..) => stored.numbers().saturating_mul(2),
        (None, Some(element), &[ref count @ .., outputs, inputs]) if element.block().0 > 1 => match blocks {
            Blocks::Stored => stored.bytes,
            Blocks::Strips => strips_bytes(element, count, outputs, inputs),
            Blocks::Bytes => coarse_bytes(element, count, outputs, inputs),
        },
        (None, ..) => stored.bytes,
    }
}

/// Bytes that exist beside the packed form while a tensor is loaded. What is in the file as it is costs nothing: its pages are
/// the system's, which takes them back.
fn passing(stored: &Stored, dtype: Option<WeightType>) -> u64 {
    let width = match dtype {
        None => return stored.made,
        Some(WeightType::F32) => 4,
        Some(WeightType::Bf16) => 2,
    };
    // Widened to f32 and then written in the wanted type, one matrix of a stack at a time.
    let matrix: u64 = stored.shape.iter().rev().take(2).map(|&size| size as u64).product();
    stored.made.saturating_add(matrix.saturating_mul(4 + width))
}

/// A number of bytes for people.
pub fn gib(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{KvElement, Precision};

    fn needs() -> Needs {
        let checkpoint = super::super::open(&super::super::Source::Demo).unwrap();
        checkpoint.needs(&LoadOptions::default())
    }

    #[test]
    fn a_refusal_says_what_would_fit() {
        let needs = needs();
        let (context, many) = (needs.context, 64);
        needs.check(needs.total(context, many), context, many).unwrap();
        let say = |free| needs.check(free, context, many).unwrap_err().to_string();
        let fewer = say(needs.total(context, 9));
        assert!(fewer.contains("(9 fit)"), "{fewer}");
        let shorter = say(needs.total(PAGE_TOKENS * 3, 1));
        assert!(shorter.contains("(192 positions fit)"), "{shorter}");
        let smaller = say(needs.weights);
        assert!(
            smaller.contains("smaller quantization") && smaller.contains("GiB") | smaller.contains("MiB"),
            "{smaller}"
        );
    }

    fn stored(name: &str, element: ElementType, shape: &[usize]) -> Stored {
        let numbers: usize = shape.iter().product();
        let bytes = (numbers / element.block().0 * element.block().1) as u64;
        let name = format!("model.decoder.layers.0.{name}");
        Stored { name, shape: shape.to_vec(), kind: String::new(), element: Some(element), bytes, made: 0 }
    }

    /// Needs of these tensors where blocks are held value for value.
    fn exact(tensors: &[Stored]) -> Needs {
        let config = super::super::open(&super::super::Source::Demo).unwrap().config;
        let options = LoadOptions { precision: Precision::Exact, ..LoadOptions::default() };
        Needs::of(&config, tensors, &options)
    }

    #[test]
    fn numbers_of_few_bits_are_held_in_four() {
        let weights = |element| exact(&[stored("experts.down_proj", element, &[3, 32, 256])]).weights;
        for (element, in_file, held) in [
            (ElementType::Q2K, 2688, 5248),
            (ElementType::Q3K, 3520, 4736),
            (ElementType::Q4K, 4608, 4736),
            (ElementType::Q8_0, 8704, 8704),
        ] {
            assert_eq!(stored("experts.down_proj", element, &[3, 32, 256]).bytes, 3 * in_file);
            assert_eq!(weights(element), 3 * held, "{element:?}");
        }
    }

    #[test]
    fn gate_and_up_of_two_formats_are_planned_in_f32() {
        let pair = |up| {
            let gate = stored("mlp.gate_proj.weight", ElementType::Q8_0, &[32, 256]);
            exact(&[gate, stored("mlp.up_proj.weight", up, &[32, 256])])
        };
        assert_eq!((pair(ElementType::Q8_0).weights, pair(ElementType::Q8_0).loading), (2 * 8704, 0));
        assert_eq!((pair(ElementType::Q4K).weights, pair(ElementType::Q4K).loading), (2 * 32768, 3 * 32768));
    }

    #[test]
    fn quantizing_makes_it_smaller() {
        let demo = || super::super::open(&super::super::Source::Demo).unwrap();
        let (plain, small) = (
            demo().needs(&LoadOptions::default()),
            demo().quantized(Quantization::Q4_0).unwrap().needs(&LoadOptions::default()),
        );
        assert!(small.weights < plain.weights / 2, "{} {}", small.weights, plain.weights);
        assert_eq!(plain.request(100), small.request(100));
        let exact = LoadOptions { kv: Some(KvElement::F32), ..LoadOptions::default() };
        assert!(demo().needs(&exact).request(100) > plain.request(100), "keys and values of bf16 weights are bf16");
        assert_eq!(plain.loading, 0, "a file's own bytes are packed from where they lie");
        assert!(small.loading > 0 && small.loading < small.weights, "one tensor at a time");
        let wider = LoadOptions { dtype: Some(WeightType::F32), ..LoadOptions::default() };
        let wide = demo().needs(&wider);
        assert!(wide.weights > 19 * plain.weights / 10 && wide.loading > 0, "{wide:?}");
        let fast = LoadOptions { precision: Precision::Bytes, ..LoadOptions::default() };
        assert_eq!(demo().needs(&fast).weights, plain.weights, "plain numbers stay as they are");
        let fast = demo().quantized(Quantization::Q4_0).unwrap().needs(&fast).weights;
        assert_eq!(fast > small.weights, Precision::Bytes.packs_bytes(None), "{fast} {}", small.weights);
        let twice =
            demo().quantized(Quantization::Q4_0).unwrap().quantized(Quantization::Q8_0).unwrap_err().to_string();
        assert!(twice.contains("Q4_0 already"), "{twice}");
    }

    /// As of a file with gate and up apart: they are joined first.
    #[test]
    fn what_is_joined_lives_while_its_blocks_are_made() {
        let whole = stored("experts.gate_up_proj", ElementType::Bf16, &[3, 64, 256]);
        let loading = |made| {
            let mut joined = Stored { made, ..whole.clone() };
            joined.quantize("file", Quantization::Q4K, 6).unwrap();
            assert_eq!(joined.bytes, 3 * 64 * 144);
            exact(&[joined]).loading
        };
        assert_eq!((loading(0), loading(whole.bytes)), (3 * 64 * 144, 3 * 64 * (144 + 512)));
    }

    #[test]
    fn blocks_that_are_widened_need_as_much_as_plain_numbers() {
        // As of a file that holds blocks: to make them and widen them at once is refused by the configuration.
        let blocks = super::super::open(&super::super::Source::Demo).unwrap().quantized(Quantization::Q4_0).unwrap();
        for (dtype, width) in [(WeightType::F32, 4), (WeightType::Bf16, 2)] {
            let options = LoadOptions { dtype: Some(dtype), ..LoadOptions::default() };
            let numbers = |stored: &Stored| stored.numbers() * if stored.shape.len() < 2 { 4 } else { width };
            let read = blocks.tensors.iter().filter(|stored| stored.is_read());
            assert_eq!(blocks.needs(&options).weights, read.map(numbers).sum::<u64>(), "{dtype:?}");
        }
    }
}
