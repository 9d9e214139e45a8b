//! The fingerprint's view of xenstore: everything that the guest may read, values and permissions.

use std::io::{Read, Write};

use super::{Fingerprint, volatile};
use crate::xenbus::{Refusal, Store};

/// Bounds for a walk, should the store be endless.
const DEEPEST: usize = 24;
const MOST_NODES: usize = 20_000;

/// Adds the store as seen from inside: the guest's own tree by relative paths, the same by its
/// absolute path (only where it differs), the backends' sides of its devices, its `/vm` entry, and
/// what the directories above let it see.
pub fn collect<C: Read + Write>(store: &mut Store<C>, print: &mut Fingerprint) {
    let mut own = Tree::default();
    walk(store, "", "", 0, &mut own);
    for (path, text) in &own {
        print.set(&format!("xenstore/{path}"), text);
    }

    // Ends of links in the own tree: what the device's other side tells.
    let mut outside: Vec<String> = own
        .iter()
        .filter(|(path, _)| path.ends_with("/backend") || path.as_str() == "vm")
        .map(|(_, text)| value_of(text).to_owned())
        .collect();
    outside.dedup();
    for path in outside.iter().filter(|path| path.starts_with('/')) {
        let mut tree = Tree::default();
        walk(store, path, path, 0, &mut tree);
        for (path, text) in tree {
            print.set(&format!("xenstore-outside{path}"), text);
        }
    }

    let domid = own.get("domid").map(|text| value_of(text).to_owned());
    if let Some(path) = domid.and_then(|domid| store.domain_path(&domid).ok()) {
        print.set("xenstore-absolute", &path);
        let mut tree = Tree::default();
        walk(store, &path, "", 0, &mut tree);
        for (name, text) in &tree {
            if own.get(name) != Some(text) && !volatile::in_store(name) {
                print.set(&format!("xenstore-absolute/{name}"), text);
            }
        }
    }

    for path in ["/", "/local", "/local/domain", "/vm", "/tool", "/libxl"] {
        let list = match store.directory(path) {
            Ok(children) => children.join(" "),
            Err(refusal) => format!("({refusal})"),
        };
        print.set(&format!("xenstore-list{path}"), list);
    }
}

type Tree = std::collections::BTreeMap<String, String>;

/// The value in an entry's `value [permissions]`.
fn value_of(text: &str) -> &str {
    text.rsplit_once(" [").map_or(text, |(value, _)| value)
}

/// Adds `path` (as the store is asked) and all below it to `tree` under `name`.
fn walk<C: Read + Write>(
    store: &mut Store<C>,
    path: &str,
    name: &str,
    depth: usize,
    tree: &mut Tree,
) {
    if depth > DEEPEST || tree.len() >= MOST_NODES || volatile::in_store(name) {
        return;
    }
    // The own root has no relative name; its children have.
    if !name.is_empty() {
        let value = match store.read(path) {
            Ok(value) => String::from_utf8_lossy(&value).into_owned(),
            Err(refusal) => format!("({refusal})"),
        };
        let permissions = match store.permissions(path) {
            Ok(list) => list.join(","),
            Err(refusal) => format!("({refusal})"),
        };
        tree.insert(name.to_owned(), format!("{value} [{permissions}]"));
    }
    let listed = if path.is_empty() {
        own_root(store)
    } else {
        store.directory(path)
    };
    let Ok(children) = listed else { return };
    for child in children {
        let join = |base: &str| match base {
            "" => child.clone(),
            base => format!("{}/{child}", base.trim_end_matches('/')),
        };
        walk(store, &join(path), &join(name), depth + 1, tree);
    }
}

/// The children of the guest's own directory, which a relative path can not name: through its
/// absolute path.
fn own_root<C: Read + Write>(store: &mut Store<C>) -> Result<Vec<String>, Refusal> {
    let domid = store.read("domid")?;
    let path = store.domain_path(&String::from_utf8_lossy(&domid))?;
    store.directory(&path)
}

#[cfg(test)]
mod tests {
    use super::collect;
    use crate::fingerprint::Fingerprint;
    use crate::xenbus::tests::Fake;
    use std::collections::BTreeMap;

    /// A store with a few nodes; relative paths belong to domain `domid`.
    fn fingerprint(domid: u32) -> Fingerprint {
        let home = format!("/local/domain/{domid}");
        let back = format!("/local/domain/0/backend/vbd/{domid}/51712");
        let nodes: BTreeMap<String, String> = [
            (format!("{home}/domid"), domid.to_string()),
            (format!("{home}/device/vbd/51712/backend"), back.clone()),
            (format!("{home}/data/unmoved/moves"), "3".into()),
            (format!("{back}/sectors"), "8192".into()),
        ]
        .into();
        let mut store = Fake::store(move |kind, payload| {
            let text = String::from_utf8_lossy(payload);
            let path = text.trim_end_matches('\0');
            let path = if kind != 10 && !path.starts_with('/') {
                format!("{home}/{path}")
            } else {
                path.to_owned()
            };
            let below = |node: &String| -> Option<String> {
                let rest = node.strip_prefix(&path)?.strip_prefix('/')?;
                rest.split('/').next().map(str::to_owned)
            };
            let mut children: Vec<String> = nodes.keys().filter_map(below).collect();
            children.dedup();
            match (kind, nodes.get(&path)) {
                (10, _) => (10, format!("/local/domain/{path}\0").into_bytes()),
                (2, Some(value)) => (2, value.clone().into_bytes()),
                (2, None) if !children.is_empty() => (2, Vec::new()),
                (3, _) => (3, format!("n{domid}\0").into_bytes()),
                (1, Some(_)) => (1, Vec::new()),
                (1, None) if !children.is_empty() => (1, (children.join("\0") + "\0").into()),
                _ => (16, b"ENOENT\0".to_vec()),
            }
        });
        let mut print = Fingerprint::default();
        collect(&mut store, &mut print);
        print
    }

    #[test]
    fn the_tree_is_seen_with_values_permissions_and_other_ends() {
        let print = fingerprint(5);
        assert_eq!(print.get("xenstore/domid"), Some("5 [n5]"));
        assert_eq!(
            print.get("xenstore-outside/local/domain/0/backend/vbd/5/51712/sectors"),
            Some("8192 [n5]")
        );
        assert_eq!(print.get("xenstore-absolute"), Some("/local/domain/5"));
        assert!(
            print.entries().all(|(key, _)| !key.contains("unmoved")),
            "{print:?}"
        );
        assert!(
            print
                .entries()
                .all(|(key, _)| !key.starts_with("xenstore-absolute/"))
        );
    }

    #[test]
    fn another_domain_id_shows() {
        let found = crate::fingerprint::diff(&fingerprint(5), &fingerprint(93));
        assert!(found.iter().any(|one| one.key == "xenstore/domid"));
    }
}
