//! Weight matrices in the order in which the kernels read them.
//!
//! A *panel* is 32 output columns; inside a panel the numbers lie input by input, 32 columns side by side, so that a
//! tile reads memory straight through. What is not stored as f32 is decoded piece by piece into a scratch that stays
//! in the first cache levels.

use half::bf16;

use super::{
    Cpu, blocks,
    coarse::Coarse,
    layout::PANEL,
    memory::{Aligned, Shared},
    path::{Checked, Task},
    simd::Simd,
    strips::Strips,
};
use crate::{ElementType, KernelError};

/// What the columns of a packed matrix are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// Column c is row c of the source; the product is `x · Wᵀ`.
    Plain,
    /// Gate and up rows side by side, 16 and 16 in each panel; the product is `gelu_tanh(x · Gᵀ) ⊙ (x · Uᵀ)`.
    Gated,
}

/// What a matrix is packed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Quantised numbers keep their size, give or take a tenth, except that each takes four bits at least: Q2_K becomes
    /// twice as large, Q3_K up to half as large again. For what is large and little used, experts. They keep their value as
    /// well, but in [`super::Precision::Bytes`], where the processor has the instructions for it: then each is read as a
    /// byte on a scale per column and 256 inputs.
    Compact,
    /// As [`Packing::Compact`], but in [`super::Precision::Bytes`] quantised numbers are rounded to such bytes at load,
    /// whatever they took: 1.8 times the size of 4.5 bits, 2.4 times that of Q3_K, 3.1 times that of Q2_K. For what every
    /// row meets.
    Fast,
}

/// A weight matrix `[outputs, inputs]`, packed once at load. Its numbers are exactly those of the source, unless
/// [`Packing`] rounds them.
pub struct PackedMatrix {
    outputs: usize,
    inputs: usize,
    columns: Columns,
    store: Store,
}

impl Packing {
    /// The format whose size is to be kept, if any.
    fn small(self, element: ElementType) -> Option<ElementType> {
        (self == Packing::Compact).then_some(element)
    }
}

/// The source's bytes of each column of a matrix; `None` for those that only fill the last panel.
type Rows<'r, 'a> = &'r (dyn Fn(usize) -> Option<&'a [u8]> + Sync + 'r);

/// What a matrix is made from and into.
struct Form {
    columns: Columns,
    element: ElementType,
    packing: Packing,
}

impl Columns {
    /// Panels of 32 columns that a matrix of so many outputs takes.
    fn panels(self, outputs: usize) -> usize {
        match self {
            Columns::Plain => outputs.div_ceil(PANEL),
            Columns::Gated => outputs.div_ceil(PANEL / 2),
        }
    }
}

enum Store {
    /// Panels of `[inputs, 32]` floats.
    F32(Aligned<f32>),
    /// Panels of `[inputs / 2, 32]` pairs: the even input in the low half.
    Bf16(Aligned<u32>),
    /// Quantised blocks.
    Strips(Strips),
    /// Quantised blocks rounded to bytes.
    Coarse(Box<Coarse>),
}

/// What a packed matrix holds, as far as the packing of rows must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Floats,
    Bf16,
    Blocks,
    Coarse,
}

/// A matrix as it is stored: how its numbers are encoded, and row after row of them.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// How the numbers are encoded.
    pub element: ElementType,
    /// Little-endian rows of `inputs` numbers each. No alignment is needed.
    pub bytes: &'a [u8],
}

impl PackedMatrix {
    /// Packs a matrix `[outputs, inputs]` for plain products. F16 is widened to f32; what is quantised is packed as
    /// `packing` says; everything else keeps its size.
    pub fn plain(
        cpu: &Cpu,
        outputs: usize,
        inputs: usize,
        source: Source<'_>,
        packing: Packing,
    ) -> Result<PackedMatrix, KernelError> {
        let row = source.row(outputs, inputs)?;
        let rows = |column: usize| (column < outputs).then(|| &source.bytes[column * row..][..row]);
        let form = Form { columns: Columns::Plain, element: source.element, packing };
        PackedMatrix::pack(cpu, outputs, inputs, form, &rows)
    }

    /// Packs gate and up, both `[outputs, inputs]`, for the gated product. Where they are one tensor
    /// `[2·outputs, inputs]`, gate is its first half. Two formats are both widened to f32.
    pub fn gated(
        cpu: &Cpu,
        outputs: usize,
        inputs: usize,
        gate: Source<'_>,
        up: Source<'_>,
        packing: Packing,
    ) -> Result<PackedMatrix, KernelError> {
        let row = gate.row(outputs, inputs)?;
        // Formats may differ between the two in a mixed file: decode both then.
        if gate.element != up.element {
            let (gate, up) = (gate.widened(outputs * inputs)?, up.widened(outputs * inputs)?);
            let source = |bytes| Source { element: ElementType::F32, bytes };
            return PackedMatrix::gated(cpu, outputs, inputs, source(&gate), source(&up), packing);
        }
        up.row(outputs, inputs)?;
        let rows = |column: usize| {
            let from = if column % PANEL < PANEL / 2 { gate } else { up };
            let index = column / PANEL * (PANEL / 2) + column % (PANEL / 2);
            (index < outputs).then(|| &from.bytes[index * row..][..row])
        };
        let form = Form { columns: Columns::Gated, element: gate.element, packing };
        PackedMatrix::pack(cpu, outputs, inputs, form, &rows)
    }

    fn pack(
        cpu: &Cpu,
        outputs: usize,
        inputs: usize,
        form: Form,
        rows: Rows<'_, '_>,
    ) -> Result<PackedMatrix, KernelError> {
        let Form { columns, element, packing } = form;
        let panels = columns.panels(outputs);
        let size = (panels, inputs);
        let store = match element {
            ElementType::F32 | ElementType::F16 => Store::floats(cpu, size, element, rows)?,
            ElementType::Bf16 => Store::bf16(cpu, size, rows)?,
            _ if cpu.packs_bytes() => Store::coarse(cpu, size, element, packing.small(element), rows)?,
            _ => Store::strips(cpu, size, element, rows)?,
        };
        Ok(PackedMatrix { outputs, inputs, columns, store })
    }

    /// Bytes that a quantised matrix of so many outputs and inputs holds in [`super::Precision::Bytes`].
    pub fn coarse_bytes(element: ElementType, outputs: usize, inputs: usize, packing: Packing) -> usize {
        Coarse::bytes_of(Columns::Plain.panels(outputs), inputs, packing.small(element))
    }

    /// Bytes that a quantised matrix of so many outputs and inputs holds otherwise; none for formats without blocks.
    pub fn strips_bytes(element: ElementType, outputs: usize, inputs: usize) -> usize {
        Strips::bytes_of(element, Columns::Plain.panels(outputs), inputs).unwrap_or(0)
    }

    /// Numbers in a row of the product.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Numbers in a row of the activations.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// What the columns are.
    pub fn columns(&self) -> Columns {
        self.columns
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.store {
            Store::F32(data) => data.bytes(),
            Store::Bf16(data) => data.bytes(),
            Store::Strips(strips) => strips.bytes(),
            Store::Coarse(coarse) => coarse.bytes(),
        }
    }

    /// Decodes row `index` of a plain matrix: an embedding lookup.
    pub fn row(&self, index: usize, out: &mut [f32]) -> Result<(), KernelError> {
        KernelError::expect("length of a matrix row", self.inputs, out.len())?;
        KernelError::below("matrix row", index, self.outputs)?;
        let (panel, lane) = (index / PANEL, index % PANEL);
        match &self.store {
            Store::F32(data) => {
                let panel = &data[panel * PANEL * self.inputs..][..PANEL * self.inputs];
                for (y, k) in out.iter_mut().zip(panel.chunks_exact(PANEL)) {
                    *y = k[lane];
                }
            }
            Store::Bf16(data) => {
                let pairs = self.inputs.div_ceil(2);
                let panel = &data[panel * PANEL * pairs..][..PANEL * pairs];
                for (y, pair) in out.chunks_mut(2).zip(panel.chunks_exact(PANEL)) {
                    let both = [pair[lane] as u16, (pair[lane] >> 16) as u16];
                    for (y, bits) in y.iter_mut().zip(both) {
                        *y = bf16::from_bits(bits).to_f32();
                    }
                }
            }
            Store::Strips(strips) => strips.column(panel, lane, out),
            Store::Coarse(coarse) => coarse.column(panel, lane, out),
        }
        Ok(())
    }

    /// Panels of 32 columns.
    pub(super) fn panels(&self) -> usize {
        self.columns.panels(self.outputs)
    }

    /// What the matrix holds.
    pub(super) fn kind(&self) -> Kind {
        match self.store {
            Store::F32(_) => Kind::Floats,
            Store::Bf16(_) => Kind::Bf16,
            Store::Strips(_) => Kind::Blocks,
            Store::Coarse(_) => Kind::Coarse,
        }
    }

    /// The quantised blocks, where that is what the matrix holds.
    pub(super) fn strips(&self) -> Option<&Strips> {
        match &self.store {
            Store::Strips(strips) => Some(strips),
            _ => None,
        }
    }

    /// The same of blocks that were rounded to bytes.
    pub(super) fn coarse(&self) -> Option<&Coarse> {
        match &self.store {
            Store::Coarse(coarse) => Some(coarse),
            _ => None,
        }
    }

    /// Inputs `from .. from + length` of a panel as `[length, 32]` floats: in place, or decoded into `scratch`.
    /// `from` is a multiple of `layout::DEPTH`, `length` at most that.
    pub(super) fn piece<'a>(
        &'a self,
        path: Checked,
        panel: usize,
        from: usize,
        length: usize,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        match &self.store {
            Store::F32(data) => return &data[(panel * self.inputs + from) * PANEL..][..length * PANEL],
            Store::Bf16(data) => {
                let pairs = &data[(panel * self.inputs.div_ceil(2) + from / 2) * PANEL..][..length.div_ceil(2) * PANEL];
                path.run(Widen { pairs, out: &mut scratch[..length.next_multiple_of(2) * PANEL] });
            }
            Store::Strips(strips) => path.run(strips.decode(panel, from, length, scratch)),
            Store::Coarse(coarse) => path.run(coarse.decode(panel, from, length, scratch)),
        }
        &scratch[..length * PANEL]
    }
}

impl PackedMatrix {
    /// Inputs `from .. from + length` of a panel as pairs of bf16 `[length / 2, 32]`: in place, or rounded into
    /// `scratch`, where their number is padded with zeros to a multiple of `granule`. `from` is a multiple of
    /// `layout::DEPTH`, `length` at most that.
    pub(super) fn pairs(
        &self,
        path: Checked,
        granule: usize,
        panel: usize,
        from: usize,
        length: usize,
        scratch: &mut [f32],
    ) -> *const u32 {
        let pairs = length.div_ceil(2);
        let padded = pairs.next_multiple_of(granule);
        if let Store::Bf16(data) = &self.store {
            let words = &data[(panel * self.inputs.div_ceil(2) + from / 2) * PANEL..][..pairs * PANEL];
            if padded == pairs {
                return words.as_ptr();
            }
            for (to, word) in scratch.iter_mut().zip(words) {
                *to = f32::from_bits(*word);
            }
        }
        scratch[pairs * PANEL..padded * PANEL].fill(0.0);
        match &self.store {
            Store::Bf16(_) => {}
            Store::F32(_) => unreachable!("rows are packed as floats for a matrix of floats"),
            Store::Strips(strips) => path.run_rounding(strips.pairs(panel, from, length, scratch)),
            Store::Coarse(coarse) => path.run_rounding(coarse.pairs(panel, from, length, scratch)),
        }
        scratch.as_ptr().cast()
    }
}

/// How each store is filled; all take the numbers of panels and inputs.
impl Store {
    fn floats(
        cpu: &Cpu,
        (panels, inputs): (usize, usize),
        element: ElementType,
        rows: Rows<'_, '_>,
    ) -> Result<Store, KernelError> {
        let mut data = Aligned::<f32>::zeroed(panels * PANEL * inputs);
        let to = Shared::new(&mut data);
        cpu.pool().run(panels, |panel| {
            // SAFETY: each panel is written by one call.
            let to = unsafe { to.part(panel * PANEL * inputs, PANEL * inputs) };
            let mut row = vec![0.0; inputs];
            for lane in 0..PANEL {
                let Some(bytes) = rows(panel * PANEL + lane) else { continue };
                blocks::dequantise(element, bytes, &mut row).expect("row lengths were checked");
                for (k, &value) in row.iter().enumerate() {
                    to[k * PANEL + lane] = value;
                }
            }
        })?;
        Ok(Store::F32(data))
    }

    fn bf16(cpu: &Cpu, (panels, inputs): (usize, usize), rows: Rows<'_, '_>) -> Result<Store, KernelError> {
        let pairs = inputs.div_ceil(2);
        let mut data = Aligned::<u32>::zeroed(panels * PANEL * pairs);
        let to = Shared::new(&mut data);
        cpu.pool().run(panels, |panel| {
            // SAFETY: each panel is written by one call.
            let to = unsafe { to.part(panel * PANEL * pairs, PANEL * pairs) };
            for lane in 0..PANEL {
                let Some(bytes) = rows(panel * PANEL + lane) else { continue };
                for (pair, bytes) in bytes.chunks(4).enumerate() {
                    let mut both = [0; 4];
                    both[..bytes.len()].copy_from_slice(bytes);
                    to[pair * PANEL + lane] = u32::from_le_bytes(both);
                }
            }
        })?;
        Ok(Store::Bf16(data))
    }

    /// `small` is the format whose size is to be kept, if any.
    fn coarse(
        cpu: &Cpu,
        (panels, inputs): (usize, usize),
        element: ElementType,
        small: Option<ElementType>,
        rows: Rows<'_, '_>,
    ) -> Result<Store, KernelError> {
        blocks::row_bytes(element, inputs)?;
        let path = cpu.checked();
        let coarse = Coarse::new(cpu, (panels, inputs), small, |index, panel| {
            for lane in 0..PANEL {
                if let Some(row) = rows(index * PANEL + lane) {
                    panel.write(path, element, row, lane);
                }
            }
        })?;
        Ok(Store::Coarse(Box::new(coarse)))
    }

    fn strips(
        cpu: &Cpu,
        (panels, inputs): (usize, usize),
        element: ElementType,
        rows: Rows<'_, '_>,
    ) -> Result<Store, KernelError> {
        blocks::row_bytes(element, inputs)?;
        let mut strips =
            Strips::zeroed(element, panels, inputs).expect("formats without blocks have stores of their own");
        let (records, supers) = strips.panel_lengths();
        let (to_records, to_supers) = strips.panel_mut();
        cpu.pool().run(panels, |panel| {
            // SAFETY: each panel is written by one call.
            let (to_records, to_supers) =
                unsafe { (to_records.part(panel * records, records), to_supers.part(panel * supers, supers)) };
            for lane in 0..PANEL {
                if let Some(row) = rows(panel * PANEL + lane) {
                    Strips::write(element, row, lane, to_records, to_supers);
                }
            }
        })?;
        Ok(Store::Strips(strips))
    }
}

/// Pairs of bf16 `[pairs, 32]` to floats `[2·pairs, 32]`.
struct Widen<'a> {
    pairs: &'a [u32],
    out: &'a mut [f32],
}

impl Task for Widen<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (pair, out) in self.pairs.chunks_exact(PANEL).zip(self.out.chunks_exact_mut(2 * PANEL)) {
            for lane in (0..PANEL).step_by(S::LANES) {
                // SAFETY: 32 words and 64 floats, and LANES divides 32.
                unsafe {
                    let words = s.load_words(pair.as_ptr().add(lane));
                    s.store(out.as_mut_ptr().add(lane), s.as_floats(s.shift(words, 16)));
                    s.store(out.as_mut_ptr().add(PANEL + lane), s.as_floats(s.and(words, 0xffff_0000)));
                }
            }
        }
    }
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedMatrix")
            .field("outputs", &self.outputs)
            .field("inputs", &self.inputs)
            .field("columns", &self.columns)
            .field("bytes", &self.bytes())
            .finish()
    }
}

impl Source<'_> {
    /// Bytes of one row, if all of `[outputs, inputs]` is there.
    fn row(&self, outputs: usize, inputs: usize) -> Result<usize, KernelError> {
        let row = blocks::row_bytes(self.element, inputs)?;
        KernelError::expect("bytes of a matrix", outputs.saturating_mul(row), self.bytes.len())?;
        Ok(row)
    }

    fn widened(&self, count: usize) -> Result<Vec<u8>, KernelError> {
        let mut values = vec![0.0; count];
        blocks::dequantise(self.element, self.bytes, &mut values)?;
        Ok(values.iter().flat_map(|value: &f32| value.to_le_bytes()).collect())
    }
}
