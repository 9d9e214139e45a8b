//! Answers of the host: checked against the shadow, and passed on once all that was granted for
//! them has ended.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem::size_of;

use xen_abi::blkif::{Response, SLOT_SIZE, status};
use zerocopy::FromBytes;

use super::{Disk, Shell};
use crate::points::Cx;

/// Pages for segments that are kept for later.
const MAX_SPARE_PAGES: usize = 64;

impl Disk {
    /// Takes the host's next answer out of its ring.
    pub(super) fn next_answer(
        shell: &mut Shell<Self>,
        cx: &mut Cx<'_>,
    ) -> Result<Option<[u8; SLOT_SIZE]>, String> {
        let Some(rings) = &mut shell.host.rings else {
            return Ok(None);
        };
        let taken = rings.ring.take(cx.frames);
        taken.map_err(|error| format!("the backend's ring has {error}"))
    }

    pub(super) fn take_answer(
        &mut self,
        shell: &mut Shell<Self>,
        cx: &mut Cx<'_>,
        slot: &[u8; SLOT_SIZE],
    ) -> Result<(), String> {
        let response = Response::read_from_bytes(&slot[..size_of::<Response>()])
            .expect("the slice has a response's size");
        let named = self.shadow.part_named(response.id);
        let part = named.and_then(|number| self.shadow.parts.get_mut(number));
        let (Some(number), Some(part)) = (named, part) else {
            return Err(format!(
                "the backend answers a request {:#x} that nobody made",
                response.id
            ));
        };
        // Nothing was changed yet: a backend that lies here is broken, and `fail_all` finds the
        // part as it was.
        if response.operation != part.operation {
            return Err(format!(
                "the backend answers operation {} as {}",
                part.operation, response.operation
            ));
        }
        part.answer = Some(response.status);
        self.end_part(shell, cx, number);
        Ok(())
    }

    /// Ends what an answered part granted.  Only when the backend has let go of everything is the
    /// guest told, for it may use its pages for something else the moment after.
    fn end_part(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>, number: u32) {
        let Some(part) = self.shadow.parts.get_mut(number) else {
            return;
        };
        let Some(answer) = part.answer else { return };
        part.grants.retain(|&grant| !cx.host_grants.end(grant));
        if !part.grants.is_empty() {
            shell.wants_retry = true;
            return;
        }
        let Some(part) = self.shadow.remove_part(number) else {
            return;
        };
        // By now the backend can neither read nor write for this part: what it used may go to
        // others.
        self.keep_grants(part.grants);
        if let Some(page) = part.page {
            if self.spare_pages.len() < MAX_SPARE_PAGES {
                self.spare_pages.push(page);
            } else {
                cx.pool.give_back(page);
            }
        }
        if let Some(entry) = self.shadow.entries.get_mut(part.entry) {
            entry.parts -= 1;
            entry.note_status(answer);
            if entry.parts == 0 && !entry.queued {
                self.answer_entry(shell, cx, part.entry);
            }
        }
    }

    /// Tries again to end what answered parts granted.
    pub(super) fn end_answered_parts(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        let answered: Vec<u32> = self.shadow.parts.numbers().collect();
        for number in answered {
            self.end_part(shell, cx, number);
        }
    }

    /// Everything that is in flight has failed.
    pub(super) fn fail_all(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        let parts: Vec<u32> = self.shadow.parts.numbers().collect();
        for number in parts {
            // An answer that has come stays what it was.
            if let Some(part) = self.shadow.parts.get_mut(number) {
                part.answer = part.answer.or(Some(status::ERROR));
            }
        }
        // Before the parts: an entry is answered with its last part only when it is in the backlog
        // no more.
        self.empty_backlog(shell, cx);
        self.end_answered_parts(shell, cx);
    }

    /// What was not asked of the host yet never is, because nobody is left to ask or to be
    /// answered.
    pub(super) fn empty_backlog(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        while let Some(number) = self.shadow.backlog.pop_front() {
            if let Some(entry) = self.shadow.entries.get_mut(number) {
                entry.note_status(status::ERROR);
                entry.queued = false;
                if entry.parts == 0 {
                    self.answer_entry(shell, cx, number);
                }
            }
        }
    }
}
