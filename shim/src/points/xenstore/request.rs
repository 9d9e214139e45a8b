//! One message of a client, parsed and answered.
//!
//! The first checks are, in this order: a type that exists, the privilege for it, a transaction
//! that is open.  Events that an operation causes are queued before its answer, as the daemon
//! does; only the first event of a new watch comes after.

use alloc::format;
use alloc::vec::Vec;

use xen_abi::xs_wire::{Header, MsgType, PAYLOAD_MAX};
use xen_abi::{DomId, Errno};

use super::daemon::{ConnId, Daemon};
use super::operations as op;
use super::path::canonical;
use super::perms::{Perms, Rights, atoi};
use super::view::View;
use super::watch::Change;
use crate::heap;

/// The answer to everything that has nothing to say.
const OK: &[u8] = b"OK\0";

impl Daemon {
    /// Answers a message and returns what it changed, already announced to all watches.
    pub fn handle(&mut self, id: ConnId, request: &Header, payload: &[u8]) -> Vec<Change> {
        let mut changes = Vec::new();
        match self.answer(id, request, payload, &mut changes) {
            Ok(answer) => {
                // Events before the answer, and the first event of a watch after it: the order of
                // the real daemon, which clients have come to know.
                self.announce(&changes);
                self.send_reply(id, request, &answer);
                if request.kind == MsgType::WATCH.0
                    && let [name, token] = strings(payload)[..]
                {
                    self.send_event(id, &(name.to_vec(), token.to_vec()));
                }
            }
            Err(error) => self.send_error(id, request, error),
        }
        changes
    }

    fn answer(
        &mut self,
        id: ConnId,
        request: &Header,
        payload: &[u8],
        changes: &mut Vec<Change>,
    ) -> Result<Vec<u8>, Errno> {
        let kind = MsgType(request.kind);
        let caller = self.connection(id).domid;
        if !is_request(kind) {
            return Err(Errno::ENOSYS);
        }
        if is_privileged(kind) && caller.0 != 0 {
            return Err(Errno::EACCES);
        }
        let ignores_tx = matches!(kind, MsgType::WATCH | MsgType::UNWATCH);
        let tx = if ignores_tx { 0 } else { request.tx_id };
        if tx != 0 && !self.connection(id).transactions.contains(tx) {
            return Err(Errno::ENOENT);
        }
        match kind {
            MsgType::WATCH => self.watch(id, payload),
            MsgType::UNWATCH => {
                let [name, token] = two(payload)?;
                self.connection_mut(id).watches.remove(name, token)?;
                Ok(OK.to_vec())
            }
            MsgType::RESET_WATCHES => {
                let connection = self.connection_mut(id);
                connection.watches.clear();
                connection.transactions.clear();
                Ok(OK.to_vec())
            }
            MsgType::TRANSACTION_START => self.transaction_start(id, tx),
            MsgType::TRANSACTION_END => {
                *changes = self.transaction_end(id, tx, payload)?;
                Ok(OK.to_vec())
            }
            MsgType::GET_DOMAIN_PATH => {
                // Printed as unsigned: a negative number is a large domain id.
                let domid = atoi(one(payload)?).cast_unsigned();
                Ok(format!("/local/domain/{domid}\0").into_bytes())
            }
            MsgType::IS_DOMAIN_INTRODUCED => {
                let domid = atoi(one(payload)?);
                let known = self.is_domain(domid) || domid == i32::from(DomId::SELF.0);
                Ok(Vec::from(if known { b"T\0" } else { b"F\0" }))
            }
            MsgType::SET_PERMS => self.set_perms(id, tx, payload, changes),
            // Operations of the host's tools, which mean nothing in here.
            _ if is_privileged(kind) => Err(Errno::ENOSYS),
            _ => {
                let (answer, changed) = self.operate(id, tx, |view| on_tree(view, kind, payload));
                *changes = changed;
                answer
            }
        }
    }

    fn watch(&mut self, id: ConnId, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        let [name, token] = two(payload)?;
        heap::room()?;
        let limits = self.limits;
        let left = self.memory_left(self.connection(id).domid);
        self.connection_mut(id)
            .watches
            .add(name, token, &limits, left)?;
        Ok(OK.to_vec())
    }

    fn transaction_start(&mut self, id: ConnId, tx: u32) -> Result<Vec<u8>, Errno> {
        if tx != 0 {
            return Err(Errno::EBUSY);
        }
        let most = self.limits.transactions;
        let connection = self.connection_mut(id);
        if connection.domid.0 != 0 && connection.transactions.len() > most {
            return Err(Errno::ENOSPC);
        }
        heap::room()?;
        Ok(format!("{}\0", connection.transactions.start()).into_bytes())
    }

    fn transaction_end(
        &mut self,
        id: ConnId,
        tx: u32,
        payload: &[u8],
    ) -> Result<Vec<Change>, Errno> {
        let commit = match payload {
            b"T\0" => true,
            b"F\0" => false,
            _ => return Err(Errno::EINVAL),
        };
        let connection = self.connection_mut(id);
        let caller = connection.domid;
        // Closed whatever comes of it: after a refusal the client begins a new one.
        let transaction = connection.transactions.take(tx).ok_or(Errno::ENOENT)?;
        if commit {
            heap::room()?;
            let limits = self.limits;
            transaction.commit(&mut self.tree, caller, &limits)
        } else {
            Ok(Vec::new())
        }
    }

    fn set_perms(
        &mut self,
        id: ConnId,
        tx: u32,
        payload: &[u8],
        changes: &mut Vec<Change>,
    ) -> Result<Vec<u8>, Errno> {
        let caller = self.connection(id).domid;
        let (name, list) = split_name(payload).ok_or(Errno::EINVAL)?;
        let perms = Perms::parse(list, caller, &self.limits)?;
        if !self.is_domain(perms.owner()) {
            return Err(Errno::ENOENT);
        }
        if name.starts_with(b"@") {
            let special = self.special_mut(name).ok_or(Errno::EINVAL)?;
            if !special
                .rights(caller)
                .contains(Rights::WRITE | Rights::OWNER)
            {
                return Err(Errno::EACCES);
            }
            *special = perms;
            return Ok(OK.to_vec());
        }
        let name = canonical(caller, name);
        let (result, changed) = self.operate(id, tx, |view| op::set_perms(view, &name, perms));
        *changes = changed;
        result.map(|()| OK.to_vec())
    }
}

/// The operations that need nothing but the tree.
fn on_tree(view: &mut View<'_>, kind: MsgType, payload: &[u8]) -> Result<Vec<u8>, Errno> {
    let done = || OK.to_vec();
    if kind == MsgType::WRITE {
        let (name, value) = split_name(payload).ok_or(Errno::EINVAL)?;
        return op::write(view, &canonical(view.caller, name), value).map(|()| done());
    }
    if kind == MsgType::DIRECTORY_PART {
        return directory_part(view, payload);
    }
    let name = canonical(view.caller, one(payload)?);
    match kind {
        MsgType::MKDIR => op::mkdir(view, &name).map(|()| done()),
        MsgType::RM => op::remove(view, &name).map(|()| done()),
        MsgType::READ => Ok(op::get(view, &name, Rights::READ)?.value.clone()),
        MsgType::DIRECTORY => Ok(op::get(view, &name, Rights::READ)?
            .children
            .as_bytes()
            .to_vec()),
        MsgType::GET_PERMS => Ok(op::get(view, &name, Rights::READ)?.perms.to_wire()),
        _ => Err(Errno::ENOSYS),
    }
}

/// A piece of a listing too long for one message: the node's generation, then as many whole names
/// from the given byte on as fit, then an empty name if that was the end.
fn directory_part(view: &mut View<'_>, payload: &[u8]) -> Result<Vec<u8>, Errno> {
    if payload.iter().filter(|byte| **byte == 0).count() != 2 {
        return Err(Errno::EINVAL);
    }
    let (name, rest) = split_name(payload).ok_or(Errno::EINVAL)?;
    let node = op::get(view, &canonical(view.caller, name), Rights::READ)?;
    let offset = atoi(rest.split(|byte| *byte == 0).next().unwrap_or(&[])).cast_unsigned();
    let mut answer = format!("{}\0", node.generation).into_bytes();
    let room = PAYLOAD_MAX - answer.len() - 1;
    let all = node.children.as_bytes();
    // The client asks for each piece by an offset of its own making. Beyond the end there is
    // nothing, and in the middle of a name it reads half of one.
    let rest = all.get(offset as usize..).unwrap_or(&[]);
    let mut taken = 0;
    for name in rest.split_inclusive(|byte| *byte == 0) {
        // One byte stays free for the empty name at the end.
        if taken + name.len() > room {
            break;
        }
        taken += name.len();
    }
    answer.extend_from_slice(&rest[..taken]);
    if taken == rest.len() {
        answer.push(0);
    }
    Ok(answer)
}

/// Whether a client may send this type at all.
fn is_request(kind: MsgType) -> bool {
    kind <= MsgType::DIRECTORY_PART
        && !matches!(kind, MsgType(20) | MsgType::WATCH_EVENT | MsgType::ERROR)
}

/// Whether only the host's tools may send this type.
fn is_privileged(kind: MsgType) -> bool {
    matches!(
        kind,
        MsgType::CONTROL
            | MsgType::INTRODUCE
            | MsgType::RELEASE
            | MsgType::IS_DOMAIN_INTRODUCED
            | MsgType::RESUME
            | MsgType::SET_TARGET
    )
}

/// The strings of a payload; bytes after the last NUL belong to none.
fn strings(payload: &[u8]) -> Vec<&[u8]> {
    let mut all: Vec<_> = payload.split(|byte| *byte == 0).collect();
    all.pop();
    all
}

/// The first string, and what follows its NUL.
fn split_name(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let nul = payload.iter().position(|byte| *byte == 0)?;
    Some((&payload[..nul], &payload[nul + 1..]))
}

/// The one string that the payload is.
fn one(payload: &[u8]) -> Result<&[u8], Errno> {
    match split_name(payload) {
        Some((name, [])) => Ok(name),
        _ => Err(Errno::EINVAL),
    }
}

/// The two strings that the payload has.
fn two(payload: &[u8]) -> Result<[&[u8]; 2], Errno> {
    strings(payload).try_into().map_err(|_| Errno::EINVAL)
}
