//! What a pass holds: encode chunks first, then a step of every canvas that is ready.
//!
//! Committed canvases are encoded at once, with their next canvas's first step in the same pass. Prompts share a budget
//! of rows per pass, at least half of it for the oldest, the rest for whoever has least left, so that neither a long
//! prompt holds up short ones nor the other way round.

use super::core::{Core, Entry};
use super::lane::{Lane, LaneId};
use crate::pass::Segment;

impl Core {
    pub(super) fn build(&mut self) {
        self.pass.segments.clear();
        self.entries.clear();
        self.in_flight.clear();
        self.figures = Default::default();
        let mut unread = false;
        for index in 0..self.running.len() {
            let lane = self.lane_mut(self.running[index]);
            if let Some(stay) = &mut lane.stay {
                stay.planned = stay.holding.view.len;
                stay.in_pass = false;
                stay.depends = None;
                unread |= stay.planned < lane.ids.len();
            }
        }
        if unread {
            self.plan_encodes();
        }
        self.plan_steps();
    }

    /// Tokens of a choice that are not encoded yet.
    fn remaining(&self, id: LaneId) -> usize {
        let lane = self.lane(id);
        lane.stay.as_ref().map_or(0, |stay| lane.ids.len() - stay.planned)
    }

    fn plan_encodes(&mut self) {
        let page = self.budget.geometry.page;
        // Every running canvas may take a step in this pass; the capacity leaves at least a page beside them.
        let mut rows = self.budget.capacity.rows - self.running.len() * self.budget.limits.canvas;
        let (canvases, prompts) = self.unread();
        let mut budget = self.prompt_rows(&canvases);
        // The oldest goes first whatever it is, so that nobody else's claims can hold it up for ever.
        let first = prompts
            .first()
            .copied()
            .filter(|&prompt| canvases.first().is_none_or(|&canvas| self.lane(prompt).tag < self.lane(canvas).tag));
        if let Some(first) = first {
            let used = self.plan_prompt(first, self.share_of_first(&prompts, budget.min(rows)));
            rows -= used;
            budget -= used;
        }
        let kept = if prompts.is_empty() { 0 } else { (budget / 4).max(page).min(rows) };
        for (index, id) in canvases.into_iter().enumerate() {
            let is_oldest = index == 0 && first.is_none();
            rows -= self.plan_encode(id, if is_oldest { rows } else { rows.saturating_sub(kept) });
        }
        let mut left = budget.min(rows);
        if first.is_none()
            && let Some(&first) = prompts.first()
        {
            left -= self.plan_prompt(first, self.share_of_first(&prompts, left));
        }
        self.plan_other_prompts(&prompts, left);
    }

    /// Rows for prompts in this pass. Canvases that happen to be committed together can be many rows by themselves; prompts
    /// then get less, but always a quarter of their budget, so that no pass is much longer than the budget makes it. Where
    /// many canvases run anyway, half as many rows of encoding are no burden.
    fn prompt_rows(&self, canvases: &[LaneId]) -> usize {
        let most = self.budget.encode_rows;
        let bearable = most.max(self.running.len() * self.budget.limits.canvas / 2);
        let committed: usize = canvases.iter().map(|&id| self.remaining(id)).sum();
        bearable.saturating_sub(committed).clamp((most / 4).max(self.budget.geometry.page), most)
    }

    /// The choices with tokens to encode that may go on: those that only have a canvas to encode, and those that are on
    /// their way through a longer text. Of the choices that share a prompt only the first is among them.
    fn unread(&self) -> (Vec<LaneId>, Vec<LaneId>) {
        let (mut canvases, mut prompts, mut families) = (Vec::new(), Vec::new(), Vec::new());
        for &id in &self.running {
            let lane = self.lane(id);
            if self.remaining(id) == 0 || lane.is_paused() {
                continue;
            }
            if lane.stay.as_ref().is_some_and(|stay| stay.settled) {
                canvases.push(id);
            } else if !lane.is_first_canvas() {
                prompts.push(id);
            } else if !families.contains(&lane.family) {
                families.push(lane.family);
                prompts.push(id);
            }
        }
        (canvases, prompts)
    }

    /// Rows for the oldest prompt: half of what there is, and what the others do not want. Those that stood back in the
    /// pass before want none: they most likely wait for pages of this prompt again.
    fn share_of_first(&self, prompts: &[LaneId], rows: usize) -> usize {
        let stood_back = |id: LaneId| self.lane(id).stay.as_ref().is_some_and(|stay| stay.stood_back);
        let others = prompts.iter().skip(1).copied().filter(|&id| !stood_back(id));
        let others: usize = others.map(|id| self.remaining(id)).sum();
        let half = (rows / 2).max(self.budget.geometry.page);
        rows.saturating_sub(others).max(half).min(rows)
    }

    /// Gives the remaining rows to the prompts with the least left, and lets those choices begin whose prompt another
    /// choice of their job finishes in this pass.
    fn plan_other_prompts(&mut self, prompts: &[LaneId], mut rows: usize) {
        let mut shortest: Vec<LaneId> = prompts.iter().skip(1).copied().collect();
        shortest.sort_by_key(|&id| self.remaining(id));
        for id in shortest {
            rows -= self.plan_prompt(id, rows);
        }
        for index in 0..self.running.len() {
            self.share_prompt(self.running[index]);
        }
    }

    /// Plans a chunk of a prompt, unless its next page is another choice's in this pass or the whole is shared.
    /// Returns the rows used.
    fn plan_prompt(&mut self, id: LaneId, rows: usize) -> usize {
        if self.share_prompt(id) {
            return 0;
        }
        let (lane, store) = self.lane_and_store(id);
        let Some(stay) = &mut lane.stay else { return 0 };
        if std::mem::take(&mut stay.stood_back) {
            store.adopt(&mut stay.holding, &lane.ids);
            stay.planned = stay.holding.view.len;
            stay.stale = true;
            stay.settled = stay.planned == lane.ids.len();
            if stay.settled {
                return 0;
            }
        }
        let next = store.next_page(&stay.holding, &lane.ids);
        if next.is_some_and(|next| self.in_flight.contains(&next)) {
            if let Some(stay) = &mut self.lane_mut(id).stay {
                stay.stood_back = true;
            }
            return 0;
        }
        let used = self.plan_encode(id, rows);
        if used > 0 {
            self.in_flight.extend(next);
        }
        used
    }

    /// Plans to encode as much of a choice's text as `rows` and the pages allow, to the end or to the end of a page.
    /// Returns the rows used.
    fn plan_encode(&mut self, id: LaneId, rows: usize) -> usize {
        let page = self.budget.geometry;
        let (lane, store) = self.lane_and_store(id);
        let Some(stay) = &mut lane.stay else { return 0 };
        store.step_back_if_shared(&mut stay.holding);
        let start = stay.holding.view.len;
        stay.planned = start;
        let whole = lane.ids.len();
        let end = if start + rows >= whole { whole } else { page.floor(start + rows) };
        if end <= start || !self.claim(id, end) {
            return 0;
        }
        let lane = self.lane_mut(id);
        let Some(stay) = &mut lane.stay else { return 0 };
        stay.planned = end;
        stay.in_pass = true;
        stay.stale = true;
        let tokens = lane.ids[start..end].to_vec();
        let kv = stay.holding.view.clone();
        self.pass.segments.push(Segment::Encode { kv, tokens });
        self.entries.push(Entry::Encode { lane: id, end });
        self.figures.encode_rows += end - start;
        end - start
    }

    /// Gives a choice the pages to encode up to `end`, if need be those of younger choices, or of choices that wait for
    /// their readers, that are not in this pass yet.
    fn claim(&mut self, id: LaneId, end: usize) -> bool {
        loop {
            let (lane, store) = self.lane_and_store(id);
            let Some(stay) = &mut lane.stay else { return false };
            if store.claim(&mut stay.holding, end) {
                return true;
            }
            let Some(victim) = self.victim(id) else { return false };
            self.set_back(victim);
        }
    }

    fn victim(&self, claimant: LaneId) -> Option<LaneId> {
        let tag = self.lane(claimant).tag;
        let free = |id: &LaneId| *id != claimant && self.lane(*id).stay.as_ref().is_some_and(|stay| !stay.in_pass);
        let paused = |id: &LaneId| free(id) && self.lane(*id).is_paused();
        let younger = |id: &LaneId| free(id) && self.lane(*id).tag > tag;
        let mut youngest_first = self.running.iter().rev().copied();
        youngest_first.clone().find(paused).or_else(|| youngest_first.find(younger))
    }

    /// If another choice of the same job has the whole prompt encoded, or will have in this pass, shares its pages.
    fn share_prompt(&mut self, id: LaneId) -> bool {
        let lane = self.lane(id);
        let prompt = lane.common.prompt.len();
        let wants = |lane: &Lane| lane.stay.as_ref().is_some_and(|stay| !stay.in_pass && stay.planned < prompt);
        let has = |lane: &Lane| lane.is_first_canvas() && lane.stay.as_ref().is_some_and(|stay| stay.planned == prompt);
        if !lane.is_first_canvas() || !wants(lane) {
            return false;
        }
        let Some(family) = self.families.get(&lane.family) else { return false };
        let Some(source) = family.members.iter().copied().find(|&other| has(self.lane(other))) else { return false };
        let writes = |entry: &Entry| matches!(entry, Entry::Encode { lane, .. } if *lane == source);
        let depends = self.lane(source).stay.as_ref().and_then(|stay| stay.depends);
        let depends = depends.or_else(|| self.entries.iter().position(writes));
        let Some(holding) = self.fork(source) else { return false };
        let need = self.need(id, false);
        let (lane, store) = self.lane_and_store(id);
        if let Some(stay) = &mut lane.stay {
            store.give_back(std::mem::replace(&mut stay.holding, holding));
            stay.need = need;
            stay.planned = prompt;
            stay.settled = true;
            stay.stale = true;
            stay.depends = depends;
        }
        true
    }

    /// A step of every canvas whose prefix is encoded, or will be in this pass.
    fn plan_steps(&mut self) {
        for index in 0..self.running.len() {
            let id = self.running[index];
            let lane = self.lane_mut(id);
            let ready = lane.stay.as_ref().is_some_and(|stay| stay.planned == lane.ids.len());
            if !ready || lane.is_paused() {
                continue;
            }
            if let Some(segment) = lane.take_segment() {
                if let Some(stay) = &mut lane.stay {
                    stay.in_pass = true;
                }
                self.figures.denoise_rows += segment.rows();
                self.figures.canvases += 1;
                self.pass.segments.push(segment);
                self.entries.push(Entry::Step { lane: id });
            }
        }
    }
}
