//! What each operation does to the tree, and the order of its checks.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use xen_abi::Errno;

use super::path;
use super::perms::{Perms, Rights};
use super::tree::Node;
use super::view::View;

/// Returns node `name` if the caller has all of `rights`.
///
/// Who may not know about a node is not told: without one of the rights on the nearest node above,
/// any failure becomes `EACCES`.
pub fn get(view: &mut View<'_>, name: &[u8], rights: Rights) -> Result<Arc<Node>, Errno> {
    let name = valid(view, name)?;
    let error = match view.look(name)? {
        Some(node) if node.perms.rights(view.caller).contains(rights) => return Ok(node),
        Some(_) => Errno::EACCES,
        None => Errno::ENOENT,
    };
    let above = nearest_above(view, name)?;
    if above.perms.rights(view.caller).intersects(rights) {
        Err(error)
    } else {
        Err(Errno::EACCES)
    }
}

/// Checks a name and returns it as text.
fn valid<'a>(view: &View<'_>, name: &'a [u8]) -> Result<&'a str, Errno> {
    if !path::is_valid(name, view.limits.path_bytes) {
        return Err(Errno::EINVAL);
    }
    core::str::from_utf8(name).map_err(|_| Errno::EINVAL)
}

fn nearest_above(view: &mut View<'_>, name: &str) -> Result<Arc<Node>, Errno> {
    let mut name = name;
    loop {
        name = path::parent(name);
        if let Some(node) = view.look(name)? {
            return Ok(node);
        }
        if name == "/" {
            // Nothing can remove the root; without it nobody may do anything.
            return Err(Errno::EACCES);
        }
    }
}

/// Sets the value of a node, making it and what is missing above it.
pub fn write(view: &mut View<'_>, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    match get(view, name, Rights::WRITE) {
        Ok(node) => {
            let name = valid(view, name)?;
            // A copy: the same node may be what an open transaction has seen.
            let mut node = Node::clone(&node);
            node.value = value.to_vec();
            view.put(name, node)?;
            view.fire(name, false, None);
            Ok(())
        }
        Err(Errno::ENOENT) => {
            let name = valid(view, name)?;
            create(view, name, value)?;
            view.fire(name, false, None);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Makes a node unless it is there.
pub fn mkdir(view: &mut View<'_>, name: &[u8]) -> Result<(), Errno> {
    match get(view, name, Rights::WRITE) {
        Err(Errno::ENOENT) => {
            let name = valid(view, name)?;
            create(view, name, &[])?;
            view.fire(name, false, None);
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

/// Makes a node that is missing, and what is missing above it.
///
/// New nodes have the permissions of the nearest node above; an unprivileged caller owns what it
/// makes.  They are written from the bottom up, and taken back if that fails half way.
fn create(view: &mut View<'_>, name: &str, value: &[u8]) -> Result<(), Errno> {
    let mut missing = Vec::from([name]);
    let mut above = path::parent(name);
    let base = loop {
        if let Some(node) = view.look(above)? {
            break node;
        }
        if above == "/" {
            return Err(Errno::ENOENT);
        }
        missing.push(above);
        above = path::parent(above);
    };
    let owner = (!view.is_privileged()).then_some(view.caller);
    let perms = base.perms.inherited(owner);
    if let Some(transaction) = &mut view.transaction {
        transaction.note_creation();
    }
    for (index, new) in missing.iter().enumerate() {
        let mut node = Node::new(perms.clone());
        match index.checked_sub(1) {
            None => node.value = value.to_vec(),
            Some(below) => node.children.add(path::leaf(missing[below])),
        }
        // Inside a transaction this is the count outside: the commit looks at the sum.
        let full = !view.is_privileged() && view.tree.guest_nodes() >= view.limits.nodes;
        let result = if full {
            Err(Errno::ENOSPC)
        } else {
            view.put(new, node)
        };
        if let Err(error) = result {
            undo(view, &missing[..index]);
            return Err(error);
        }
    }
    let mut base = Node::clone(&base);
    if let Some(top) = missing.last() {
        base.children.add(path::leaf(top));
    }
    // The parent comes last, so that what `undo` takes back was never listed.
    view.put(above, base).inspect_err(|_| undo(view, &missing))
}

fn undo(view: &mut View<'_>, written: &[&str]) {
    for name in written {
        view.delete(name);
        view.doom();
    }
}

/// Removes a node and everything below it, whoever owns that.
///
/// A transaction that looked at a directory before somebody changed it and at what is in it
/// afterwards sees two things that do not fit.  It can not be committed, but gets this far: then
/// the parent is missing (`EINVAL`), or a child or its entry (`EIO`).
pub fn remove(view: &mut View<'_>, name: &[u8]) -> Result<(), Errno> {
    match get(view, name, Rights::WRITE) {
        Ok(_) => {}
        Err(Errno::ENOENT) => {
            // Not there is as good as gone, provided that the parent is there.
            let name = valid(view, name)?;
            return match view.look(path::parent(name))? {
                Some(_) => Ok(()),
                None => Err(Errno::ENOENT),
            };
        }
        Err(error) => return Err(error),
    }
    let name = valid(view, name)?;
    if name == "/" {
        return Err(Errno::EINVAL);
    }
    let above = path::parent(name);
    let parent = view.look(above)?.ok_or(Errno::EINVAL)?;
    delete_below(view, name).map_err(|error| match error {
        Errno::ENOMEM => error,
        _ => Errno::EIO,
    })?;
    let mut parent = Node::clone(&parent);
    if !parent.children.remove(path::leaf(name)) {
        return Err(Errno::EIO);
    }
    // Without a check of the quota: it shrinks, and may be the guest's way out of a full store.
    view.put_unchecked(above, parent);
    Ok(())
}

/// Deletes a subtree, children before parents.  Watchers above hear of the top only, watchers of a
/// node below hear of that node.
fn delete_below(view: &mut View<'_>, top: &str) -> Result<(), Errno> {
    let mut name = String::from(top);
    // The nodes on the way down: how long each name is, and how far into its list of children all
    // were deleted.  Names of what is still to come would take more memory than the nodes.
    let mut way = Vec::from([(top.len(), 0)]);
    while let Some((len, deleted)) = way.last_mut() {
        name.truncate(*len);
        let node = view.look(&name)?.ok_or(Errno::ENOENT)?;
        if let Some(leaf) = node.children.at(*deleted) {
            *deleted += leaf.len() + 1;
            name.push('/');
            name.push_str(leaf);
            way.push((name.len(), 0));
        } else {
            view.fire(&name, name != top, None);
            view.delete(&name);
            way.pop();
        }
    }
    Ok(())
}

/// Replaces a node's permissions.
pub fn set_perms(view: &mut View<'_>, name: &[u8], perms: Perms) -> Result<(), Errno> {
    let node = get(view, name, Rights::WRITE | Rights::OWNER)?;
    let name = valid(view, name)?;
    if !view.is_privileged() && perms.owner() != node.perms.owner() {
        return Err(Errno::EPERM);
    }
    let mut node = Node::clone(&node);
    let old = core::mem::replace(&mut node.perms, perms);
    view.put(name, node)?;
    view.fire(name, false, Some(old));
    Ok(())
}
