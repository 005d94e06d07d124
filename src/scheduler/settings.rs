//! What the operator configures, and the budget that follows from it and from the model's limits.

use super::kv::{Geometry, Pages};
use crate::pass::{Capacity, EngineError, Limits};

/// How the scheduler uses the model and the memory. Every field has a default that suits a small server; but for the
/// memory they are those of `config` too, which a test in `cli` sees to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Most prompt rows encoded per pass, at least one page: what a long prompt may cost the others' steps. The default is
    /// the largest power of two at which a prompt of 3,000 tokens lets eight running requests on the demo model take at most 2.5
    /// times as long for a step, and never 3 times (`canvasd bench --intrude 3000`; docs/scheduling.md).
    pub encode_rows: usize,
    /// Most rows of one pass, both modes together; `None` leaves room for every running canvas, for half of them being
    /// encoded at once, and for `encode_rows`.
    pub max_rows_per_pass: Option<usize>,
    /// Most canvases denoised at once: slots.
    pub max_running: usize,
    /// Most requests that wait for admission. No request is taken either while eight times as many choices wait.
    pub queue: usize,
    /// Memory for keys and values, both pools together, cached prefixes included.
    pub kv_bytes: u64,
    /// Memory for slots and for the rows of a pass; `None` trusts `max_running` and `max_rows_per_pass`.
    pub working_bytes: Option<u64>,
    /// Most of `kv_bytes` kept for prefixes that no running request uses; `None` allows all of it, 0 keeps none.
    pub prefix_cache_bytes: Option<u64>,
    /// Canvases committed but not yet read at which a choice pauses until its reader has caught up, at least 1.
    pub unread_canvases: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            encode_rows: 256,
            max_rows_per_pass: None,
            max_running: 32,
            queue: 256,
            kv_bytes: 1 << 30,
            working_bytes: None,
            prefix_cache_bytes: None,
            unread_canvases: 4,
        }
    }
}

impl Settings {
    /// Whether an engine would start with them and a model of these limits: for callers to whom it is work to load one.
    pub fn check(&self, limits: &Limits) -> Result<(), StartError> {
        Budget::new(limits, self).map(drop)
    }
}

/// Why the engine cannot start.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StartError {
    /// A setting, or one of the model's limits, makes no sense.
    #[error("{setting} must be at least {least}, got {given}")]
    TooSmall {
        /// Its name.
        setting: &'static str,
        /// The least value.
        least: u64,
        /// What was given.
        given: u64,
    },
    /// Not even one request fits into the memory for keys and values.
    #[error("kv_memory is too small: one short request needs {needed} bytes, {given} are given")]
    KvMemory {
        /// Bytes for one page of prompt and one canvas.
        needed: u64,
        /// What was given.
        given: u64,
    },
    /// Not even one canvas fits into the memory for slots and rows.
    #[error(
        "the working memory (a quarter of what is free) is too small: one canvas needs {needed} bytes, there are {given}; \
         free some, or lower max_rows_per_pass or encode_rows"
    )]
    WorkingMemory {
        /// Bytes for one slot and the rows of a pass beside it.
        needed: u64,
        /// What was given.
        given: u64,
    },
    /// The model cannot reserve what the settings ask for.
    #[error(transparent)]
    Reserve(#[from] EngineError),
    /// The operating system gives no thread.
    #[error("the engine thread cannot be started: {0}")]
    Thread(String),
}

/// What the number of canvases at once follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotBound {
    /// `max_running`, as the operator wants it.
    MaxRunning,
    /// So many rows of a pass.
    RowsPerPass(usize),
    /// What memory there is for slots and rows.
    WorkingMemory,
}

/// What there is to give out; constant over the engine's life.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// The model's limits, with the context cut to what the memory can hold for one request alone.
    pub(crate) limits: Limits,
    /// The model's own context, uncut.
    pub(crate) model_context: usize,
    pub(crate) geometry: Geometry,
    pub(crate) capacity: Capacity,
    /// What `capacity.slots` follows from.
    pub(crate) slot_bound: SlotBound,
    pub(crate) encode_rows: usize,
    pub(crate) cache_bytes: u64,
}

impl Budget {
    pub(crate) fn new(limits: &Limits, settings: &Settings) -> Result<Budget, StartError> {
        check(limits, settings)?;
        let geometry = Geometry { page: limits.page_tokens, window: limits.window };
        let (slots, rows, slot_bound) = slots_and_rows(limits, settings)?;
        let pages = split(limits, geometry, settings, slots)?;
        let context = longest(limits, geometry, settings.encode_rows, pages);
        let capacity = Capacity { full_pages: pages.full, sliding_pages: pages.sliding, slots, rows };
        Ok(Budget {
            limits: Limits { context, ..limits.clone() },
            model_context: limits.context,
            geometry,
            capacity,
            slot_bound,
            encode_rows: settings.encode_rows,
            cache_bytes: settings.prefix_cache_bytes.unwrap_or(u64::MAX),
        })
    }

    pub(crate) fn pages(&self) -> Pages {
        Pages { full: self.capacity.full_pages, sliding: self.capacity.sliding_pages }
    }
}

fn check(limits: &Limits, settings: &Settings) -> Result<(), StartError> {
    let least = [
        ("the model's canvas", limits.canvas, 1),
        ("the model's vocabulary", limits.vocabulary, 1),
        ("the model's page", limits.page_tokens, 1),
        ("the model's context", limits.context, limits.canvas + 1),
        ("encode_rows", settings.encode_rows, limits.page_tokens),
        ("max_running", settings.max_running, 1),
        ("queue", settings.queue, 1),
        ("unread_canvases", settings.unread_canvases, 1),
    ];
    for (setting, given, least) in least {
        if given < least {
            return Err(StartError::TooSmall { setting, least: least as u64, given: given as u64 });
        }
    }
    Ok(())
}

/// As many slots as the settings and the working memory allow, and the rows of one pass: a row for every position of
/// every running canvas, and at least a page to encode beside them; and what bounds the slots.
fn slots_and_rows(limits: &Limits, settings: &Settings) -> Result<(usize, usize, SlotBound), StartError> {
    let (canvas, page) = (limits.canvas, limits.page_tokens);
    let wanted = |slots: usize| {
        let all = slots * canvas + (slots * canvas).div_ceil(2).max(canvas + page) + settings.encode_rows;
        settings.max_rows_per_pass.map_or(all, |most| most.min(all))
    };
    let bytes = |slots: usize| slots as u64 * limits.slot_bytes + wanted(slots) as u64 * limits.row_bytes;
    let (mut slots, mut bound) = (settings.max_running, SlotBound::MaxRunning);
    if let Some(most) = settings.max_rows_per_pass {
        if most < canvas + page {
            let least = (canvas + page) as u64;
            return Err(StartError::TooSmall { setting: "max_rows_per_pass", least, given: most as u64 });
        }
        let that_fit = (most - page) / canvas;
        if that_fit < slots {
            (slots, bound) = (that_fit, SlotBound::RowsPerPass(most));
        }
    }
    if let Some(most) = settings.working_bytes {
        while slots > 1 && bytes(slots) > most {
            (slots, bound) = (slots - 1, SlotBound::WorkingMemory);
        }
        if bytes(slots) > most {
            return Err(StartError::WorkingMemory { needed: bytes(1), given: most });
        }
    }
    Ok((slots, wanted(slots), bound))
}

/// Divides the memory between the pools. Sliding layers need a window and a chunk per running choice, full layers the
/// whole text; what the sliding pool cannot use for running choices is better spent on longer texts.
fn split(limits: &Limits, geometry: Geometry, settings: &Settings, slots: usize) -> Result<Pages, StartError> {
    let (full_bytes, sliding_bytes) = (limits.full_page_bytes.max(1), limits.sliding_page_bytes);
    let smallest = need(geometry, settings.encode_rows, limits.canvas + 1, limits.canvas);
    let needed = smallest.full as u64 * full_bytes + smallest.sliding as u64 * sliding_bytes;
    if needed > settings.kv_bytes {
        return Err(StartError::KvMemory { needed, given: settings.kv_bytes });
    }
    let most = geometry.pages(limits.context + limits.canvas) * (slots + 1);
    let each = (settings.kv_bytes / (full_bytes + sliding_bytes)) as usize;
    let per_choice = geometry.sliding_pages(limits.context, settings.encode_rows.max(limits.canvas));
    let spare = settings.kv_bytes - smallest.full as u64 * full_bytes;
    // Layers without a window have pages that cost nothing: there are always enough.
    let that_fit = |bytes: u64| bytes.checked_div(sliding_bytes).map_or(most, |pages| pages as usize);
    let for_running = each.min(that_fit(settings.kv_bytes / 2)).min((per_choice + 1) * (slots + 1));
    let sliding = for_running.clamp(smallest.sliding, that_fit(spare).max(smallest.sliding));
    let full = ((settings.kv_bytes - sliding as u64 * sliding_bytes) / full_bytes) as usize;
    let full = full.max(smallest.full).min(most);
    let sliding = that_fit(settings.kv_bytes.saturating_sub(full as u64 * full_bytes)).min(most);
    Ok(Pages { full, sliding })
}

/// Pages that one choice alone needs when its text ends at `positions`, the last canvas of which is never encoded: one
/// more than its text fills, because a partly filled page may be encoded a second time.
pub(crate) fn need(geometry: Geometry, encode_rows: usize, positions: usize, canvas: usize) -> Pages {
    let encoded = positions.saturating_sub(canvas);
    let rows = encode_rows.max(canvas + geometry.page).min(encoded);
    Pages { full: geometry.pages(encoded) + 1, sliding: geometry.sliding_pages(encoded, rows) + 1 }
}

/// The longest text, prompt and answer together, that one request alone can have.
fn longest(limits: &Limits, geometry: Geometry, encode_rows: usize, pages: Pages) -> usize {
    let fits = |positions: usize| need(geometry, encode_rows, positions, limits.canvas).fit_in(pages);
    let (mut low, mut high) = (limits.canvas + 1, limits.context);
    if fits(high) {
        return high;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A large model.
    pub(in crate::scheduler) fn limits() -> Limits {
        Limits {
            canvas: 256,
            vocabulary: 1000,
            context: 262_144,
            window: 1024,
            page_tokens: 64,
            full_page_bytes: 64 * 20_480,
            sliding_page_bytes: 64 * 204_800,
            slot_bytes: 256 * 2816 * 4,
            row_bytes: 100_000,
        }
    }

    #[test]
    fn memory_is_never_exceeded_and_the_context_fits() {
        for gib in [1u64, 2, 3, 8, 64, 1024] {
            let settings = Settings { kv_bytes: gib << 30, ..Settings::default() };
            let budget = Budget::new(&limits(), &settings).expect("fits");
            let c = budget.capacity;
            let bytes =
                c.full_pages as u64 * limits().full_page_bytes + c.sliding_pages as u64 * limits().sliding_page_bytes;
            assert!(bytes <= settings.kv_bytes, "{gib} GiB: {bytes}");
            let context = budget.limits.context;
            assert!(need(budget.geometry, settings.encode_rows, context, 256).fit_in(budget.pages()));
            assert!(context > 256);
        }
    }

    #[test]
    fn enough_memory_gives_the_whole_context() {
        let settings = Settings { kv_bytes: 64 << 30, ..Settings::default() };
        assert_eq!(Budget::new(&limits(), &settings).expect("fits").limits.context, 262_144);
    }

    #[test]
    fn too_little_memory_is_refused_with_the_numbers() {
        let settings = Settings { kv_bytes: 1 << 20, ..Settings::default() };
        let error = Budget::new(&limits(), &settings).expect_err("too small");
        assert!(matches!(error, StartError::KvMemory { given, .. } if given == 1 << 20), "{error}");
        assert!(error.to_string().starts_with("kv_memory is too small"), "{error}");
        let settings = Settings { working_bytes: Some(1 << 20), ..Settings::default() };
        let error = Budget::new(&limits(), &settings).expect_err("too small");
        assert!(matches!(error, StartError::WorkingMemory { given, .. } if given == 1 << 20), "{error}");
        let words = error.to_string();
        assert!(words.contains("max_rows_per_pass") && words.contains("encode_rows"), "{words}");
        assert!(!words.contains("working_bytes"), "there is no such setting: {words}");
    }

    #[test]
    fn working_memory_bounds_the_slots() {
        let most = 300_000_000;
        let settings = Settings { working_bytes: Some(most), ..Settings::default() };
        let c = Budget::new(&limits(), &settings).expect("fits").capacity;
        assert!(c.slots >= 1 && c.slots < 32);
        assert!(c.slots as u64 * limits().slot_bytes + c.rows as u64 * limits().row_bytes <= most);
    }

    #[test]
    fn it_is_known_what_bounds_the_slots() {
        let bound = |rows: Option<usize>, bytes: Option<u64>| {
            let settings = Settings { max_rows_per_pass: rows, working_bytes: bytes, ..Settings::default() };
            Budget::new(&limits(), &settings).expect("fits").slot_bound
        };
        assert_eq!(bound(None, None), SlotBound::MaxRunning);
        assert_eq!(bound(Some(100_000), Some(u64::MAX)), SlotBound::MaxRunning);
        assert_eq!(bound(Some(1000), None), SlotBound::RowsPerPass(1000));
        assert_eq!(bound(None, Some(300_000_000)), SlotBound::WorkingMemory);
        // Where both are short, the one that leaves fewer.
        assert_eq!(bound(Some(1000), Some(100_000_000)), SlotBound::WorkingMemory);
        assert_eq!(bound(Some(1000), Some(300_000_000)), SlotBound::RowsPerPass(1000));
    }

    #[test]
    fn rows_leave_room_for_every_canvas_and_a_page() {
        let settings = Settings { max_rows_per_pass: Some(1000), ..Settings::default() };
        let c = Budget::new(&limits(), &settings).expect("fits").capacity;
        assert_eq!((c.slots, c.rows), (3, 1000));
        let settings = Settings { max_rows_per_pass: Some(319), ..Settings::default() };
        assert!(Budget::new(&limits(), &settings).is_err());
    }

    #[test]
    fn layers_without_a_window_cost_nothing_there() {
        let only_full = Limits { sliding_page_bytes: 0, ..limits() };
        let c = Budget::new(&only_full, &Settings::default()).expect("fits").capacity;
        assert!(c.sliding_pages >= c.full_pages);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let bad = [
            Settings { encode_rows: 63, ..Settings::default() },
            Settings { max_running: 0, ..Settings::default() },
            Settings { queue: 0, ..Settings::default() },
            Settings { unread_canvases: 0, ..Settings::default() },
        ];
        for settings in bad {
            assert!(matches!(Budget::new(&limits(), &settings), Err(StartError::TooSmall { .. })), "{settings:?}");
        }
    }
}
