//! The virtual store and the model run the same random scripts.

use proptest::prelude::{ProptestConfig, any, proptest};
use unmoved_store_script::{Answer, Client, Event, Outcome, Step, Target, prepare, run, script};
use xen_abi::DomId;
use xen_abi::xs_wire::{Header, MsgType};
use zerocopy::FromBytes as _;

use super::Limits;
use super::daemon::{ConnId, Daemon};
use super::model::Model;

const GUEST: DomId = DomId(5);

/// The virtual store with a connection of the guest's and one of the tools'.
struct Ours {
    daemon: Daemon,
    connections: [ConnId; 2],
    events: [Vec<Event>; 2],
}

impl Ours {
    fn new() -> Self {
        let mut daemon = Daemon::new(GUEST, Limits::default());
        let connections = [daemon.connect(GUEST), daemon.connect(DomId(0))];
        Self {
            daemon,
            connections,
            events: Default::default(),
        }
    }

    /// Takes what waits for a client: events are kept, an answer is returned.
    fn drain(&mut self, client: Client) -> Option<Answer> {
        let queue = &mut self
            .daemon
            .connection_mut(self.connections[client as usize])
            .queue;
        let mut answer = None;
        while !queue.is_empty() {
            let message = queue.front();
            let (header, payload) = Header::read_from_prefix(message).expect("whole");
            match MsgType(header.kind) {
                MsgType::WATCH_EVENT => {
                    let mut strings = payload.split(|byte| *byte == 0);
                    let mut string = || strings.next().expect("two strings").to_vec();
                    self.events[client as usize].push((string(), string()));
                }
                MsgType::ERROR => {
                    let name = payload.strip_suffix(&[0]).expect("ends in NUL");
                    answer = Some(Err(String::from_utf8_lossy(name).into()));
                }
                _ => answer = Some(Ok(payload.to_vec())),
            }
            queue.consume(message.len());
        }
        answer
    }
}

impl Target for Ours {
    fn request(&mut self, client: Client, kind: MsgType, tx: u32, payload: &[u8]) -> Answer {
        let header = Header {
            kind: kind.0,
            req_id: 1,
            tx_id: tx,
            len: 0,
        };
        self.daemon
            .handle(self.connections[client as usize], &header, payload);
        self.drain(client).expect("every request is answered")
    }

    fn events(&mut self, client: Client) -> Vec<Event> {
        self.drain(client);
        std::mem::take(&mut self.events[client as usize])
    }
}

fn whole_script(seed: u64, length: usize) -> Vec<Step> {
    let mut steps = prepare(GUEST);
    steps.extend(script(seed, length, GUEST));
    steps
}

fn check(steps: &[Step]) -> Vec<Outcome> {
    let ours = run(steps, &mut Ours::new());
    let model = run(steps, &mut Model::new(GUEST));
    for (index, (ours, model)) in ours.iter().zip(&model).enumerate() {
        assert_eq!(ours, model, "step {index}");
    }
    ours
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_store_follows_the_model(seed in any::<u64>()) {
        check(&whole_script(seed, 150));
    }
}

/// A comparison is worth as much as what its scripts reach.
#[test]
fn scripts_reach_every_answer() {
    let outcomes: Vec<_> = (0..60)
        .flat_map(|seed| check(&whole_script(seed, 300)))
        .collect();
    let count = |kind: MsgType, error: Option<&str>| {
        let matches = |outcome: &&Outcome| {
            outcome.step.kind == kind && outcome.answer.as_ref().err().map(String::as_str) == error
        };
        outcomes.iter().filter(matches).count()
    };
    for (kind, error) in [
        (MsgType::TRANSACTION_END, None),
        (MsgType::TRANSACTION_END, Some("EAGAIN")),
        (MsgType::TRANSACTION_END, Some("ENOENT")),
        (MsgType::TRANSACTION_END, Some("EINVAL")),
        (MsgType::TRANSACTION_START, Some("ENOSPC")),
        (MsgType::WRITE, Some("EACCES")),
        (MsgType::RM, Some("ENOENT")),
        (MsgType::SET_PERMS, None),
        (MsgType::SET_PERMS, Some("EPERM")),
        (MsgType::SET_PERMS, Some("EACCES")),
        (MsgType::WATCH, Some("EEXIST")),
        (MsgType::UNWATCH, None),
    ] {
        assert!(
            count(kind, error) >= 5,
            "{kind:?} {error:?}: {}",
            count(kind, error)
        );
    }
    let told = outcomes.iter().filter(|outcome| {
        outcome.step.kind == MsgType::TRANSACTION_END && !outcome.events[0].is_empty()
    });
    let told = told.count();
    assert!(told >= 20, "{told} commits that tell the guest");
}
