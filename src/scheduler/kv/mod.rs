//! Paged keys and values: which pages a choice holds, what choices share, what later requests may reuse.
//!
//! Plain bookkeeping; the bytes belong to the model. A page is written by one holder alone and never after it is whole:
//! whole pages are shared through the prefix tree; a page that is partly filled is shared only by the choices of one
//! request, and a choice that wants to write behind it first steps back to the page's beginning and encodes that part
//! again into a page of its own (see [`Store::step_back_if_shared`]).

mod pool;
mod tree;

use std::ops::Range;

use pool::Pool;
pub(crate) use tree::NodeId;
use tree::{Lookup, Tree};

use crate::pass::{KvView, Limits, PageId};

/// What one running choice holds.
#[derive(Debug)]
pub(crate) struct Holding {
    /// Its pages. `view.len` tokens are encoded.
    pub(crate) view: KvView,
    /// The deepest node of the tree whose tokens are this choice's own beginning.
    node: NodeId,
    /// Pages from the root to that node.
    published: usize,
}

/// Pages of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pages {
    pub(crate) full: usize,
    pub(crate) sliding: usize,
}

impl Pages {
    /// What is missing when `other` is taken away, nothing below zero.
    pub(crate) fn less(self, other: Pages) -> Pages {
        Pages { full: self.full.saturating_sub(other.full), sliding: self.sliding.saturating_sub(other.sliding) }
    }

    pub(crate) fn fit_in(self, other: Pages) -> bool {
        self.full <= other.full && self.sliding <= other.sliding
    }
}

impl std::ops::Add for Pages {
    type Output = Pages;
    fn add(self, other: Pages) -> Pages {
        Pages { full: self.full + other.full, sliding: self.sliding + other.sliding }
    }
}

/// Where positions lie in pages, and what the sliding window needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) page: usize,
    pub(crate) window: usize,
}

impl Geometry {
    pub(crate) fn pages(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page)
    }

    /// The beginning of the page in which a position lies.
    pub(crate) fn floor(&self, position: usize) -> usize {
        position - position % self.page
    }

    /// First position whose sliding keys are kept while `len` tokens are encoded: the W−1 positions before the page
    /// in which the next token lies, so that this page can be encoded again.
    fn keep_from(&self, len: usize) -> usize {
        self.floor(self.floor(len).saturating_sub(self.window.saturating_sub(1)))
    }

    /// Page numbers that the sliding window before a resume point at `depth` pages covers.
    fn window_pages(&self, depth: usize) -> Range<usize> {
        self.keep_from(depth * self.page) / self.page..depth
    }

    /// Most sliding pages a choice holds while it encodes `rows` tokens up to `len`.
    pub(crate) fn sliding_pages(&self, len: usize, rows: usize) -> usize {
        let start = self.floor(len.saturating_sub(rows));
        self.pages(len) - self.keep_from(start) / self.page
    }
}

/// Both pools and the prefix tree.
#[derive(Debug)]
pub(crate) struct Store {
    geometry: Geometry,
    full: Pool,
    sliding: Pool,
    tree: Tree,
    full_bytes: u64,
    sliding_bytes: u64,
    /// Most bytes kept for nobody but later requests.
    cache_bytes: u64,
}

impl Store {
    pub(crate) fn new(limits: &Limits, pages: Pages, cache_bytes: u64) -> Self {
        Store {
            geometry: Geometry { page: limits.page_tokens, window: limits.window },
            full: Pool::new(pages.full),
            sliding: Pool::new(pages.sliding),
            tree: Tree::new(),
            full_bytes: limits.full_page_bytes,
            sliding_bytes: limits.sliding_page_bytes,
            cache_bytes,
        }
    }

    /// Pages that are free, or would be after evicting.
    pub(crate) fn available(&self) -> Pages {
        Pages { full: self.full.free() + self.full.idle(), sliding: self.sliding.free() + self.sliding.idle() }
    }

    /// Bytes of all pages, and of those that running choices hold.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let all = self.full.len() as u64 * self.full_bytes + self.sliding.len() as u64 * self.sliding_bytes;
        let available = self.available();
        let unused = available.full as u64 * self.full_bytes + available.sliding as u64 * self.sliding_bytes;
        (all, all - unused)
    }

    /// Bytes kept for later requests alone.
    pub(crate) fn cached_bytes(&self) -> u64 {
        self.full.idle() as u64 * self.full_bytes + self.sliding.idle() as u64 * self.sliding_bytes
    }

    /// Nothing encoded, nothing held.
    pub(crate) fn empty(&mut self) -> Holding {
        self.tree.enter(NodeId::ROOT);
        Holding { view: KvView::default(), node: NodeId::ROOT, published: 0 }
    }

    /// Names the next whole page that a choice is going to encode, if its next token begins one.
    pub(crate) fn next_page(&self, holding: &Holding, ids: &[u32]) -> Option<(NodeId, u64)> {
        let (from, page) = (holding.view.len, self.geometry.page);
        let tokens = ids.get(from..from + page)?;
        (holding.published * page == from).then(|| (holding.node, self.tree.hash(tokens)))
    }

    /// Takes over what the tree has of the tokens that follow, as deep as the sliding window allows, and returns how
    /// many tokens that saves. Works between whole pages only.
    pub(crate) fn adopt(&mut self, holding: &mut Holding, ids: &[u32]) -> usize {
        let page = self.geometry.page;
        if holding.view.len != holding.published * page {
            return 0;
        }
        self.drop_unwritten(holding);
        let mut path = Vec::new();
        let mut node = holding.node;
        while let Some(tokens) = ids.get((holding.published + path.len()) * page..).and_then(|rest| rest.get(..page)) {
            match self.tree.child(node, tokens) {
                Lookup::Found(child) => node = child,
                Lookup::Absent | Lookup::Collision => break,
            }
            path.push(node);
        }
        while let Some(&deepest) = path.last() {
            if self.can_resume(deepest) {
                break;
            }
            path.pop();
        }
        let Some(&deepest) = path.last() else { return 0 };
        self.move_to(holding, &path, deepest);
        path.len() * page
    }

    /// Gives pages back that were claimed for a pass that was never run.
    fn drop_unwritten(&mut self, holding: &mut Holding) {
        let written = self.geometry.pages(holding.view.len);
        for page in holding.view.full.split_off(written.min(holding.view.full.len())) {
            self.release_full(page);
        }
        let written = written - holding.view.sliding_from / self.geometry.page;
        for page in holding.view.sliding.split_off(written.min(holding.view.sliding.len())) {
            self.release_sliding(page);
        }
    }

    /// Whether all sliding pages of the window before a node's end are there.
    fn can_resume(&self, node: NodeId) -> bool {
        let wanted = self.geometry.window_pages(self.tree.node(node).depth).len();
        self.tree.path(node).take(wanted).all(|id| self.tree.node(id).sliding.is_some())
    }

    /// Lets a choice hold the pages of `path` behind its own, and the window before the last of them.
    fn move_to(&mut self, holding: &mut Holding, path: &[NodeId], deepest: NodeId) {
        let depth = self.tree.node(deepest).depth;
        for &id in path {
            let page = self.tree.node(id).full;
            self.full.hold(page);
            holding.view.full.push(page);
        }
        let window = self.geometry.window_pages(depth);
        let mut sliding: Vec<PageId> = Vec::with_capacity(window.len());
        sliding.extend(self.tree.path(deepest).take(window.len()).filter_map(|id| self.tree.node(id).sliding));
        sliding.reverse();
        for &page in &sliding {
            self.sliding.hold(page);
        }
        for page in std::mem::replace(&mut holding.view.sliding, sliding) {
            self.release_sliding(page);
        }
        holding.view.sliding_from = window.start * self.geometry.page;
        holding.view.len = depth * self.geometry.page;
        holding.published = depth;
        self.tree.enter(deepest);
        self.tree.leave(holding.node);
        holding.node = deepest;
        self.tree.touch(deepest);
        self.shrink();
    }

    /// A second holder of everything the first one holds, the page that is partly filled included. `len` is how far
    /// the first will be after the pass now being planned.
    pub(crate) fn fork(&mut self, holding: &Holding, len: usize) -> Holding {
        for &page in &holding.view.full {
            self.full.hold(page);
        }
        for &page in &holding.view.sliding {
            self.sliding.hold(page);
        }
        self.tree.enter(holding.node);
        let view = KvView { len, ..holding.view.clone() };
        Holding { view, node: holding.node, published: holding.published }
    }

    /// Before writing: if the page in which the next token lies is shared, steps back to the page's beginning, so that
    /// its tokens are encoded again into a page of this choice alone.
    pub(crate) fn step_back_if_shared(&mut self, holding: &mut Holding) {
        let start = self.geometry.floor(holding.view.len);
        if start == holding.view.len {
            return;
        }
        let index = start / self.geometry.page;
        let slot = index - holding.view.sliding_from / self.geometry.page;
        let shared =
            self.full.is_shared(holding.view.full[index]) || self.sliding.is_shared(holding.view.sliding[slot]);
        if shared {
            for page in holding.view.full.split_off(index) {
                self.release_full(page);
            }
            for page in holding.view.sliding.split_off(slot) {
                self.release_sliding(page);
            }
            holding.view.len = start;
            self.shrink();
        }
    }

    /// Pages a choice must claim before it can encode up to `end`.
    pub(crate) fn missing(&self, holding: &Holding, end: usize) -> Pages {
        let wanted = self.geometry.pages(end);
        let have = holding.view.sliding_from / self.geometry.page + holding.view.sliding.len();
        Pages { full: wanted.saturating_sub(holding.view.full.len()), sliding: wanted.saturating_sub(have) }
    }

    /// Gives a choice the pages to encode up to `end`, evicting where nothing is free; false if they are not available,
    /// in which case nothing changes.
    pub(crate) fn claim(&mut self, holding: &mut Holding, end: usize) -> bool {
        let missing = self.missing(holding, end);
        if !missing.fit_in(self.available()) {
            return false;
        }
        while self.full.free() < missing.full || self.sliding.free() < missing.sliding {
            if !self.evict_oldest() {
                debug_assert!(false, "every idle page is kept by a resume point");
                return false;
            }
        }
        for _ in 0..missing.full {
            holding.view.full.extend(self.full.take());
        }
        for _ in 0..missing.sliding {
            holding.view.sliding.extend(self.sliding.take());
        }
        true
    }

    /// Notes that a choice's tokens are encoded up to `end`: publishes whole pages, makes resume points of those pages
    /// that end in a range for which `is_point` holds, and frees what fell out of the window.
    pub(crate) fn encoded(
        &mut self,
        holding: &mut Holding,
        ids: &[u32],
        end: usize,
        is_point: impl Fn(Range<usize>) -> bool,
    ) {
        holding.view.len = end;
        self.publish(holding, ids, is_point);
        self.trim(holding);
        self.shrink();
    }

    fn publish(&mut self, holding: &mut Holding, ids: &[u32], is_point: impl Fn(Range<usize>) -> bool) {
        let page = self.geometry.page;
        while (holding.published + 1) * page <= holding.view.len {
            let tokens = &ids[holding.published * page..][..page];
            let child = match self.tree.child(holding.node, tokens) {
                Lookup::Found(child) => child,
                Lookup::Absent => self.tree.add(holding.node, tokens, holding.view.full[holding.published]),
                Lookup::Collision => return,
            };
            self.merge(holding, child);
            self.tree.enter(child);
            self.tree.leave(holding.node);
            holding.node = child;
            holding.published += 1;
            let end = holding.published * page;
            if is_point(end..end + page) {
                self.make_resume_point(child);
            }
        }
    }

    /// Lets a choice and the node of the same tokens keep the same pages: the node's where it has them already.
    fn merge(&mut self, holding: &mut Holding, node: NodeId) {
        let index = holding.published;
        let (mine, kept) = (holding.view.full[index], self.tree.node(node).full);
        if mine != kept {
            self.full.hold(kept);
            self.release_full(mine);
            holding.view.full[index] = kept;
        } else if self.full.node(mine).is_none() {
            self.full.keep(mine, node);
        }
        let Some(slot) = index.checked_sub(holding.view.sliding_from / self.geometry.page) else { return };
        let Some(&mine) = holding.view.sliding.get(slot) else { return };
        match self.tree.node(node).sliding {
            Some(kept) if kept != mine => {
                self.sliding.hold(kept);
                self.release_sliding(mine);
                holding.view.sliding[slot] = kept;
            }
            Some(_) => {}
            None => {
                self.sliding.keep(mine, node);
                self.tree.node_mut(node).sliding = Some(mine);
            }
        }
    }

    fn make_resume_point(&mut self, node: NodeId) {
        if !self.tree.is_resume_point(node) {
            if !self.can_resume(node) {
                return;
            }
            let wanted = self.geometry.window_pages(self.tree.node(node).depth).len();
            let window: Vec<NodeId> = self.tree.path(node).take(wanted).collect();
            for id in window {
                self.tree.node_mut(id).pins += 1;
            }
        }
        self.tree.mark(node);
    }

    /// Frees sliding pages that no coming row of this choice can see.
    fn trim(&mut self, holding: &mut Holding) {
        let from = self.geometry.keep_from(holding.view.len);
        let gone = from.saturating_sub(holding.view.sliding_from) / self.geometry.page;
        if gone > 0 {
            let pages: Vec<PageId> = holding.view.sliding.drain(..gone).collect();
            for page in pages {
                self.release_sliding(page);
            }
            holding.view.sliding_from = from;
        }
    }

    /// Gives everything back; what resume points keep stays for later requests.
    pub(crate) fn give_back(&mut self, holding: Holding) {
        for page in holding.view.sliding {
            self.release_sliding(page);
        }
        for page in holding.view.full {
            self.release_full(page);
        }
        self.tree.leave(holding.node);
        self.prune(holding.node);
        self.shrink();
    }

    fn release_full(&mut self, page: PageId) {
        self.full.release(page);
    }

    /// A kept sliding page that nobody holds stays only while a resume point pins it.
    fn release_sliding(&mut self, page: PageId) {
        if let Some(node) = self.sliding.release(page) {
            self.drop_unpinned(node);
        }
    }

    fn drop_unpinned(&mut self, id: NodeId) {
        let node = self.tree.node_mut(id);
        if node.pins > 0 {
            return;
        }
        if let Some(page) = node.sliding.filter(|&page| self.sliding.holders(page) == 0) {
            node.sliding = None;
            self.sliding.forget(page);
        }
    }

    /// Evicts within the byte budget of the cache.
    fn shrink(&mut self) {
        while self.cached_bytes() > self.cache_bytes && self.evict_oldest() {}
    }

    fn evict_oldest(&mut self) -> bool {
        let Some(id) = self.tree.unmark_oldest() else { return false };
        let wanted = self.geometry.window_pages(self.tree.node(id).depth).len();
        let window: Vec<NodeId> = self.tree.path(id).take(wanted).collect();
        for id in window {
            self.tree.node_mut(id).pins -= 1;
            self.drop_unpinned(id);
        }
        self.prune(id);
        true
    }

    /// Removes nodes that nothing needs, from a leaf upwards.
    fn prune(&mut self, mut id: NodeId) {
        while let Some(node) = self.tree.prune(id) {
            self.full.forget(node.full);
            if let Some(page) = node.sliding {
                self.sliding.forget(page);
            }
            id = node.parent;
        }
    }

    /// Checks every count against the holdings given, which must be all there are.
    pub(crate) fn audit<'a>(&self, holdings: impl Iterator<Item = &'a Holding>) -> Result<(), String> {
        let mut full = vec![0; self.full.len()];
        let mut sliding = vec![0; self.sliding.len()];
        for holding in holdings {
            let view = &holding.view;
            view.full.iter().for_each(|page| full[page.0 as usize] += 1);
            view.sliding.iter().for_each(|page| sliding[page.0 as usize] += 1);
            if view.sliding_from % self.geometry.page != 0
                || view.sliding_from > view.len.saturating_sub(self.geometry.window.saturating_sub(1))
            {
                return Err(format!("unusable view {view:?}"));
            }
        }
        self.full.audit(&full)?;
        self.sliding.audit(&sliding)?;
        self.tree.audit(|depth| self.geometry.window_pages(depth))?;
        for (id, node) in self.tree.living() {
            let wrong = |page: PageId, pool: &Pool| pool.node(page) != Some(id);
            if wrong(node.full, &self.full) || node.sliding.is_some_and(|page| wrong(page, &self.sliding)) {
                return Err(format!("node {id:?} keeps a page that does not know it"));
            }
        }
        if self.cached_bytes() > self.cache_bytes {
            return Err(format!("{} bytes cached, {} allowed", self.cached_bytes(), self.cache_bytes));
        }
        Ok(())
    }

    /// Whether nothing is held by anybody.
    pub(crate) fn is_idle(&self) -> bool {
        let available = self.available();
        available.full == self.full.len() && available.sliding == self.sliding.len()
    }
}
