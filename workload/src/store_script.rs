//! `store-script seed= rounds= steps=`: plays random requests to xenstore and reports every answer.
//!
//! The same numbers make the same requests everywhere, so that the reports of a guest whose store is
//! the real daemon's and of one under the shim must be the same, line by line.  Between us and
//! either of them is the same kernel, which answers for some mistakes itself.
//!
//! The requests are those that the shim's own tests play against a model, as far as a guest can make
//! them, moved below the one directory where a guest may make nodes, `data`.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use unmoved_store_script::{Answer, Client, Event, Outcome, Step, Target, run, script};
use xen_abi::DomId;
use xen_abi::xs_wire::{Header, MsgType, PAYLOAD_MAX};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::orders::{Order, OrderError};
use crate::report::Reporter;
use crate::xenbus::DOORS;

/// Where everything happens, relative to the guest's directory.
const BASE: &str = "data/t";
/// What the scripts call it.
const SCRIPT_BASE: &str = "t";
/// The directories of a script, with whom they are open to besides their owner, the guest.
const TOPS: [(&str, &str); 5] = [
    ("own", ""),
    ("shared", "b0\0"),
    ("hidden", ""),
    ("front", "r0\0"),
    ("blind", "w0\0"),
];
/// The watch whose first event comes after those of all that was done before.
const LAST: &str = "last";

/// Plays the script and reports each round's outcomes.
///
/// # Errors
/// If there is no store, or it does not speak the protocol.
pub fn play(order: &Order, reporter: &Reporter) -> Result<Value, OrderError> {
    order.allow(&["seed", "rounds", "steps"])?;
    let seed = order.number("seed", 1, 0..=u64::MAX)?;
    let rounds = order.number("rounds", 5, 1..=1000)?;
    let steps = order.number("steps", 200, 1..=2000)?;
    let mut all = Sha256::new();
    for round in 0..rounds {
        let text = play_round(seed.wrapping_add(round), steps as usize)
            .map_err(|why| OrderError(format!("store-script, round {round}: {why}")))?;
        all.update(text.as_bytes());
        for lines in text.lines().collect::<Vec<_>>().chunks(20) {
            reporter.event("store-answers", json!({ "round": round, "lines": lines }));
        }
    }
    let hash = all.finalize();
    let hash = hash.iter().fold(String::new(), |mut hash, byte| {
        let _ = write!(hash, "{byte:02x}");
        hash
    });
    Ok(json!({ "rounds": rounds, "steps": steps, "sha256": hash }))
}

fn play_round(seed: u64, length: usize) -> Result<String, String> {
    let mut guest = Connection::open()?;
    let domid = guest.read("domid")?;
    let id: u16 = domid.parse().map_err(|_| format!("domid {domid:?}"))?;
    guest.prepare(id)?;
    let steps: Vec<Step> = script(seed, length, DomId(id))
        .into_iter()
        // The kernel's own watches would go, too.
        .filter(|step| step.client == Client::Guest && step.kind != MsgType::RESET_WATCHES)
        .filter(|step| !is_answered_by_chance(step))
        .map(|step| moved(step, id))
        .collect();
    let outcomes = run(&steps, &mut guest);
    let mut text = String::new();
    for outcome in &outcomes {
        describe(&mut text, outcome);
    }
    for (path, token) in guest.last_events()? {
        let _ = writeln!(
            text,
            "event {} {}",
            path.escape_ascii(),
            token.escape_ascii()
        );
    }
    if let Some(why) = guest.broken {
        return Err(why);
    }
    Ok(text)
}

fn describe(text: &mut String, outcome: &Outcome) {
    let Step {
        kind,
        transaction,
        payload,
        ..
    } = &outcome.step;
    let answer = match &outcome.answer {
        Ok(answer) => format!("= {}", answer.escape_ascii()),
        Err(name) => format!("! {name}"),
    };
    let inside = transaction.map_or(String::new(), |number| format!(" in {number}"));
    let _ = writeln!(text, "{kind:?}{inside} {} {answer}", payload.escape_ascii());
}

/// Whether the real daemon's answer says nothing: where it expects one string and gets something
/// else, the C daemon of Xen 4.17 answers with the error of some request before, or, if there was
/// none, not at all.
fn is_answered_by_chance(step: &Step) -> bool {
    let takes_one = matches!(
        step.kind,
        MsgType::READ | MsgType::DIRECTORY | MsgType::GET_PERMS | MsgType::MKDIR | MsgType::RM
    );
    let end = step.payload.iter().position(|byte| *byte == 0);
    takes_one && end.is_none_or(|end| end + 1 != step.payload.len())
}

/// The same step at another place: scripts name nodes by relative and by absolute paths.
fn moved(mut step: Step, id: u16) -> Step {
    let absolute = format!("/local/domain/{id}/");
    for start in ["", &absolute] {
        let from = format!("{start}{SCRIPT_BASE}/");
        if step.payload.starts_with(from.as_bytes()) {
            let to = format!("{start}{BASE}/");
            step.payload.splice(..from.len(), to.bytes());
            break;
        }
    }
    step
}

/// The kernel's door to the store.
struct Connection {
    file: File,
    next: u32,
    events: Vec<Event>,
    /// Why nothing more can be asked.
    broken: Option<String>,
}

impl Connection {
    fn open() -> Result<Self, String> {
        let door = DOORS.into_iter().find(|door| Path::new(door).exists());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(door.ok_or("no xenstore here")?)
            .map_err(|error| error.to_string())?;
        Ok(Self {
            file,
            next: 1,
            events: Vec::new(),
            broken: None,
        })
    }

    fn read(&mut self, path: &str) -> Result<String, String> {
        let payload = format!("{path}\0");
        let answer = self.request(Client::Guest, MsgType::READ, 0, payload.as_bytes())?;
        String::from_utf8(answer).map_err(|error| error.to_string())
    }

    /// Makes the directories of a script anew.
    fn prepare(&mut self, id: u16) -> Result<(), String> {
        let mut must = |kind, payload: String| {
            self.request(Client::Guest, kind, 0, payload.as_bytes())
                .map(drop)
        };
        match must(MsgType::RM, format!("{BASE}\0")) {
            Err(name) if name != "ENOENT" => return Err(name),
            _ => {}
        }
        for (top, others) in TOPS {
            must(MsgType::MKDIR, format!("{BASE}/{top}\0"))?;
            must(MsgType::SET_PERMS, format!("{BASE}/{top}\0n{id}\0{others}"))?;
        }
        Ok(())
    }

    /// Reads one message: an answer, or `None` for an event, which is kept.
    fn receive(&mut self) -> std::io::Result<Option<Answer>> {
        let mut header = [0; 16];
        self.file.read_exact(&mut header)?;
        let header = Header::read_from_bytes(&header).expect("16 bytes");
        let length = header.len as usize;
        if length > PAYLOAD_MAX {
            return Err(std::io::Error::other("an answer that is too long"));
        }
        let mut payload = vec![0; length];
        self.file.read_exact(&mut payload)?;
        Ok(match MsgType(header.kind) {
            MsgType::WATCH_EVENT => {
                let mut strings = payload.split(|byte| *byte == 0).map(<[u8]>::to_vec);
                let mut string = || strings.next().unwrap_or_default();
                let event = (string(), string());
                // Whether one that waits already is sent again depends on who reads when.
                if !self.events.contains(&event) {
                    self.events.push(event);
                }
                None
            }
            MsgType::ERROR => {
                let name = payload.strip_suffix(&[0]).unwrap_or(&payload);
                Some(Err(String::from_utf8_lossy(name).into_owned()))
            }
            _ => Some(Ok(payload)),
        })
    }

    /// All events up to now.
    fn last_events(&mut self) -> Result<Vec<Event>, String> {
        let watch = format!("{BASE}/own\0{LAST}\0");
        self.request(Client::Guest, MsgType::WATCH, 0, watch.as_bytes())?;
        let is_last = |event: &Event| event.1 == LAST.as_bytes();
        while !self.events.iter().any(is_last) {
            self.receive().map_err(|error| error.to_string())?;
        }
        Ok(core::mem::take(&mut self.events))
    }
}

impl Target for Connection {
    fn request(&mut self, _: Client, kind: MsgType, tx: u32, payload: &[u8]) -> Answer {
        let header = Header {
            kind: kind.0,
            req_id: self.next,
            tx_id: tx,
            len: payload.len() as u32,
        };
        self.next += 1;
        let message = [header.as_bytes(), payload].concat();
        if let Err(error) = self.file.write_all(&message) {
            return Err(format!("the kernel: {:?}", error.raw_os_error()));
        }
        loop {
            match self.receive() {
                Ok(Some(answer)) => return answer,
                Ok(None) => {}
                Err(error) => {
                    let why = error.to_string();
                    self.broken = Some(why.clone());
                    return Err(why);
                }
            }
        }
    }

    fn events(&mut self, _: Client) -> Vec<Event> {
        // They come in their own time; `last_events` has them all.
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use unmoved_store_script::{Client, script};
    use xen_abi::DomId;

    use super::moved;

    #[test]
    fn scripts_stay_below_their_directory() {
        let changes_something = |kind: u32| [11, 12, 13, 14].contains(&kind);
        for step in (0..20).flat_map(|seed| script(seed, 200, DomId(7))) {
            if step.client == Client::Guest && changes_something(step.kind.0) {
                let path = moved(step, 7).payload;
                let path = String::from_utf8_lossy(&path);
                let inside = ["data/t/", "/local/domain/7/data/t/"]
                    .iter()
                    .any(|base| path.starts_with(base));
                // What is not inside is a name that no daemon accepts, or one of the guest's own
                // directory, where it may not write.
                assert!(inside || !path.contains("data"), "{path}");
            }
        }
    }
}
