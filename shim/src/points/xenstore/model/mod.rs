//! A deliberately naive model of the daemon's rules, to hold the virtual store against.
//!
//! It keeps the whole store as it was after every single change.  A transaction remembers *when*
//! it first looked at each node; what it sees is that moment plus its own writes, and it conflicts
//! if a node it looked at is a different version now.  No quotas, no message lengths.

mod answer;

use std::collections::BTreeMap;

use unmoved_store_script::{Answer, Client, Event, Target};
use xen_abi::DomId;
use xen_abi::xs_wire::MsgType;

/// A node: value, permissions as letters and ids, children, and which version of it this is.
#[derive(Clone, Debug)]
struct Node {
    value: Vec<u8>,
    perms: Vec<(char, i64)>,
    children: Vec<String>,
    version: usize,
}

type World = BTreeMap<String, Node>;

/// A transaction: when each node was first looked at (in order), own writes, nodes to tell of.
#[derive(Default)]
struct Tx {
    looked: Vec<(String, usize)>,
    written: BTreeMap<String, Option<Node>>,
    told: BTreeMap<String, bool>,
}

#[derive(Default)]
struct Peer {
    id: i64,
    open: BTreeMap<u32, Tx>,
    started: u32,
    /// Full path, token, length of the prefix that events leave out.
    watches: Vec<(String, String, usize)>,
    events: Vec<Event>,
}

pub struct Model {
    history: Vec<World>,
    peers: [Peer; 2],
}

type Res<T> = Result<T, &'static str>;

fn parent(path: &str) -> String {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/".into(),
        Some((dir, _)) => dir.into(),
    }
}

fn leaf(path: &str) -> String {
    path.rsplit_once('/').map_or(path, |(_, leaf)| leaf).into()
}

fn may(id: i64, perms: &[(char, i64)], right: char) -> bool {
    let everything = id == 0 || perms[0].1 == id;
    let named = perms[1..].iter().find(|(_, other)| *other == id);
    let letter = named.unwrap_or(&perms[0]).0;
    everything || letter == right || (letter == 'b' && right != 'o')
}

impl Model {
    pub fn new(guest: DomId) -> Self {
        let root = Node {
            value: vec![],
            perms: vec![('n', 0)],
            children: vec![],
            version: 0,
        };
        let peer = |id| Peer {
            id,
            ..Peer::default()
        };
        Self {
            history: vec![World::from([("/".into(), root)])],
            peers: [peer(i64::from(guest.0)), peer(0)],
        }
    }

    fn now(&self) -> &World {
        &self.history[self.history.len() - 1]
    }

    fn tx(&mut self, who: usize, tx: u32) -> Option<&mut Tx> {
        self.peers[who].open.get_mut(&tx)
    }

    fn see(&mut self, who: usize, tx: u32, path: &str) -> Option<Node> {
        let now = self.history.len() - 1;
        let Some(open) = self.tx(who, tx) else {
            return self.now().get(path).cloned();
        };
        if let Some(mine) = open.written.get(path) {
            return mine.clone();
        }
        let time = match open.looked.iter().find(|(name, _)| name == path) {
            Some((_, time)) => *time,
            None => {
                open.looked.push((path.into(), now));
                now
            }
        };
        self.history[time].get(path).cloned()
    }

    fn set(&mut self, who: usize, tx: u32, path: &str, node: Option<Node>) {
        if let Some(open) = self.tx(who, tx) {
            open.written.insert(path.into(), node);
            return;
        }
        let mut world = self.now().clone();
        match node {
            Some(node) => {
                let version = self.history.len();
                world.insert(path.into(), Node { version, ..node });
            }
            None => drop(world.remove(path)),
        }
        self.history.push(world);
    }

    fn tell(
        &mut self,
        who: usize,
        tx: u32,
        path: &str,
        exact: bool,
        old: Option<Vec<(char, i64)>>,
    ) {
        if let Some(open) = self.tx(who, tx) {
            let told = open.told.entry(path.into()).or_insert(true);
            *told = *told && exact;
            return;
        }
        let mut witnesses: Vec<_> = old.into_iter().collect();
        if let Some(node) = self.now().get(path) {
            witnesses.push(node.perms.clone());
            if let Some(above) = self.now().get(&parent(path)) {
                witnesses.push(above.perms.clone());
            }
        }
        for peer in &mut self.peers {
            if !witnesses.iter().any(|perms| may(peer.id, perms, 'r')) {
                continue;
            }
            for (watched, token, hidden) in &peer.watches {
                let below = path == watched || path.starts_with(&format!("{watched}/"));
                if path == watched || (!exact && (below || watched == "/")) {
                    let shown = path.as_bytes()[*hidden..].to_vec();
                    peer.events.push((shown, token.clone().into_bytes()));
                }
            }
        }
    }

    /// The node, if all of `rights` are there.
    fn get(&mut self, who: usize, tx: u32, path: &str, rights: &str) -> Res<Node> {
        let odd = |c: char| !(c.is_ascii_alphanumeric() || "-/_@".contains(c));
        let ends = path.len() > 1 && path.ends_with('/');
        if !path.starts_with('/') || ends || path.contains("//") || path.contains(odd) {
            return Err("EINVAL");
        }
        let id = self.peers[who].id;
        let error = match self.see(who, tx, path) {
            Some(node) if rights.chars().all(|right| may(id, &node.perms, right)) => {
                return Ok(node);
            }
            Some(_) => "EACCES",
            None => "ENOENT",
        };
        let mut above = path.to_string();
        loop {
            above = parent(&above);
            if let Some(node) = self.see(who, tx, &above) {
                let some = rights.chars().any(|right| may(id, &node.perms, right));
                return Err(if some { error } else { "EACCES" });
            }
        }
    }

    fn create(&mut self, who: usize, tx: u32, path: &str, value: &[u8]) {
        let id = self.peers[who].id;
        let mut missing = vec![path.to_string()];
        let mut base = loop {
            let above = parent(&missing[missing.len() - 1]);
            match self.see(who, tx, &above) {
                Some(node) => break (above, node),
                None => missing.push(above),
            }
        };
        let mut perms = base.1.perms.clone();
        if id != 0 {
            perms[0].1 = id;
        }
        let mut child: Option<String> = None;
        for new in &missing {
            let node = Node {
                value: if new == path { value.to_vec() } else { vec![] },
                perms: perms.clone(),
                children: child.iter().cloned().collect(),
                version: 0,
            };
            self.set(who, tx, new, Some(node));
            child = Some(leaf(new));
        }
        base.1.children.extend(child);
        self.set(who, tx, &base.0, Some(base.1));
    }

    fn remove(&mut self, who: usize, tx: u32, path: &str, top: &str) -> Res<()> {
        // Only in a transaction that saw a directory before and its child after a change.
        let node = self.see(who, tx, path).ok_or("EIO")?;
        for child in node.children {
            self.remove(who, tx, &format!("{path}/{child}"), top)?;
        }
        self.tell(who, tx, path, path != top, None);
        self.set(who, tx, path, None);
        Ok(())
    }

    fn commit(&mut self, who: usize, open: Tx) -> Res<()> {
        let version = |world: &World, path: &str| world.get(path).map(|node| node.version);
        for (path, time) in &open.looked {
            if version(&self.history[*time], path) != version(self.now(), path) {
                return Err("EAGAIN");
            }
        }
        for (path, time) in &open.looked {
            if let Some(node) = open.written.get(path) {
                self.set(who, 0, path, node.clone());
            }
            if let Some(exact) = open.told.get(path) {
                let old = self.history[*time].get(path).map(|node| node.perms.clone());
                self.tell(who, 0, path, *exact, old);
            }
        }
        Ok(())
    }

    fn full(&self, who: usize, path: &str) -> String {
        if path.starts_with('/') || path.starts_with('@') {
            path.into()
        } else {
            format!("/local/domain/{}/{path}", self.peers[who].id)
        }
    }
}

impl Target for Model {
    fn request(&mut self, client: Client, kind: MsgType, tx: u32, payload: &[u8]) -> Answer {
        self.answer(client as usize, kind, tx, payload)
            .map_err(String::from)
    }

    fn events(&mut self, client: Client) -> Vec<Event> {
        std::mem::take(&mut self.peers[client as usize].events)
    }
}
