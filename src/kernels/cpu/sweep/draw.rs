//! The end of a sweep: entropies, and the token that a row's uniform number picks.

use super::{super::layout::PANEL, Candidate, Draw, Job, Statistics, state::RowState};

impl Job<'_> {
    /// A row's results.
    pub(super) fn conclude(&self, mut state: RowState, hidden: &[f32]) -> Statistics {
        let head = &self.sweep.heads[state.head];
        let log = state.sum.ln();
        let sampled = match head.draw {
            _ if !state.finite => state.argmax,
            Draw::Argmax => state.argmax,
            Draw::Scaled { temperature, top_p } if top_p < 1.0 => nucleus(&state, temperature, top_p),
            Draw::Scaled { .. } => self.draw(&state, hidden),
        };
        state.top.truncate(head.top_k);
        Statistics {
            argmax: state.argmax,
            sampled,
            max: state.max,
            lse: (f64::from(state.max) + log) as f32,
            entropy: (log + state.spread / state.sum).max(0.0) as f32,
            top: state.top,
            finite: state.finite && state.sum.is_finite(),
        }
    }

    /// Inverse of the cumulative distribution in the order of the vocabulary: the tile by the masses kept, the token
    /// inside it by logits that are computed again, to the same bits.
    fn draw(&self, state: &RowState, hidden: &[f32]) -> u32 {
        let factor = state.draw_factor.unwrap_or(1.0);
        let weight = |&(mass, max): &(f32, f32)| {
            f64::from(mass) * (f64::from(factor) * (f64::from(max) - f64::from(state.max))).exp()
        };
        let total: f64 = state.masses.iter().map(weight).sum();
        let mut rest = f64::from(state.uniform) * total;
        let mut chosen = None;
        for (tile, mass) in state.masses.iter().enumerate() {
            let mass = weight(mass);
            if mass > 0.0 {
                chosen = Some(tile);
                if rest < mass {
                    break;
                }
                rest -= mass;
            }
        }
        let Some(tile) = chosen else { return state.argmax };
        let panels = tile * self.panels..self.table.panels().min((tile + 1) * self.panels);
        let entries = panels.start * PANEL..self.table.outputs().min(panels.end * PANEL);
        let z = self.logits(panels, hidden, state.head);
        let mut last = state.argmax;
        for (i, &z) in z[..entries.len()].iter().enumerate() {
            let mass = (f64::from(factor) * (f64::from(z) - f64::from(state.max))).exp();
            if mass > 0.0 {
                last = (entries.start + i) as u32;
                if rest < mass {
                    break;
                }
                rest -= mass;
            }
        }
        last
    }
}

/// A draw from the smallest set of best candidates whose mass under `softmax(z / temperature)`, counted among the
/// candidates kept, reaches `top_p`.
fn nucleus(state: &RowState, temperature: f32, top_p: f32) -> u32 {
    let mass =
        |candidate: &Candidate| ((f64::from(candidate.logit) - f64::from(state.max)) / f64::from(temperature)).exp();
    let total: f64 = state.top.iter().map(mass).sum();
    let wanted = f64::from(top_p) * total;
    let mut kept = 0.0;
    let mut count = 0;
    for candidate in &state.top {
        kept += mass(candidate);
        count += 1;
        if kept >= wanted {
            break;
        }
    }
    let mut rest = f64::from(state.uniform) * kept;
    let mut token = state.argmax;
    for candidate in &state.top[..count] {
        token = candidate.token;
        let mass = mass(candidate);
        if rest < mass {
            break;
        }
        rest -= mass;
    }
    token
}
