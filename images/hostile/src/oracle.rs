//! Walks this kernel's own page tables and looks for what they must not hold: a writable mapping of
//! a page table or of the descriptor table, and a frame that is not the guest's.

use xen_abi::Mfn;
use xen_abi::mmu::{ENTRIES, Level, Pte, is_guest_l4_slot};

use crate::console::say;
use crate::m2p;
use crate::memory::{self, GDT, table_entry};
use crate::verdict::Verdicts;

/// Most tables that are remembered; the builder makes a few dozen.
const TABLES: usize = 256;

struct Walk {
    tables: [Mfn; TABLES],
    count: usize,
    /// Tables that are none of those that this kernel started with.
    strange: usize,
}

impl Walk {
    fn visit(&mut self, level: Level, table: Mfn, leaf: &mut impl FnMut(&Self, Pte)) {
        if level == Level::L1 {
            for index in 0..ENTRIES {
                let entry = table_entry(table, index);
                if entry.is_present() {
                    leaf(self, entry);
                }
            }
            return;
        }
        for index in 0..ENTRIES {
            let entry = table_entry(table, index);
            let is_mine = level != Level::L4 || is_guest_l4_slot(index);
            if !is_mine || !entry.is_present() {
                continue;
            }
            let Some(child) = level.child() else { return };
            // Recursion through a read-only self reference would not end.
            if !m2p::is_first_table(entry.frame()) {
                say!(
                    "oracle: {level:?} {table:?} entry {index}: {entry:?}, no table of the builder's"
                );
                self.strange += 1;
            } else if !self.tables[..self.count].contains(&entry.frame()) {
                self.note(entry.frame());
                self.visit(child, entry.frame(), leaf);
            }
        }
    }

    fn note(&mut self, table: Mfn) {
        if self.count < TABLES {
            self.tables[self.count] = table;
            self.count += 1;
        }
    }
}

/// Checks everything that can be reached from the root.
pub fn check(verdicts: &mut Verdicts) {
    let mut walk = Walk {
        tables: [Mfn(0); TABLES],
        count: 0,
        strange: 0,
    };
    walk.note(memory::root());
    // The first walk finds all tables, the second looks at all leaves.
    walk.visit(Level::L4, memory::root(), &mut |_, _| {});
    verdicts.quietly(format_args!("oracle: strange tables"), walk.strange == 0);
    // While an attack has the table mapped writable it can not be a table, and is none.
    let gdt = memory::set_gdt().then(|| GDT.mfn(0));
    let tables = walk;
    let mut again = Walk {
        tables: [Mfn(0); TABLES],
        count: 0,
        strange: 0,
    };
    let shared = Mfn::of(memory::shared_info());
    again.visit(Level::L4, memory::root(), &mut |_, entry| {
        let frame = entry.frame();
        let is_table = tables.tables[..tables.count].contains(&frame) || gdt == Some(frame);
        verdicts.quietly(
            format_args!("oracle: {entry:?} maps a table writable"),
            !(is_table && entry.is_writable()),
        );
        verdicts.quietly(
            format_args!("oracle: {entry:?} maps a frame that is not the guest's"),
            frame == shared || m2p::is_own(frame),
        );
    });
}
