//! One pool of key/value pages: who holds each page, and which are free.
//!
//! A page is held by any number of running choices and, beside them, at most once by the prefix tree. It is free when
//! nobody holds it. Pages held by the tree alone can be taken back by evicting, so they count as available.

use super::tree::NodeId;
use crate::pass::PageId;

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// Running choices that hold the page.
    holders: u32,
    /// The node of the prefix tree that keeps it.
    node: Option<NodeId>,
}

/// The pages of one kind of layers.
#[derive(Debug)]
pub(super) struct Pool {
    entries: Vec<Entry>,
    free: Vec<PageId>,
    /// Pages kept by the tree and held by nobody.
    idle: usize,
}

impl Pool {
    pub(super) fn new(pages: usize) -> Self {
        let free = (0..pages as u32).rev().map(PageId).collect();
        Pool { entries: vec![Entry::default(); pages], free, idle: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Pages kept by the tree and held by nobody.
    pub(super) fn idle(&self) -> usize {
        self.idle
    }

    /// A free page, now held once.
    pub(super) fn take(&mut self) -> Option<PageId> {
        let page = self.free.pop()?;
        self.entry(page).holders = 1;
        Some(page)
    }

    /// One more holder for a page that somebody holds or the tree keeps.
    pub(super) fn hold(&mut self, page: PageId) {
        let entry = self.entry(page);
        entry.holders += 1;
        if entry.holders == 1 {
            self.idle -= 1;
        }
    }

    /// One holder less; returns the node that keeps the page if it was the last one.
    pub(super) fn release(&mut self, page: PageId) -> Option<NodeId> {
        let entry = self.entry(page);
        entry.holders -= 1;
        if entry.holders > 0 {
            return None;
        }
        let node = entry.node;
        match node {
            Some(_) => self.idle += 1,
            None => self.free.push(page),
        }
        node
    }

    /// The tree keeps a page that somebody holds.
    pub(super) fn keep(&mut self, page: PageId, node: NodeId) {
        let entry = self.entry(page);
        debug_assert!(entry.holders > 0 && entry.node.is_none(), "only a held page that is not kept yet can be kept");
        entry.node = Some(node);
    }

    /// The tree gives a page up.
    pub(super) fn forget(&mut self, page: PageId) {
        let entry = self.entry(page);
        entry.node = None;
        if entry.holders == 0 {
            self.idle -= 1;
            self.free.push(page);
        }
    }

    pub(super) fn holders(&self, page: PageId) -> u32 {
        self.entries[page.0 as usize].holders
    }

    /// Whether anybody but one holder depends on the page.
    pub(super) fn is_shared(&self, page: PageId) -> bool {
        let entry = &self.entries[page.0 as usize];
        entry.holders > 1 || entry.node.is_some()
    }

    pub(super) fn node(&self, page: PageId) -> Option<NodeId> {
        self.entries[page.0 as usize].node
    }

    /// Page ids come from this pool alone, so they are in range.
    fn entry(&mut self, page: PageId) -> &mut Entry {
        &mut self.entries[page.0 as usize]
    }

    /// Checks the pool against what its holders say they hold: `held[page]` is how many times a page is held.
    pub(super) fn audit(&self, held: &[u32]) -> Result<(), String> {
        let mut idle = 0;
        let mut free = vec![false; self.entries.len()];
        for page in &self.free {
            if std::mem::replace(&mut free[page.0 as usize], true) {
                return Err(format!("page {} is twice in the free list", page.0));
            }
        }
        for (i, entry) in self.entries.iter().enumerate() {
            if entry.holders != held[i] {
                return Err(format!("page {i} counts {} holders and has {}", entry.holders, held[i]));
            }
            let unused = entry.holders == 0 && entry.node.is_none();
            if unused != free[i] {
                return Err(format!("page {i}: unused {unused}, free {}", free[i]));
            }
            idle += usize::from(entry.holders == 0 && entry.node.is_some());
        }
        if idle != self.idle { Err(format!("{idle} idle pages, {} counted", self.idle)) } else { Ok(()) }
    }
}
