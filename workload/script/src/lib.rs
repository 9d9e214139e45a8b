//! Random operation scripts: the same one runs against the virtual store, a naive model of the
//! daemon's rules, and the real daemon, and must give the same answers.
//!
//! Two clients take part: the guest, and the host's tools (domain 0).  A script is made from a
//! number alone.  It names transactions by the order of their start, because ids differ, and
//! leaves node generations out of the comparison for the same reason.  Everything happens below
//! `<guest's directory>/t`, which [`prepare`] makes and the tools may remove afterwards.

#![no_std]

extern crate alloc;

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use xen_abi::DomId;
use xen_abi::xs_wire::MsgType;

/// Returns the directory of a domain, absolute.
fn domain_dir(domid: DomId) -> String {
    format!("/local/domain/{}", domid.0)
}

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// The guest.
    Guest,
    /// The host's tools.
    Tools,
}

/// Both.
pub const CLIENTS: [Client; 2] = [Client::Guest, Client::Tools];

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Who sends it.
    pub client: Client,
    /// Its type.
    pub kind: MsgType,
    /// Inside which of the client's transactions: 0 for the first that it started, and so on.
    pub transaction: Option<usize>,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// The answer to a request: a payload, or the error's name.
pub type Answer = Result<Vec<u8>, String>;

/// A watch event: path and token.
pub type Event = (Vec<u8>, Vec<u8>);

/// What runs a script.
pub trait Target {
    /// Sends a request in transaction `tx` (or 0) and waits for the answer.
    fn request(&mut self, client: Client, kind: MsgType, tx: u32, payload: &[u8]) -> Answer;
    /// Returns the events that `client` has got since the last call, in order.
    fn events(&mut self, client: Client) -> Vec<Event>;
}

/// What came of a step, comparable between targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What was asked.
    pub step: Step,
    /// The answer, without what differs between daemons.
    pub answer: Answer,
    /// The events that followed, per client.
    pub events: [Vec<Event>; 2],
}

/// A small generator of numbers (splitmix64), so that a script is the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }

    fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// The steps that set the stage; all succeed.
pub fn prepare(guest: DomId) -> Vec<Step> {
    let base = format!("{}/t", domain_dir(guest));
    let id = guest.0;
    let nodes = [
        ("", format!("n0\0r{id}\0")),
        ("/own", format!("n{id}\0")),
        ("/shared", format!("n0\0b{id}\0")),
        ("/hidden", String::from("n0\0")),
        ("/front", format!("n{id}\0r0\0")),
        ("/blind", format!("n0\0w{id}\0")),
    ];
    let mut steps = Vec::new();
    for (leaf, perms) in nodes {
        for (kind, rest) in [(MsgType::MKDIR, String::new()), (MsgType::SET_PERMS, perms)] {
            steps.push(Step {
                client: Client::Tools,
                kind,
                transaction: None,
                payload: format!("{base}{leaf}\0{rest}").into_bytes(),
            });
        }
    }
    steps
}

/// Makes a script of `length` random steps.
pub fn script(seed: u64, length: usize, guest: DomId) -> Vec<Step> {
    let mut random = Random(seed);
    let mut started = [0; 2];
    (0..length)
        .map(|_| {
            let client = *random.pick(&[Client::Guest, Client::Guest, Client::Tools]);
            let count = &mut started[client as usize];
            // Mostly one of the latest, which are likely to be open.
            let transaction = (*count > 0 && random.below(3) > 0)
                .then(|| *count - 1 - random.below(3).min(*count - 1));
            let (kind, payload) = request(&mut random, client, guest, transaction.is_some());
            if kind == MsgType::TRANSACTION_START && transaction.is_none() {
                *count += 1;
            }
            Step {
                client,
                kind,
                transaction,
                payload,
            }
        })
        .collect()
}

fn request(random: &mut Random, client: Client, guest: DomId, inside: bool) -> (MsgType, Vec<u8>) {
    let name = name(random, client, guest);
    let (kind, rest) = match random.below(if inside { 32 } else { 40 }) {
        0..5 => (MsgType::READ, String::new()),
        5..11 => (
            MsgType::WRITE,
            "v".repeat(random.below(5)) + *random.pick(&["", "\0x"]),
        ),
        11..13 => (MsgType::MKDIR, String::new()),
        13..17 => (MsgType::RM, String::new()),
        17..20 => (MsgType::DIRECTORY, String::new()),
        20 => (MsgType::DIRECTORY_PART, format!("{}\0", random.below(6))),
        21 => (MsgType::GET_PERMS, String::new()),
        22..24 => (MsgType::SET_PERMS, perms(random, guest)),
        24..29 if inside => {
            let end = *random.pick(&["T\0", "T\0", "T\0", "F\0", "", "x\0"]);
            return (MsgType::TRANSACTION_END, end.into());
        }
        24..28 | 29 => (MsgType::WATCH, format!("{}\0", random.below(3))),
        28 | 30 => (MsgType::UNWATCH, format!("{}\0", random.below(3))),
        31 if client == Client::Guest && random.below(4) == 0 => {
            // What a guest may not do, and what nobody may.
            let kind = *random.pick(&[0, 8, 9, 15, 16, 17, 18, 19, 20]);
            return (MsgType(kind), b"1\0".to_vec());
        }
        31 if random.below(12) == 0 => return (MsgType::RESET_WATCHES, b"\0".to_vec()),
        _ => return (MsgType::TRANSACTION_START, b"\0".to_vec()),
    };
    // Half of the watches are of a whole top directory, where most happens.
    let wide = matches!(kind, MsgType::WATCH | MsgType::UNWATCH) && random.below(2) == 0;
    let name = match name.rfind('/') {
        Some(end) if wide && name.contains("/own/") => String::from(&name[..end]),
        _ => name,
    };
    let mut payload = format!("{name}\0{rest}").into_bytes();
    if random.below(50) == 0 {
        // A payload of a wrong form: cut off, or with a string too many.
        match random.below(2) {
            0 => payload.truncate(name.len()),
            _ => payload.extend_from_slice(b"more\0"),
        }
    }
    (kind, payload)
}

/// A name from so small a set that clients meet: mostly valid, mostly below `t`.
fn name(random: &mut Random, client: Client, guest: DomId) -> String {
    let dir = match client {
        // The tools' relative names lie in domain 0's directory, which is not ours to change.
        Client::Tools => domain_dir(guest) + "/",
        Client::Guest if random.below(2) == 0 => String::new(),
        Client::Guest => domain_dir(guest) + "/",
    };
    if random.below(40) == 0 {
        let odd = [
            "",
            "/",
            "t/",
            "t//own",
            "t/own/.",
            "@releaseDomain",
            "t",
            "/t",
            "none/x",
        ];
        // Nothing outside `t` may be changed by the tools, so only names that are never valid.
        return match client {
            Client::Guest => dir + *random.pick(&odd),
            Client::Tools => dir + *random.pick(&odd[2..5]),
        };
    }
    let top = *random.pick(&["own", "own", "own", "shared", "hidden", "front", "blind"]);
    let mut name = format!("{dir}t/{top}");
    // Never the prepared nodes themselves: without them a script has little to do.
    for _ in 0..=random.below(3) {
        name.push('/');
        name.push(*random.pick(&['a', 'b', 'c']));
    }
    name
}

fn perms(random: &mut Random, guest: DomId) -> String {
    let id = guest.0;
    match random.below(12) {
        0 => String::from("n0\0"),
        1 => String::from("x0\0"),
        2 => format!("n{id}\0").repeat(6),
        3 => String::new(),
        4 => format!("b{id}\0r7\0"),
        5 => format!("n0\0r{id}\0"),
        6 => format!("n0\0b{id}\0"),
        7 => String::from("w0\0"),
        _ => format!("{}{id}\0r0\0", random.pick(&["n", "r", "w", "b"])),
    }
}

/// Runs a script.
pub fn run(script: &[Step], target: &mut dyn Target) -> Vec<Outcome> {
    /// What stands for a transaction that could not be started.
    const NONE: u32 = 0x7fff_ffff;
    let mut ids = [Vec::new(), Vec::new()];
    let mut outcomes = Vec::new();
    for step in script {
        let mine: &mut Vec<u32> = &mut ids[step.client as usize];
        let tx = match step.transaction {
            Some(slot) => mine.get(slot).copied().unwrap_or(NONE),
            None => 0,
        };
        let mut answer = target.request(step.client, step.kind, tx, &step.payload);
        if step.kind == MsgType::TRANSACTION_START && step.transaction.is_none() {
            let id = answer.as_deref().ok().and_then(parse_id);
            mine.push(id.unwrap_or(NONE));
            answer = answer.map(|_| (mine.len() - 1).to_string().into_bytes());
        }
        if step.kind == MsgType::DIRECTORY_PART {
            answer = answer.map(without_generation);
        }
        outcomes.push(Outcome {
            step: step.clone(),
            answer,
            events: CLIENTS.map(|client| once_each(target.events(client))),
        });
    }
    outcomes
}

/// Whether an event that waits already is sent again depends on who reads when.
fn once_each(events: Vec<Event>) -> Vec<Event> {
    let mut seen = Vec::new();
    for event in events {
        if !seen.contains(&event) {
            seen.push(event);
        }
    }
    seen
}

fn parse_id(answer: &[u8]) -> Option<u32> {
    core::str::from_utf8(answer.strip_suffix(&[0])?)
        .ok()?
        .parse()
        .ok()
}

fn without_generation(answer: Vec<u8>) -> Vec<u8> {
    let mut rest = VecDeque::from(answer);
    while rest.pop_front().is_some_and(|byte| byte != 0) {}
    Vec::from(rest)
}
