//! Who runs: cancellations, deadlines, admission from the queue, and setting back.

use super::core::Core;
use super::job::{FinishReason, JobError, Phase};
use super::kv::Pages;
use super::lane::{LaneId, Stay, Tag};
use super::settings::need;

/// The waiting choice that goes first although its pages are not there yet, and how many have passed it.
#[derive(Debug, Default)]
pub(super) struct Head {
    tag: Option<Tag>,
    passed: usize,
}

impl Head {
    /// Small requests may pass a large one that waits for pages, so many times.
    const MOST_PASSED: usize = 16;
}

/// Waiting choices looked at per pass for one whose pages are there.
const LOOKED_AT: usize = 8;

/// Whether a choice can be admitted.
enum Fit {
    Admitted,
    Short,
}

impl Core {
    pub(super) fn drop_cancelled(&mut self) {
        let gone = self.waiting.values().chain(&self.running).copied();
        let gone: Vec<LaneId> = gone.filter(|&id| self.lane(id).outlet.is_closed()).collect();
        for id in gone {
            self.cancel(id);
        }
    }

    /// Ends the choices whose deadline comes before another pass could be finished.
    pub(super) fn expire(&mut self) {
        if self.deadlines.is_empty() {
            return;
        }
        let horizon = self.horizon(self.now);
        while let Some(&(at, id)) = self.deadlines.first().filter(|&&(at, _)| at <= horizon) {
            self.deadlines.remove(&(at, id));
            let lane = self.lane(id);
            if lane.canvas.step() > 0 {
                self.commit(id, true);
            } else if lane.usage.canvases > 0 {
                self.finish(id, FinishReason::Length);
            } else {
                self.fail(id, JobError::DeadlineExceeded);
            }
        }
    }

    /// Gives slots to waiting choices, in the order of their tags, as far as pages allow.
    pub(super) fn admit(&mut self) {
        self.make_slot();
        if self.waiting.is_empty() || self.slots.is_empty() {
            return;
        }
        let order: Vec<(Tag, LaneId)> = self.waiting.iter().map(|(&tag, &id)| (tag, id)).collect();
        let mut short = 0;
        for (tag, id) in order {
            if self.slots.is_empty() || short == LOOKED_AT {
                return;
            }
            if !self.may_run(id) {
                continue;
            }
            if short > 0 && self.head.passed >= Head::MOST_PASSED {
                return;
            }
            match self.admit_if_it_fits(id) {
                Fit::Admitted if short > 0 => self.head.passed += 1,
                Fit::Admitted => {}
                Fit::Short => {
                    if short == 0 && self.head.tag != Some(tag) {
                        self.head = Head { tag: Some(tag), passed: 0 };
                    }
                    short += 1;
                }
            }
        }
    }

    /// A choice that only waits for its reader gives its place to one that waits for a place.
    fn make_slot(&mut self) {
        if self.slots.is_empty() && self.waiting.values().any(|&id| self.may_run(id)) {
            self.set_back_paused();
        }
    }

    /// Takes slot and pages from a choice that only waits for its reader; false where there is none.
    fn set_back_paused(&mut self) -> bool {
        let idle = self.running.iter().rev().copied().find(|&id| self.lane(id).is_paused());
        let Some(idle) = idle else { return false };
        self.set_back(idle);
        true
    }

    /// Admits a choice, if need be with the pages of choices that only wait for their readers.
    fn admit_if_it_fits(&mut self, id: LaneId) -> Fit {
        loop {
            match self.try_admit(id) {
                Fit::Short if self.set_back_paused() => {}
                fit => return fit,
            }
        }
    }

    /// A job leaves a share of the slots to others beyond its first choice; a choice whose reader is behind waits.
    fn may_run(&self, id: LaneId) -> bool {
        let lane = self.lane(id);
        let slots = self.budget.capacity.slots;
        let left_to_others = if slots > 1 { (slots / 8).max(1) } else { 0 };
        let running = self.families.get(&lane.family).map_or(0, |family| family.running);
        (running == 0 || running < slots - left_to_others) && !lane.is_paused()
    }

    /// Admits a choice if its text and one canvas fit beside what the running ones were admitted with. If nothing runs
    /// it fits, because longer texts are refused beforehand.
    fn try_admit(&mut self, id: LaneId) -> Fit {
        let Some(&slot) = self.slots.last() else { return Fit::Short };
        let promised = self.promised();
        let beside_others = !self.running.is_empty();
        let waits_for_prompt = self.waits_for_prompt(id);
        let need = self.need(id, waits_for_prompt);
        let (lane, store) = self.lane_and_store(id);
        lane.fill_ids();
        let mut holding = store.empty();
        let cached = if waits_for_prompt { 0 } else { store.adopt(&mut holding, &lane.ids) };
        let held = Pages { full: holding.view.full.len(), sliding: holding.view.sliding.len() };
        if beside_others && !(need.less(held) + promised).fit_in(store.available()) {
            store.give_back(holding);
            return Fit::Short;
        }
        self.slots.pop();
        let now = self.now;
        let lane = self.lane_mut(id);
        let first = lane.begin(now);
        let settled = holding.view.len == lane.ids.len();
        lane.stay = Some(Stay {
            slot,
            planned: holding.view.len,
            holding,
            need,
            settled,
            stood_back: false,
            stale: true,
            in_pass: false,
            depends: None,
        });
        self.enter(id, cached);
        if first {
            self.pace_choices(id);
        }
        Fit::Admitted
    }

    /// Takes a choice's first admission into the estimate of how fast choices leave the queue, if this one waited since
    /// the one before.
    fn pace_choices(&mut self, id: LaneId) {
        let submitted = self.lane(id).common.submitted;
        if let Some(last) = self.last_choice.filter(|&last| last >= submitted) {
            self.front.choice_pace().note(self.now.saturating_duration_since(last));
        }
        self.last_choice = Some(self.now);
    }

    /// Moves an admitted choice from the queue to the running ones.
    fn enter(&mut self, id: LaneId, cached: usize) {
        let (tag, family) = (self.lane(id).tag, self.lane(id).family);
        self.waiting.remove(&tag);
        let place = self.running.partition_point(|&other| self.lane(other).tag < tag);
        self.running.insert(place, id);
        let now = self.now;
        let prompt = self.lane(id).common.prompt.len();
        if let Some(family) = self.families.get_mut(&family) {
            family.running += 1;
            let (first, submitted) = (family.cached.is_none(), family.submitted);
            let cached = *family.cached.get_or_insert(cached);
            self.lane_mut(id).usage.cached_tokens = cached;
            if first {
                self.front.metrics().admitted(now.saturating_duration_since(submitted), prompt, cached);
                let waited = self.last_admission.filter(|&last| last >= submitted);
                self.front.left_queue(waited.map(|last| now.saturating_duration_since(last)));
                self.last_admission = Some(now);
            }
        }
        self.lane(id).draft(Phase::Encode, now);
    }

    /// Whether another choice of the same job is on the way through the prompt that this one begins with.
    pub(super) fn waits_for_prompt(&self, id: LaneId) -> bool {
        let lane = self.lane(id);
        let Some(family) = self.families.get(&lane.family).filter(|_| lane.is_first_canvas()) else { return false };
        family.members.iter().any(|&other| {
            let other = self.lane(other);
            other.is_first_canvas() && other.stay.is_some()
        })
    }

    /// Pages for a choice's text and, if another may follow, one canvas; only those behind the prompt if it will share
    /// another choice's prompt.
    pub(super) fn need(&self, id: LaneId, shares_prompt: bool) -> Pages {
        let lane = self.lane(id);
        let geometry = self.budget.geometry;
        let canvas = self.budget.limits.canvas;
        let text = lane.common.prompt.len() + lane.usage.canvases * canvas;
        let end = if lane.may_go_on() { text + canvas } else { text };
        let all = need(geometry, self.budget.encode_rows, end + canvas, canvas);
        if shares_prompt {
            let shared = text / geometry.page;
            let own = geometry.pages(end) - shared;
            return if lane.may_go_on() { Pages { full: own, sliding: own } } else { Pages::default() };
        }
        all
    }

    /// What the running choices may still claim of what they were admitted with.
    fn promised(&self) -> Pages {
        self.running.iter().filter_map(|&id| self.lane(id).stay.as_ref()).fold(Pages::default(), |sum, stay| {
            let view = &stay.holding.view;
            sum + stay.need.less(Pages { full: view.full.len(), sliding: view.sliding.len() })
        })
    }

    /// Takes everything from a running choice but its text, and puts it back into the queue at its old place; it will
    /// be encoded again, and the same text follows.
    pub(super) fn set_back(&mut self, id: LaneId) {
        self.front.metrics().set_back();
        self.leave(id);
        let lane = self.lane_mut(id);
        lane.restart_canvas();
        let tag = lane.tag;
        self.waiting.insert(tag, id);
    }

    /// Takes slot and pages from a choice if it runs.
    pub(super) fn leave(&mut self, id: LaneId) {
        let (lane, store) = self.lane_and_store(id);
        let Some(stay) = lane.stay.take() else { return };
        store.give_back(stay.holding);
        let family = lane.family;
        self.slots.push(stay.slot);
        self.running.retain(|&other| other != id);
        if let Some(family) = self.families.get_mut(&family) {
            family.running -= 1;
        }
    }
}
