//! What the daemon answers to each request.

use xen_abi::xs_wire::MsgType;

use super::{Model, Res, Tx, leaf, parent};

impl Model {
    pub(super) fn answer(
        &mut self,
        who: usize,
        kind: MsgType,
        tx: u32,
        payload: &[u8],
    ) -> Res<Vec<u8>> {
        let ok = || Ok(b"OK\0".to_vec());
        let id = self.peers[who].id;
        if matches!(kind.0, 15 | 16 | 20) {
            return Err("ENOSYS");
        }
        if id != 0 && matches!(kind.0, 0 | 8 | 9 | 17 | 18 | 19) {
            return Err("EACCES");
        }
        let watching = matches!(kind, MsgType::WATCH | MsgType::UNWATCH);
        let tx = if watching { 0 } else { tx };
        if tx != 0 && !self.peers[who].open.contains_key(&tx) {
            return Err("ENOENT");
        }
        let text = String::from_utf8(payload.to_vec()).expect("scripts are text");
        let strings: Vec<&str> = text
            .split_inclusive('\0')
            .filter_map(|s| s.strip_suffix('\0'))
            .collect();
        let whole = strings.iter().map(|s| s.len() + 1).sum::<usize>() == text.len();
        let one = if strings.len() == 1 && whole {
            Ok(strings[0])
        } else {
            Err("EINVAL")
        };
        match kind {
            MsgType::READ => {
                let path = self.full(who, one?);
                self.get(who, tx, &path, "r").map(|node| node.value)
            }
            MsgType::DIRECTORY => {
                let path = self.full(who, one?);
                let node = self.get(who, tx, &path, "r")?;
                Ok(node
                    .children
                    .iter()
                    .flat_map(|name| format!("{name}\0").into_bytes())
                    .collect())
            }
            MsgType::DIRECTORY_PART => {
                let [path, offset] = strings[..] else {
                    return Err("EINVAL");
                };
                let path = self.full(who, path);
                let node = self.get(who, tx, &path, "r")?;
                let list: String = node
                    .children
                    .iter()
                    .map(|name| format!("{name}\0"))
                    .collect();
                let offset: usize = offset.parse().expect("scripts send numbers");
                let rest = list.get(offset..).unwrap_or("");
                Ok(format!("0\0{rest}\0").into_bytes())
            }
            MsgType::GET_PERMS => {
                let path = self.full(who, one?);
                let node = self.get(who, tx, &path, "r")?;
                Ok(node
                    .perms
                    .iter()
                    .flat_map(|(c, id)| format!("{c}{id}\0").into_bytes())
                    .collect())
            }
            MsgType::WRITE => {
                let (path, value) = text.split_once('\0').ok_or("EINVAL")?;
                let path = self.full(who, path);
                match self.get(who, tx, &path, "w") {
                    Ok(mut node) => {
                        node.value = value.as_bytes().to_vec();
                        self.set(who, tx, &path, Some(node));
                    }
                    Err("ENOENT") => self.create(who, tx, &path, value.as_bytes()),
                    Err(error) => return Err(error),
                }
                self.tell(who, tx, &path, false, None);
                ok()
            }
            MsgType::MKDIR => {
                let path = self.full(who, one?);
                match self.get(who, tx, &path, "w") {
                    Ok(_) => {}
                    Err("ENOENT") => {
                        self.create(who, tx, &path, b"");
                        self.tell(who, tx, &path, false, None);
                    }
                    Err(error) => return Err(error),
                }
                ok()
            }
            MsgType::RM => {
                let path = self.full(who, one?);
                match self.get(who, tx, &path, "w") {
                    Ok(_) if path == "/" => return Err("EINVAL"),
                    Ok(_) => {}
                    Err("ENOENT") if self.see(who, tx, &parent(&path)).is_some() => return ok(),
                    Err(error) => return Err(error),
                }
                let mut above = self.see(who, tx, &parent(&path)).ok_or("EINVAL")?;
                self.remove(who, tx, &path, &path)?;
                let entry = above.children.iter().position(|name| *name == leaf(&path));
                above.children.remove(entry.ok_or("EIO")?);
                self.set(who, tx, &parent(&path), Some(above));
                ok()
            }
            MsgType::SET_PERMS => {
                let [path, list @ ..] = &strings[..] else {
                    return Err("EINVAL");
                };
                if list.is_empty() {
                    return Err("EINVAL");
                }
                if id != 0 && list.len() > 5 {
                    return Err("ENOSPC");
                }
                let mut perms = vec![];
                for perm in list {
                    let letter = perm
                        .chars()
                        .next()
                        .filter(|c| "nrwb".contains(*c))
                        .ok_or("EINVAL")?;
                    perms.push((letter, perm[1..].parse().map_err(|_| "EINVAL")?));
                }
                if self.peers.iter().all(|peer| peer.id != perms[0].1) {
                    return Err("ENOENT");
                }
                if path.starts_with('@') {
                    return Err("EACCES");
                }
                let path = self.full(who, path);
                let mut node = self.get(who, tx, &path, "wo")?;
                if id != 0 && perms[0].1 != node.perms[0].1 {
                    return Err("EPERM");
                }
                let old = std::mem::replace(&mut node.perms, perms);
                self.set(who, tx, &path, Some(node));
                self.tell(who, tx, &path, false, Some(old));
                ok()
            }
            MsgType::WATCH => {
                let [path, token] = strings[..] else {
                    return Err("EINVAL");
                };
                let full = self.full(who, path);
                if !full.starts_with('@') {
                    let odd = |c: char| !(c.is_ascii_alphanumeric() || "-/_@".contains(c));
                    let ends = full.len() > 1 && full.ends_with('/');
                    if ends || full.contains("//") || full.contains(odd) {
                        return Err("EINVAL");
                    }
                }
                let hidden = full.len() - path.len();
                let peer = &mut self.peers[who];
                if peer
                    .watches
                    .iter()
                    .any(|(known, other, _)| *known == full && other == token)
                {
                    return Err("EEXIST");
                }
                peer.watches.push((full, token.into(), hidden));
                peer.events.push((path.into(), token.into()));
                ok()
            }
            MsgType::UNWATCH => {
                let [path, token] = strings[..] else {
                    return Err("EINVAL");
                };
                let full = self.full(who, path);
                let watches = &mut self.peers[who].watches;
                let known = watches
                    .iter()
                    .position(|(known, other, _)| *known == full && other == token);
                watches.remove(known.ok_or("ENOENT")?);
                ok()
            }
            MsgType::RESET_WATCHES => {
                self.peers[who].watches.clear();
                self.peers[who].open.clear();
                ok()
            }
            MsgType::TRANSACTION_START => {
                let peer = &mut self.peers[who];
                if tx != 0 {
                    return Err("EBUSY");
                }
                if id != 0 && peer.open.len() > 10 {
                    return Err("ENOSPC");
                }
                peer.started += 1;
                peer.open.insert(peer.started, Tx::default());
                Ok(format!("{}\0", peer.started).into_bytes())
            }
            MsgType::TRANSACTION_END => {
                if !["T\0", "F\0"].contains(&text.as_str()) {
                    return Err("EINVAL");
                }
                let open = self.peers[who].open.remove(&tx).ok_or("ENOENT")?;
                if text == "T\0" {
                    self.commit(who, open)?;
                }
                ok()
            }
            other => panic!("not in scripts: {other:?}"),
        }
    }
}
