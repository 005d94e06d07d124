//! The prefix tree: which encoded pages hold which tokens, and where a later request may resume.
//!
//! A node is one whole page of tokens below its parent; it keeps the page of the full layers and, while somebody needs
//! it, the page of the sliding layers. A *resume point* is a node from which a request can go on: it pins the sliding
//! pages of the W−1 positions before its end. Resume points are evicted least recently used first; a node lives as long
//! as a resume point or a running choice lies at or below it.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};

use crate::pass::PageId;

/// A node of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(u32);

impl NodeId {
    /// The root: nothing encoded yet.
    pub(crate) const ROOT: NodeId = NodeId(0);
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) parent: NodeId,
    /// Pages from the root to here, this one included.
    pub(super) depth: usize,
    pub(super) tokens: Box<[u32]>,
    hash: u64,
    pub(super) full: PageId,
    pub(super) sliding: Option<PageId>,
    /// Resume points that need the sliding page.
    pub(super) pins: u32,
    /// Running choices whose deepest node this is.
    users: u32,
    children: u32,
    /// When it was last used, if requests may resume here.
    resume: Option<u64>,
}

/// The nodes, without the pages: what to do with the pages of a node that goes is the caller's business.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
    /// By parent and hash of the page's tokens. Two pages of the same hash under one parent: the second is not kept.
    index: HashMap<(NodeId, u64), NodeId>,
    /// Resume points by last use; of equal ones the deepest goes first.
    oldest: BTreeSet<(u64, std::cmp::Reverse<usize>, NodeId)>,
    hasher: RandomState,
    tick: u64,
}

/// What looking for a page's tokens under a node found.
pub(super) enum Lookup {
    Found(NodeId),
    Absent,
    /// Other tokens of the same hash are there.
    Collision,
}

impl Tree {
    pub(super) fn new() -> Self {
        let root = Node {
            parent: NodeId::ROOT,
            depth: 0,
            tokens: Box::default(),
            hash: 0,
            full: PageId(u32::MAX),
            sliding: None,
            pins: 0,
            users: 1,
            children: 0,
            resume: None,
        };
        Tree {
            nodes: vec![Some(root)],
            vacant: Vec::new(),
            index: HashMap::new(),
            oldest: BTreeSet::new(),
            hasher: RandomState::new(),
            tick: 0,
        }
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize].as_ref().expect("a node id in use names a living node")
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0 as usize].as_mut().expect("a node id in use names a living node")
    }

    /// Living nodes, the root aside.
    pub(super) fn living(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().skip(1).filter_map(|(i, node)| Some((NodeId(i as u32), node.as_ref()?)))
    }

    /// Identifies a page's tokens within this tree.
    pub(super) fn hash(&self, tokens: &[u32]) -> u64 {
        self.hasher.hash_one(tokens)
    }

    pub(super) fn child(&self, parent: NodeId, tokens: &[u32]) -> Lookup {
        match self.index.get(&(parent, self.hash(tokens))) {
            Some(&id) if *self.node(id).tokens == *tokens => Lookup::Found(id),
            Some(_) => Lookup::Collision,
            None => Lookup::Absent,
        }
    }

    /// A new node under `parent`, for tokens that [`Tree::child`] did not find.
    pub(super) fn add(&mut self, parent: NodeId, tokens: &[u32], full: PageId) -> NodeId {
        let hash = self.hash(tokens);
        let node = Node {
            parent,
            depth: self.node(parent).depth + 1,
            tokens: tokens.into(),
            hash,
            full,
            sliding: None,
            pins: 0,
            users: 0,
            children: 0,
            resume: None,
        };
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            NodeId((self.nodes.len() - 1) as u32)
        });
        self.nodes[id.0 as usize] = Some(node);
        self.node_mut(parent).children += 1;
        self.index.insert((parent, hash), id);
        id
    }

    pub(super) fn enter(&mut self, id: NodeId) {
        self.node_mut(id).users += 1;
    }

    pub(super) fn leave(&mut self, id: NodeId) {
        self.node_mut(id).users -= 1;
    }

    /// Takes a node out if nothing needs it, and returns it.
    pub(super) fn prune(&mut self, id: NodeId) -> Option<Node> {
        let node = self.node(id);
        if id == NodeId::ROOT || node.users > 0 || node.children > 0 || node.resume.is_some() {
            return None;
        }
        let node = self.nodes[id.0 as usize].take()?;
        self.vacant.push(id);
        self.index.remove(&(node.parent, node.hash));
        self.node_mut(node.parent).children -= 1;
        Some(node)
    }

    pub(super) fn is_resume_point(&self, id: NodeId) -> bool {
        self.node(id).resume.is_some()
    }

    /// Makes a node a resume point, or renews it.
    pub(super) fn mark(&mut self, id: NodeId) {
        self.tick += 1;
        self.renew(id);
    }

    /// Renews the resume points from a node up to the root.
    pub(super) fn touch(&mut self, mut id: NodeId) {
        self.tick += 1;
        while id != NodeId::ROOT {
            if self.is_resume_point(id) {
                self.renew(id);
            }
            id = self.node(id).parent;
        }
    }

    fn renew(&mut self, id: NodeId) {
        let tick = self.tick;
        let node = self.node_mut(id);
        let depth = std::cmp::Reverse(node.depth);
        if let Some(before) = node.resume.replace(tick) {
            self.oldest.remove(&(before, depth, id));
        }
        self.oldest.insert((tick, depth, id));
    }

    /// Takes the mark from the resume point that was not used for longest.
    pub(super) fn unmark_oldest(&mut self) -> Option<NodeId> {
        let (_, _, id) = self.oldest.pop_first()?;
        self.node_mut(id).resume = None;
        Some(id)
    }

    /// The node and those above it, nearest first, without the root.
    pub(super) fn path(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let mut next = id;
        std::iter::from_fn(move || {
            let id = next;
            (id != NodeId::ROOT).then(|| {
                next = self.node(id).parent;
                id
            })
        })
    }

    /// Counts what the nodes say of each other.
    pub(super) fn audit(&self, window_pages: impl Fn(usize) -> std::ops::Range<usize>) -> Result<(), String> {
        let mut pins: HashMap<NodeId, u32> = HashMap::new();
        let mut children: HashMap<NodeId, u32> = HashMap::new();
        for (id, node) in self.living() {
            *children.entry(node.parent).or_default() += 1;
            if node.resume.is_some() {
                let wanted = window_pages(node.depth);
                for above in self.path(id).take(wanted.len()) {
                    *pins.entry(above).or_default() += 1;
                }
            }
        }
        for (id, node) in self.living() {
            let (pinned, below) = (pins.get(&id).copied(), children.get(&id).copied());
            if pinned.unwrap_or(0) != node.pins || below.unwrap_or(0) != node.children {
                return Err(format!("node {id:?}: pins {pinned:?} children {below:?}, counted {node:?}"));
            }
            if node.pins > 0 && node.sliding.is_none() {
                return Err(format!("node {id:?} is pinned and has no sliding page"));
            }
            if node.users == 0 && node.children == 0 && node.resume.is_none() {
                return Err(format!("node {id:?} lives for nobody"));
            }
        }
        Ok(())
    }
}
