//! What a CPU remembers of page tables, and may use until it is told to forget.
//!
//! A CPU keeps whole translations, and in its paging-structure caches the entries above them (SDM
//! Vol. 3A §5.10.3).  It walks tables whenever it likes, and forgets what it likes; the one here is
//! as bad as it may be.  It keeps everything that could ever be reached until it is flushed, also
//! what was replaced meanwhile, and for every access it tries *every* way that it knows.  None may
//! lead to a frame of the shim's, through a frame that is something else by now, or to a write of
//! what is no data; and what it may still walk as a table, nobody may store to.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::iter::once;

use xen_abi::mmu::{ENTRIES, Level, Pte, is_guest_l4_slot};
use xen_abi::{GuestVa, Mfn, PAGE_SIZE};

use crate::mem::{BadAddress, Frames};
use crate::mm::{FrameUse, Ledger, Owner};
use crate::testing::FakeFrames;

/// What an address, or the part of it that the levels above stand for, leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    frame: Mfn,
    writable: bool,
}

/// A frame that is walked as a table of a level.
type Walked = (Mfn, Level);

/// One CPU's memory of page tables.
pub struct Translations {
    ledger: Ledger,
    /// By page number; the oldest first.
    pages: RefCell<BTreeMap<u64, Vec<Found>>>,
    /// By level of the table that is found, and the part of the address that leads there.
    links: RefCell<BTreeMap<(Level, u64), Vec<Found>>>,
    /// All tables of `links`.
    tables: RefCell<BTreeSet<Walked>>,
    walks: Cell<usize>,
}

/// Returns the part of an address that chooses a table of `level`.
const fn part(level: Level, va: u64) -> u64 {
    va >> (level.shift() + 9)
}

fn add<K: Ord>(map: &RefCell<BTreeMap<K, Vec<Found>>>, key: K, found: Found) {
    let mut map = map.borrow_mut();
    let known = map.entry(key).or_default();
    if !known.contains(&found) {
        known.push(found);
    }
}

impl Translations {
    /// Makes a CPU that knows nothing yet; `ledger` says what it may find.
    pub fn new(ledger: &Ledger) -> Self {
        Self {
            ledger: ledger.window(),
            pages: RefCell::default(),
            links: RefCell::default(),
            tables: RefCell::default(),
            walks: Cell::default(),
        }
    }

    /// Forgets everything.
    pub fn forget(&self) {
        self.pages.borrow_mut().clear();
        self.links.borrow_mut().clear();
        self.tables.borrow_mut().clear();
    }

    /// Forgets the translation of a page, and no more than that.
    pub fn forget_page(&self, va: u64) {
        self.pages.borrow_mut().remove(&(va / PAGE_SIZE as u64));
    }

    /// How often the tables were walked, which is how often no translation was remembered.
    pub fn walks(&self) -> usize {
        self.walks.get()
    }

    /// Translates an address as an access of ring 3 does.
    pub fn translate(
        &self,
        frames: &FakeFrames,
        root: Mfn,
        va: u64,
        write: bool,
    ) -> Result<Mfn, BadAddress> {
        let pages = self.pages.borrow().get(&(va / PAGE_SIZE as u64)).cloned();
        let pages = pages.unwrap_or_default();
        let mut ways = Vec::new();
        for level in [Level::L1, Level::L2, Level::L3] {
            let links = self.links.borrow().get(&(level, part(level, va))).cloned();
            let links = links.into_iter().flatten();
            ways.extend(links.map(|link| (level, link)));
        }
        let top = Found {
            frame: root,
            writable: true,
        };
        ways.push((Level::L4, top));
        for page in &pages {
            self.judge_page(va, *page);
        }
        for &(level, from) in &ways {
            if let Some(page) = self.walk(frames, level, from, va, |_, _| {}) {
                self.judge_page(va, page);
            }
        }
        if let Some(hit) = pages.iter().find(|page| page.writable || !write) {
            return Ok(hit.frame);
        }
        self.walks.set(self.walks.get() + 1);
        let mut passed = Vec::new();
        let page = ways.iter().find_map(|&(level, from)| {
            passed.clear();
            let page = self.walk(frames, level, from, va, |level, table| {
                passed.push((level, table));
            });
            page.filter(|page| page.writable || !write)
        });
        let page = page.ok_or(BadAddress)?;
        for (level, table) in passed {
            let is_last = level == Level::L1;
            let dirty = if write && is_last { Pte::DIRTY } else { 0 };
            frames.note_walk(
                table.frame,
                level.index(GuestVa(va)) * 8,
                Pte::ACCESSED | dirty,
            );
            self.learn(level, table, va);
        }
        add(&self.pages, va / PAGE_SIZE as u64, page);
        Ok(page.frame)
    }

    /// Walks from a table of `level` on; `pass` is told of each table.
    fn walk(
        &self,
        frames: &FakeFrames,
        level: Level,
        from: Found,
        va: u64,
        mut pass: impl FnMut(Level, Found),
    ) -> Option<Found> {
        let mut at = from;
        for level in once(level).chain(below(level)) {
            self.judge_table((at.frame, level));
            pass(level, at);
            let entry = Pte(frames.load64(at.frame, level.index(GuestVa(va)) * 8));
            if !entry.is_present() {
                return None;
            }
            assert!(entry.has(Pte::USER), "{level:?} of {va:#x}: {entry:?}");
            at = Found {
                frame: entry.frame(),
                writable: at.writable && entry.has(Pte::RW),
            };
        }
        Some(at)
    }

    fn learn(&self, level: Level, table: Found, va: u64) {
        if level != Level::L4 {
            add(&self.links, (level, part(level, va)), table);
            self.tables.borrow_mut().insert((table.frame, level));
        }
    }

    /// Walks wherever the tables lead, as a CPU may at any moment: all of what is above pages is
    /// known then, with `pages` also these.
    pub fn speculate(&self, frames: &FakeFrames, root: Mfn, pages: bool) {
        let top = Found {
            frame: root,
            writable: true,
        };
        self.explore(frames, Level::L4, top, 0, pages);
    }

    fn explore(&self, frames: &FakeFrames, level: Level, table: Found, base: u64, pages: bool) {
        self.judge_table((table.frame, level));
        self.learn(level, table, base);
        if level == Level::L1 && !pages {
            return;
        }
        for (index, raw) in frames.words(table.frame).into_iter().enumerate() {
            let entry = Pte(raw);
            if !entry.is_present() || level == Level::L4 && !is_guest_l4_slot(index) {
                continue;
            }
            let found = Found {
                frame: entry.frame(),
                writable: table.writable && entry.has(Pte::RW),
            };
            let mut va = base | (index as u64) << level.shift();
            if level == Level::L4 && index >= ENTRIES / 2 {
                va |= !0 << 48;
            }
            match level.child() {
                Some(child) => self.explore(frames, child, found, va, pages),
                None => {
                    self.judge_page(va, found);
                    add(&self.pages, va / PAGE_SIZE as u64, found);
                }
            }
        }
    }

    /// Checks that whatever is remembered may be used: nothing of the shim's, for writing no table,
    /// and as a table none that may be something else by now.
    pub fn check(&self) {
        for (page, found) in &*self.pages.borrow() {
            for &found in found {
                self.judge_page(page * PAGE_SIZE as u64, found);
            }
        }
        for ((level, _), found) in &*self.links.borrow() {
            for link in found {
                self.judge_table((link.frame, *level));
            }
        }
    }

    fn judge_page(&self, va: u64, page: Found) {
        let owner = self.ledger.owner(page.frame);
        assert!(
            matches!(owner, Owner::Guest | Owner::Shared | Owner::ReadOnly),
            "{va:#x} still leads to {:?}, which is {owner:?}'s",
            page.frame
        );
        assert!(
            !page.writable || self.ledger.is_plain_data(page.frame),
            "{va:#x} can still be written, and {:?} is {:?}",
            page.frame,
            self.ledger.info(page.frame)
        );
    }

    /// A table that lost its last reference may be walked still, for it is what it was; once it is
    /// anything else, not.
    fn judge_table(&self, (frame, level): Walked) {
        let is_one = self.is_table(frame, level) || self.ledger.used_as(frame) == FrameUse::None;
        assert!(
            is_one && self.ledger.owner(frame) == Owner::Guest,
            "{frame:?} may still be walked as a table of {level:?}, and is {:?}",
            self.ledger.info(frame)
        );
    }

    /// Whether a frame is a table of the level, be it checked or not: it can not be changed.
    fn is_table(&self, frame: Mfn, level: Level) -> bool {
        let unfinished = self.ledger.unfinished(frame);
        self.ledger.used_as(frame) == level.into()
            || unfinished.is_some_and(|(found, _)| found == level)
    }

    /// Checks a store to a frame, by whomever.
    pub fn judge_store(&self, frame: Mfn) {
        let tables = self.tables.borrow();
        for &(_, level) in tables.range((frame, Level::L1)..=(frame, Level::L4)) {
            assert!(
                self.is_table(frame, level),
                "{frame:?} is stored to, and may still be walked as a table of {level:?}: {:?}",
                self.ledger.info(frame)
            );
        }
    }
}

fn below(level: Level) -> impl Iterator<Item = Level> {
    std::iter::successors(level.child(), |level| level.child())
}
