//! Grouped experts: rows sorted by expert once, one product per active expert, and the results of a row summed in the
//! order of its ranks.

use std::ops::Range;

use super::{
    Cpu,
    layout::PANEL,
    memory::{Scratch, Shared},
    operand::{Operand, PackedRows},
    pack::{Columns, PackedMatrix},
    path::Checked,
    rows::GatedGelu,
};
use crate::KernelError;

/// The experts of one layer: for each, gate and up `[inner, hidden]` (a gated matrix) and down `[hidden, inner]`.
#[derive(Debug)]
pub struct Experts {
    gate_up: Vec<PackedMatrix>,
    down: Vec<PackedMatrix>,
    hidden: usize,
    inner: usize,
}

impl Experts {
    /// Takes equally many gated matrices `[inner, hidden]` and plain ones `[hidden, inner]`, at least one of each.
    pub fn new(gate_up: Vec<PackedMatrix>, down: Vec<PackedMatrix>) -> Result<Experts, KernelError> {
        KernelError::expect("down matrices of the experts", gate_up.len(), down.len())?;
        KernelError::below("no expert", 0, gate_up.len())?;
        let (hidden, inner) = (gate_up[0].inputs(), gate_up[0].outputs());
        KernelError::below("inner width of the experts", 0, inner)?;
        let (first, last) = (&gate_up[0], &down[0]);
        for (gate_up, down) in gate_up.iter().zip(&down) {
            let gated = usize::from(gate_up.columns() == Columns::Gated && down.columns() == Columns::Plain);
            KernelError::expect("gated, then plain matrices of an expert", 1, gated)?;
            KernelError::expect("inputs of an expert", hidden, gate_up.inputs())?;
            KernelError::expect("inner width of an expert", inner, gate_up.outputs())?;
            KernelError::expect("inputs of an expert's down matrix", inner, down.inputs())?;
            KernelError::expect("outputs of an expert", hidden, down.outputs())?;
            // Rows are packed once for all experts.
            let alike = gate_up.kind() == first.kind() && down.kind() == last.kind();
            KernelError::expect("experts that are all of one kind of numbers", 1, usize::from(alike))?;
        }
        Ok(Experts { gate_up, down, hidden, inner })
    }

    /// Experts in the layer.
    pub fn count(&self) -> usize {
        self.down.len()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.gate_up.iter().chain(&self.down).map(PackedMatrix::bytes).sum()
    }
}

/// Which experts each row goes to, both `[rows, top_k]`.
#[derive(Debug, Clone, Copy)]
pub struct Routing<'a> {
    /// Expert numbers, by rank.
    pub experts: &'a [u32],
    /// What each expert's result is multiplied by.
    pub weights: &'a [f32],
    /// Experts per row.
    pub top_k: usize,
}

/// Rows sorted by expert. A *place* is an index into the sorted order.
struct Groups {
    /// `(expert, first place, places)` of each expert that has rows, by expert.
    active: Vec<(usize, usize, usize)>,
    /// Row of each place.
    rows: Vec<u32>,
    /// Place of each `[row, rank]`.
    places: Vec<u32>,
}

impl Groups {
    fn new(routing: &Routing<'_>, experts: usize) -> Result<Groups, KernelError> {
        let mut counts = vec![0usize; experts];
        for &expert in routing.experts {
            KernelError::below("expert number", expert as usize, experts)?;
            counts[expert as usize] += 1;
        }
        let mut active = Vec::new();
        let mut next = vec![0usize; experts];
        let mut start = 0;
        for (expert, &count) in counts.iter().enumerate() {
            next[expert] = start;
            if count > 0 {
                active.push((expert, start, count));
            }
            start += count;
        }
        let (mut rows, mut places) = (vec![0; start], vec![0; start]);
        for (slot, &expert) in routing.experts.iter().enumerate() {
            let place = &mut next[expert as usize];
            rows[*place] = (slot / routing.top_k) as u32;
            places[slot] = *place as u32;
            *place += 1;
        }
        Ok(Groups { active, rows, places })
    }
}

/// The first half of the experts, as its parallel calls share it.
struct FirstHalf<'a> {
    path: Checked,
    /// `[rows, hidden]`
    x: &'a [f32],
    experts: &'a Experts,
    groups: &'a Groups,
    first: Operand,
    second: Operand,
    /// Activations `[places, inner]`.
    rows: Shared<f32>,
    /// The same in the second half's tile order, per expert.
    to: Shared<f32>,
}

impl FirstHalf<'_> {
    /// Computes some panels of one expert's activations.
    ///
    /// # Safety
    /// No other call has this expert's places and these panels meanwhile, and `rows` is as long as said.
    unsafe fn compute(&self, (expert, start, count): (usize, usize, usize), panels: Range<usize>) {
        let (k, n) = (self.experts.hidden, self.experts.inner);
        let operand = self.first;
        let members = &self.groups.rows[start..start + count];
        let mut packed = Scratch::take(count * operand.width(k));
        operand.pack(count, k, |i| &self.x[members[i] as usize * k..][..k], &mut packed);
        let packed = PackedRows { operand, data: &packed, rows: count, k };
        let width = panels.len() * PANEL;
        let mut room = Scratch::take(count * width);
        // SAFETY: `room` belongs to this call and holds whole panels.
        unsafe { packed.times(&self.experts.gate_up[expert], panels.clone(), room.as_mut_ptr(), width) };
        let first = panels.start * PANEL / 2;
        let columns = (width / 2).min(n - first);
        for (row, room) in room.chunks_exact_mut(width).enumerate() {
            self.path.run(GatedGelu { panels: room });
            // SAFETY: this call owns these rows' columns `first .. first + columns`.
            unsafe {
                std::ptr::copy_nonoverlapping(room.as_ptr(), self.rows.get().add((start + row) * n + first), columns)
            };
        }
    }

    /// Brings one expert's activations into the second half's order.
    ///
    /// # Safety
    /// They are complete, and no other call touches them or packs them; `rows` and `to` are as long as said.
    unsafe fn pack(&self, (_, start, count): (usize, usize, usize)) {
        let n = self.experts.inner;
        let width = self.second.width(n);
        // SAFETY: the caller's promise: the places of one expert.
        let (rows, to) = unsafe {
            (
                std::slice::from_raw_parts(self.rows.get().add(start * n), count * n),
                self.to.part(start * width, count * width),
            )
        };
        self.second.pack(count, n, |row| &rows[row * n..][..n], to);
    }
}

impl Cpu {
    /// `out[row] = Σ_rank weights[row, rank] · down_e(gelu_tanh(gate_e · x) ⊙ up_e · x)`, e the row's expert of that
    /// rank, summed in the order of the ranks; `x` and `out` are `[rows, hidden]`.
    pub fn experts(
        &self,
        x: &[f32],
        routing: Routing<'_>,
        experts: &Experts,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let hidden = experts.hidden;
        KernelError::expect("results of the experts", x.len(), out.len())?;
        let rows = super::rows::whole_rows("activations of the experts", x.len(), hidden)?;
        KernelError::expect("expert numbers", rows * routing.top_k, routing.experts.len())?;
        KernelError::expect("expert weights", rows * routing.top_k, routing.weights.len())?;
        if rows == 0 || routing.top_k == 0 {
            out.fill(0.0);
            return Ok(());
        }
        let groups = Groups::new(&routing, experts.count())?;
        let operand = self.operand(&experts.down[0]);
        let mut inner = Scratch::take(groups.rows.len() * operand.width(experts.inner));
        self.gate_and_up(x, experts, &groups, operand, &mut inner)?;
        self.down(operand, &inner, routing, experts, &groups, out)
    }

    /// First half: activations of every place, left in tile order per expert for the second.
    fn gate_and_up(
        &self,
        x: &[f32],
        experts: &Experts,
        groups: &Groups,
        second: Operand,
        to: &mut [f32],
    ) -> Result<(), KernelError> {
        let panels = experts.gate_up[0].panels();
        // Whole experts where there are enough of them to balance the threads.
        let parts = (4 * self.threads()).div_ceil(groups.active.len()).clamp(1, panels);
        let parts = if self.threads() == 1 { 1 } else { parts };
        let mut rows = Scratch::take(groups.rows.len() * experts.inner);
        let half = FirstHalf {
            path: self.checked(),
            x,
            experts,
            groups,
            first: self.operand(&experts.gate_up[0]),
            second,
            rows: Shared::new(&mut rows),
            to: Shared::new(to),
        };
        self.pool().run(groups.active.len() * parts, |index| {
            let group = groups.active[index / parts];
            // `parts` is at most the number of panels, so that no part is empty and none lies beyond them.
            let part = index % parts;
            // SAFETY: each part of each expert is computed by one call.
            unsafe { half.compute(group, panels * part / parts..panels * (part + 1) / parts) };
            if parts == 1 {
                // SAFETY: this call has just computed the whole expert, and no other touches it.
                unsafe { half.pack(group) };
            }
        })?;
        if parts > 1 {
            self.pool().run(groups.active.len(), |index| {
                // SAFETY: the round before computed every part; each expert is packed by one call.
                unsafe { half.pack(groups.active[index]) };
            })?;
        }
        Ok(())
    }

    /// Second half: down, some columns at a time for all experts, then the sum by rank.
    fn down(
        &self,
        operand: Operand,
        inner: &[f32],
        routing: Routing<'_>,
        experts: &Experts,
        groups: &Groups,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let (k, hidden) = (experts.inner, experts.hidden);
        let packed_width = operand.width(k);
        let panels = experts.down[0].panels();
        let chunk = self.chunk(panels);
        let rows = out.len() / hidden;
        let to = Shared::new(out);
        self.pool().run(panels.div_ceil(chunk), |index| {
            let panels = index * chunk..panels.min((index + 1) * chunk);
            let width = panels.len() * PANEL;
            let mut room = Scratch::take(groups.rows.len() * width);
            for &(expert, start, count) in &groups.active {
                let data = &inner[start * packed_width..(start + count) * packed_width];
                let packed = PackedRows { operand, data, rows: count, k };
                let room = &mut room[start * width..][..count * width];
                // SAFETY: `room` belongs to this call and holds whole panels.
                unsafe { packed.times(&experts.down[expert], panels.clone(), room.as_mut_ptr(), width) };
            }
            let first = panels.start * PANEL;
            let columns = width.min(hidden - first);
            for row in 0..rows {
                // SAFETY: this call owns columns `first .. first + columns` of every row.
                let out = unsafe { to.part(row * hidden + first, columns) };
                out.fill(0.0);
                for slot in row * routing.top_k..(row + 1) * routing.top_k {
                    let weight = routing.weights[slot];
                    let from = &room[groups.places[slot] as usize * width..][..columns];
                    for (y, value) in out.iter_mut().zip(from) {
                        *y += weight * value;
                    }
                }
            }
        })
    }
}
