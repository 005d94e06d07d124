//! The engine without its thread and its clock: a state machine that plans one pass after another.
//!
//! Time is a parameter of every call, so that whole days of traffic can be played in a test within milliseconds. The
//! owner calls [`Core::arrive`] for what has come in, [`Core::plan`] to learn the next pass, and [`Core::apply`] with
//! what the model answered. The parts: `admission` decides who runs, `planning` what a pass holds, `outcome` what
//! follows from it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::Head;
use super::front::{Front, State, Submission};
use super::job::{JobError, Phase};
use super::kv::{Holding, NodeId, Store};
use super::lane::{Common, Lane, LaneId, Tag};
use super::metrics::{Levels, Outcome, PassFigures};
use super::settings::{Budget, Settings, StartError};
use crate::pass::{Capacity, Limits, Pass, SlotId};

/// What a segment of the planned pass is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entry {
    /// The lane's tokens up to `end`.
    Encode { lane: LaneId, end: usize },
    /// A step of the lane's canvas.
    Step { lane: LaneId },
}

/// A job of which some choice is still there.
pub(super) struct Family {
    pub(super) members: Vec<LaneId>,
    pub(super) running: usize,
    /// Prompt tokens found encoded when the first choice was admitted; `None` while the job waits.
    pub(super) cached: Option<usize>,
    pub(super) submitted: Instant,
    pub(super) outcome: Outcome,
    pub(super) has_text: bool,
    pub(super) has_draft: bool,
}

/// The state machine.
pub struct Core {
    pub(super) budget: Budget,
    pub(super) front: Arc<Front>,
    pub(super) store: Store,
    pub(super) lanes: Vec<Option<Lane>>,
    vacant: Vec<LaneId>,
    pub(super) families: HashMap<u64, Family>,
    /// Jobs that have arrived so far, and requests.
    arrivals: u64,
    requests: u64,
    pub(super) waiting: BTreeMap<Tag, LaneId>,
    /// Those that hold a slot, in the order of their tags.
    pub(super) running: Vec<LaneId>,
    pub(super) slots: Vec<SlotId>,
    pub(super) deadlines: BTreeSet<(Instant, LaneId)>,
    pub(super) head: Head,
    /// When a request, and when a choice of any request, was last admitted for the first time.
    pub(super) last_admission: Option<Instant>,
    pub(super) last_choice: Option<Instant>,
    cancellations: usize,
    pub(super) now: Instant,
    pub(super) pass: Pass,
    pub(super) entries: Vec<Entry>,
    /// Pages that lanes of the pass being planned encode, so that others may wait for them.
    pub(super) in_flight: Vec<(NodeId, u64)>,
    pub(super) durations: Durations,
    pub(super) figures: PassFigures,
}

impl Core {
    /// A machine for a model of these limits, with the capacity that the model must reserve before the first pass.
    pub fn new(limits: &Limits, settings: &Settings, now: Instant) -> Result<(Core, Capacity), StartError> {
        let budget = Budget::new(limits, settings)?;
        let capacity = budget.capacity;
        let core = Core {
            front: Arc::new(Front::new(budget.clone(), settings)),
            store: Store::new(limits, budget.pages(), budget.cache_bytes),
            lanes: Vec::new(),
            vacant: Vec::new(),
            families: HashMap::new(),
            arrivals: 0,
            requests: 0,
            waiting: BTreeMap::new(),
            running: Vec::new(),
            slots: (0..capacity.slots as u32).rev().map(SlotId).collect(),
            deadlines: BTreeSet::new(),
            head: Head::default(),
            last_admission: None,
            last_choice: None,
            cancellations: 0,
            now,
            pass: Pass::default(),
            entries: Vec::new(),
            in_flight: Vec::new(),
            durations: Durations::default(),
            figures: PassFigures::default(),
            budget,
        };
        core.note_levels();
        Ok((core, capacity))
    }

    /// The callers' side.
    pub fn front(&self) -> Arc<Front> {
        self.front.clone()
    }

    /// Takes a submitted job into the queue. The jobs of a request come in their order, with no other between them.
    pub fn arrive(&mut self, submission: Submission) {
        let Submission { job, submitted, outlets, places } = submission;
        let before = job.choices_before;
        if before == 0 {
            self.requests += 1;
        }
        let (common, choices) = Common::new(job, submitted, &self.budget.limits);
        let common = Arc::new(common);
        let number = self.arrivals;
        self.arrivals += 1;
        let mut members = Vec::with_capacity(choices.len());
        for (index, (choice, (outlet, place))) in choices.into_iter().zip(outlets.into_iter().zip(places)).enumerate() {
            let tag = Tag::new(self.requests, number, before + index);
            if outlet.is_closed() {
                // Its reader left before anybody here could have counted it.
                self.cancellations = usize::MAX;
            }
            let lane = Lane::new(common.clone(), choice, number, tag, (outlet, place));
            lane.draft(Phase::Queued, submitted);
            let id = self.insert(lane);
            members.push(id);
            self.waiting.insert(tag, id);
            if let Some(deadline) = common.deadline {
                self.deadlines.insert((deadline, id));
            }
        }
        let family = Family {
            members,
            running: 0,
            cached: None,
            submitted,
            outcome: Outcome::Finished,
            has_text: false,
            has_draft: false,
        };
        self.families.insert(number, family);
    }

    /// Plans the next pass; false if there is nothing to run. [`Core::apply`] follows a pass that was run; one that was
    /// not is planned anew by calling this again.
    pub fn plan(&mut self, now: Instant) -> bool {
        self.now = now;
        self.unplan();
        let cancellations = self.front.bell().cancellations();
        if cancellations != self.cancellations {
            self.cancellations = cancellations;
            self.drop_cancelled();
        }
        self.expire();
        self.admit();
        self.build();
        let planned = !self.entries.is_empty();
        if !planned {
            // What passes took in other company says nothing of the next, which may come after any time.
            self.durations.forget();
            // After a pass the levels are noted anyway; where none follows, what has just left would be counted for ever.
            self.note_levels();
        }
        planned
    }

    /// Forgets a planned pass that was not run.
    fn unplan(&mut self) {
        if self.entries.is_empty() {
            return;
        }
        self.return_segments();
        self.entries.clear();
        for id in self.running.clone() {
            let (lane, store) = self.lane_and_store(id);
            // What it shares was to be encoded by that pass.
            if let Some(stay) = lane.stay.as_mut().filter(|stay| stay.depends.is_some()) {
                stay.depends = None;
                let nothing = store.empty();
                store.give_back(std::mem::replace(&mut stay.holding, nothing));
                stay.settled = false;
            }
        }
    }

    /// The planned pass.
    pub fn pass(&self) -> &Pass {
        &self.pass
    }

    /// Metrics as OpenMetrics text.
    pub fn metrics(&self) -> String {
        self.front.metrics_text()
    }

    /// Whether no choice is waiting or running.
    pub fn is_idle(&self) -> bool {
        self.families.is_empty()
    }

    /// When to plan again although nothing arrives, if nothing can run now.
    pub fn wake_at(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(at, _)| at.checked_sub(self.durations.median()).unwrap_or(at))
    }

    /// When a pass that begins `now` will most likely have ended.
    pub(super) fn horizon(&self, now: Instant) -> Instant {
        now + self.durations.median()
    }

    /// Ends every choice with an error, and refuses new ones.
    pub fn stop(&mut self, error: &JobError, now: Instant) {
        self.now = now;
        self.front.advance(State::Stopped);
        for id in (0..self.lanes.len()).map(LaneId) {
            self.fail(id, error.clone());
        }
        self.note_levels();
    }

    fn insert(&mut self, lane: Lane) -> LaneId {
        match self.vacant.pop() {
            Some(id) => {
                self.lanes[id.0] = Some(lane);
                id
            }
            None => {
                self.lanes.push(Some(lane));
                LaneId(self.lanes.len() - 1)
            }
        }
    }

    pub(super) fn remove(&mut self, id: LaneId) -> Option<Lane> {
        let lane = self.lanes.get_mut(id.0)?.take()?;
        self.vacant.push(id);
        Some(lane)
    }

    pub(super) fn get(&self, id: LaneId) -> Option<&Lane> {
        self.lanes.get(id.0)?.as_ref()
    }

    /// A lane known to be there: its id comes from `waiting`, `running` or a plan.
    pub(super) fn lane(&self, id: LaneId) -> &Lane {
        self.lanes[id.0].as_ref().expect("a listed lane exists")
    }

    pub(super) fn lane_mut(&mut self, id: LaneId) -> &mut Lane {
        self.lanes[id.0].as_mut().expect("a listed lane exists")
    }

    /// A running lane and the store, to move pages between them.
    pub(super) fn lane_and_store(&mut self, id: LaneId) -> (&mut Lane, &mut Store) {
        (self.lanes[id.0].as_mut().expect("a listed lane exists"), &mut self.store)
    }

    /// A second holding of all that a running lane will have encoded after the pass being planned.
    pub(super) fn fork(&mut self, source: LaneId) -> Option<Holding> {
        let stay = self.lanes[source.0].as_ref()?.stay.as_ref()?;
        Some(self.store.fork(&stay.holding, stay.planned))
    }

    pub(super) fn note_levels(&self) {
        let (capacity, used) = self.store.bytes();
        self.front.metrics().levels(&Levels {
            running: self.running.len(),
            kv_used: used,
            kv_cached: self.store.cached_bytes(),
            kv_capacity: capacity,
        });
    }

    /// Checks the books, between passes: every page, slot and lane is where exactly one place says it is, and no budget
    /// is exceeded. For tests; costs time in proportion to everything there is.
    pub fn audit(&self) -> Result<(), String> {
        let stays = || self.lanes.iter().flatten().filter_map(|lane| lane.stay.as_ref());
        self.store.audit(stays().map(|stay| &stay.holding))?;
        let mut slots: Vec<SlotId> = stays().map(|stay| stay.slot).chain(self.slots.iter().copied()).collect();
        slots.sort_unstable();
        let all = (0..self.budget.capacity.slots as u32).map(SlotId);
        if !slots.iter().copied().eq(all) {
            return Err(format!("slots held and free: {slots:?}"));
        }
        let sorted = self.running.windows(2).all(|pair| self.lane(pair[0]).tag < self.lane(pair[1]).tag);
        if !sorted
            || self.running.iter().any(|&id| self.lane(id).stay.is_none())
            || stays().count() != self.running.len()
        {
            return Err("the running lanes are not in order".into());
        }
        let lanes = self.lanes.iter().flatten().count();
        let members: usize = self.families.values().map(|family| family.members.len()).sum();
        if lanes != self.waiting.len() + self.running.len() || lanes != members {
            return Err(format!("{lanes} lanes, {} waiting, {} running", self.waiting.len(), self.running.len()));
        }
        let queued = || self.lanes.iter().flatten().filter(|lane| lane.place.is_some());
        if queued().count() != self.front.queued_choices() || queued().any(|lane| !lane.canvas.tokens().is_empty()) {
            return Err(format!("{} choices are queued, without canvases", self.front.queued_choices()));
        }
        let rows: usize = self.pass.segments.iter().map(|segment| segment.rows()).sum();
        if rows > self.budget.capacity.rows {
            return Err(format!("{rows} rows in a pass of at most {}", self.budget.capacity.rows));
        }
        if lanes == 0 && !self.store.is_idle() {
            return Err("pages are held by nobody".into());
        }
        Ok(())
    }
}

/// Durations of the latest passes.
#[derive(Debug, Default)]
pub(super) struct Durations {
    latest: std::collections::VecDeque<Duration>,
}

impl Durations {
    const KEPT: usize = 31;

    pub(super) fn add(&mut self, duration: Duration) {
        if self.latest.len() == Self::KEPT {
            self.latest.pop_front();
        }
        self.latest.push_back(duration);
    }

    pub(super) fn forget(&mut self) {
        self.latest.clear();
    }

    /// Zero where nothing is known.
    pub(super) fn median(&self) -> Duration {
        let mut sorted: Vec<Duration> = self.latest.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }
}
