//! The store's contents: nodes by full name, as the daemon's data base keeps them.
//!
//! A node is immutable; a change replaces it.  So a transaction can keep what it has seen without
//! copying, and two looks at a node compare by generation.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use xen_abi::DomId;

use super::perms::Perms;

/// Bytes that the daemon's record of a node has before permissions, value and children.
const RECORD_HEADER: usize = 24;
/// Bytes of one permission in that record.
const RECORD_PERM: usize = 8;

/// Bytes of heap that a node takes besides its record and its name: its place in the map, which is
/// half empty at worst, and the headers of the pieces that it lies in.
pub const NODE_OVERHEAD: usize = 288;

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Different for every version of every node.
    pub generation: u64,
    /// Who may do what.
    pub perms: Perms,
    /// Any bytes.
    pub value: Vec<u8>,
    /// Names of the children.
    pub children: Children,
}

impl Node {
    /// Makes a node with neither value nor children.
    pub fn new(perms: Perms) -> Self {
        Self {
            generation: 0,
            perms,
            value: Vec::new(),
            children: Children::default(),
        }
    }

    /// Bytes of the daemon's record, which the quotas are about.
    pub fn bytes(&self) -> usize {
        RECORD_HEADER
            + RECORD_PERM * self.perms.len()
            + self.value.len()
            + self.children.as_bytes().len()
    }
}

/// The names of a node's children in the order of their making, each ending in NUL: the form in
/// which a listing travels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Children(String);

impl Children {
    /// The listing.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The names.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split_terminator('\0')
    }

    /// The name that begins at byte `offset` of the listing.
    pub fn at(&self, offset: usize) -> Option<&str> {
        self.0.get(offset..)?.split_terminator('\0').next()
    }

    /// Adds a name at the end.
    pub fn add(&mut self, leaf: &str) {
        // As is counted: a longer list is made from a copy each time.
        self.0.reserve_exact(leaf.len() + 1);
        self.0.push_str(leaf);
        self.0.push('\0');
    }

    /// Takes a name out; `false` when it is not there.
    pub fn remove(&mut self, leaf: &str) -> bool {
        let mut at = 0;
        for name in self.0.split_terminator('\0') {
            let end = at + name.len() + 1;
            if name == leaf {
                self.0.replace_range(at..end, "");
                return true;
            }
            at = end;
        }
        false
    }
}

/// All nodes, and what the guest's share of them comes to.
#[derive(Debug)]
pub struct Tree {
    nodes: BTreeMap<String, Arc<Node>>,
    generation: u64,
    guest: DomId,
    guest_nodes: usize,
    guest_bytes: usize,
}

impl Tree {
    /// Makes a tree of the root alone, which belongs to domain 0 and nobody else may read.
    pub fn new(guest: DomId) -> Self {
        let mut tree = Self {
            nodes: BTreeMap::new(),
            generation: 0,
            guest,
            guest_nodes: 0,
            guest_bytes: 0,
        };
        tree.put("/", Node::new(Perms::new(DomId(0), None)));
        tree
    }

    /// Returns a node.
    pub fn get(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// Stores a node under a new generation.
    pub fn put(&mut self, name: &str, mut node: Node) {
        node.generation = self.next_generation();
        // The old one is counted out, for it may have had another owner.
        self.take(name);
        self.account(name, &node, true);
        self.nodes.insert(String::from(name), Arc::new(node));
    }

    /// Deletes a node, leaving its parent and children alone.
    pub fn take(&mut self, name: &str) {
        if let Some(node) = self.nodes.remove(name) {
            self.account(name, &node, false);
        }
    }

    /// Returns a generation that nothing has had before.
    pub fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// Number of nodes that the guest owns.
    pub fn guest_nodes(&self) -> usize {
        self.guest_nodes
    }

    /// Bytes of the nodes that the guest owns, names included.
    pub fn guest_bytes(&self) -> usize {
        self.guest_bytes
    }

    /// Whether a node with these permissions counts as the guest's.
    pub fn is_guest_s(&self, perms: &Perms) -> bool {
        perms.owner() == i32::from(self.guest.0)
    }

    fn account(&mut self, name: &str, node: &Node, add: bool) {
        if !self.is_guest_s(&node.perms) {
            return;
        }
        let bytes = node.bytes() + name.len();
        if add {
            self.guest_nodes += 1;
            self.guest_bytes += bytes;
        } else {
            self.guest_nodes -= 1;
            self.guest_bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use xen_abi::DomId;

    use super::{Children, Node, Perms, Tree};

    #[test]
    fn children_keep_their_order() {
        let mut children = Children::default();
        for leaf in ["b", "a", "ab", "c"] {
            children.add(leaf);
        }
        assert!(children.remove("a"));
        assert!(!children.remove("missing"));
        assert_eq!(children.as_bytes(), b"b\0ab\0c\0");
        assert!(children.remove("b") && children.remove("c") && children.remove("ab"));
        assert_eq!(children.as_bytes(), b"");
    }

    #[test]
    fn the_guest_s_share_is_what_is_there() {
        let mut tree = Tree::new(DomId(5));
        let mut node = Node::new(Perms::new(DomId(5), Some(DomId(0))));
        tree.put("/a", node.clone());
        tree.put("/b", Node::new(Perms::new(DomId(0), None)));
        assert_eq!((tree.guest_nodes(), tree.guest_bytes()), (1, 24 + 16 + 2));
        node.value = b"xyz".to_vec();
        tree.put("/a", node);
        assert_eq!((tree.guest_nodes(), tree.guest_bytes()), (1, 24 + 16 + 5));
        tree.put("/a", Node::new(Perms::new(DomId(0), None)));
        assert_eq!((tree.guest_nodes(), tree.guest_bytes()), (0, 0));
    }
}
