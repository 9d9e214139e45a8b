//! Reads whole subtrees of the real store, for the first contents of the guest's.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use xen_abi::Errno;

use crate::host::{StoreClient, StoreEvent, StoreOp, Tag};

/// Nodes looked at; a domain's directory has some dozens.
const NODES: usize = 2048;
/// Bytes of names and values kept.
const BYTES: usize = 256 << 10;
/// Levels below a root.
const DEPTH: usize = 12;
/// Nodes asked for at a time.
const AT_ONCE: usize = 4;

/// A node still to be asked for.
#[derive(Debug)]
struct Node {
    path: String,
    depth: usize,
}

/// What an answer that is due will be about.
#[derive(Debug)]
enum Asked {
    Value(String),
    Children(Node),
}

/// Reads a list of nodes with everything below them.
#[derive(Debug)]
pub struct TreeReader {
    tag: Tag,
    wanted: VecDeque<Node>,
    asked: VecDeque<Asked>,
    found: Vec<(String, Vec<u8>)>,
    seen: usize,
    bytes: usize,
}

impl TreeReader {
    /// Begins to read; all answers come under `tag`, which nobody else uses meanwhile.
    pub fn new(client: &mut dyn StoreClient, tag: Tag, roots: &[&str]) -> Self {
        let wanted = roots.iter().map(|root| Node {
            path: root.to_string(),
            depth: 0,
        });
        let mut reader = Self {
            tag,
            wanted: wanted.collect(),
            asked: VecDeque::new(),
            found: Vec::new(),
            seen: 0,
            bytes: 0,
        };
        reader.ask(client);
        reader
    }

    /// Takes an event that came under the reader's tag.
    pub fn event(&mut self, client: &mut dyn StoreClient, event: StoreEvent) {
        let StoreEvent::Reply(answer) = event else {
            return;
        };
        // Answers of one client come in the order of its requests, so this one is for the oldest.
        match (self.asked.pop_front(), answer) {
            (Some(Asked::Value(path)), Ok(value)) => self.keep(path, value),
            (Some(Asked::Children(node)), Ok(children)) => self.descend(&node, &children),
            (Some(Asked::Value(path) | Asked::Children(Node { path, .. })), Err(error)) => {
                // Gone between its parent's list and the question about it; the host changes its
                // store when it likes.
                if error != Errno::ENOENT {
                    log::warn!("xenstore: reading {path}: {error}");
                }
            }
            (None, _) => log::warn!("xenstore: an answer to nothing that was asked"),
        }
        self.ask(client);
    }

    /// Whether everything has been read.
    pub fn is_done(&self) -> bool {
        self.wanted.is_empty() && self.asked.is_empty()
    }

    /// Returns what was found: paths as given and below, with values.
    pub fn into_nodes(self) -> Vec<(String, Vec<u8>)> {
        self.found
    }

    fn ask(&mut self, client: &mut dyn StoreClient) {
        // Few at a time: the connection is shared, and has room for twelve requests on their way.
        while self.asked.len() < 2 * AT_ONCE {
            let Some(node) = self.wanted.pop_front() else {
                return;
            };
            client.submit(self.tag, StoreOp::Read(node.path.clone()));
            self.asked.push_back(Asked::Value(node.path.clone()));
            client.submit(self.tag, StoreOp::Directory(node.path.clone()));
            self.asked.push_back(Asked::Children(node));
        }
    }

    fn keep(&mut self, path: String, value: Vec<u8>) {
        // Counted whether or not it is kept: what comes after too much is left out as well, instead
        // of whatever happens to fit.
        self.bytes += path.len() + value.len();
        if self.bytes <= BYTES {
            self.found.push((path, value));
        } else {
            log::warn!("xenstore: too much below the domain's directory; {path} is left out");
        }
    }

    fn descend(&mut self, node: &Node, children: &[u8]) {
        for leaf in children.split(|byte| *byte == 0) {
            let Some(leaf) = core::str::from_utf8(leaf)
                .ok()
                .filter(|leaf| !leaf.is_empty())
            else {
                continue;
            };
            // Counted when a node is found and not when it is read, so that the queue is bounded as
            // well.
            self.seen += 1;
            if self.seen > NODES || node.depth >= DEPTH {
                log::warn!(
                    "xenstore: too many nodes; the rest of {} is left out",
                    node.path
                );
                return;
            }
            self.wanted.push_back(Node {
                path: format!("{}/{leaf}", node.path),
                depth: node.depth + 1,
            });
        }
    }
}
