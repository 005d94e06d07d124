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
            Draw::Scaled { top_p, .. } if top_p < 1.0 => nucleus(&state, top_p),
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
        let total: f64 = state.masses.iter().map(|mass| state.weight(mass)).sum();
        let mut rest = f64::from(state.uniform) * total;
        let mut chosen = None;
        for (tile, mass) in state.masses.iter().enumerate() {
            let mass = state.weight(mass);
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
            let mass = state.share(z);
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

/// A draw from the smallest set of best candidates whose mass reaches `top_p` of the whole vocabulary's; from all that are
/// kept where they do not reach it.
fn nucleus(state: &RowState, top_p: f32) -> u32 {
    let total: f64 = state.masses.iter().map(|mass| state.weight(mass)).sum();
    let mass = |candidate: &Candidate| state.share(candidate.logit);
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
