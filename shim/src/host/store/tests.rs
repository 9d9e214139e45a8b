//! The connection against a daemon that is our own virtual store, and against hostile ones.

use proptest::prelude::{any, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy as _};
use xen_abi::xs_wire::{MsgType, ring};
use xen_abi::{DomId, Errno, Mfn};

use super::{HostStore as _, StoreConnection, TreeReader};
use crate::host::{StoreClient as _, StoreEvent, StoreOp, Tag};
use crate::mem::Frames as _;
use crate::points::GuestStore as _;
use crate::points::xenstore::perms::Perms;
use crate::points::xenstore::{Limits, VirtualStore};
use crate::testing::FakeFrames;

const PAGE: Mfn = Mfn(0);
const ME: DomId = DomId(7);

/// A host: its daemon and our connection, joined by one page.
struct Host {
    frames: FakeFrames,
    daemon: VirtualStore,
    client: StoreConnection,
}

impl Host {
    fn new() -> Self {
        let frames = FakeFrames::new(1);
        let mut daemon = VirtualStore::new(ME, Limits::default());
        daemon.put("/local/domain/7", b"", &Perms::new(DomId(0), Some(ME)));
        daemon.put("/local/domain/7/data", b"", &Perms::new(ME, None));
        daemon.put(
            "/local/domain/7/control/shutdown",
            b"",
            &Perms::new(ME, None),
        );
        daemon.connect(&frames, PAGE);
        Self {
            frames,
            daemon,
            client: StoreConnection::new(PAGE),
        }
    }

    /// Lets both sides run until neither has anything to do.
    fn settle(&mut self) -> Vec<(u64, StoreEvent)> {
        let mut got = Vec::new();
        loop {
            let mut busy = self.client.flush(&self.frames);
            busy |= self.daemon.service(&self.frames).notify;
            while let Some((Tag(tag), event)) = self.client.poll(&self.frames) {
                got.push((tag, event));
                busy = true;
            }
            if !busy {
                return got;
            }
        }
    }

    fn submit(&mut self, tag: u64, op: StoreOp) {
        self.client.submit(Tag(tag), op);
    }
}

fn ok(tag: u64, value: &[u8]) -> (u64, StoreEvent) {
    (tag, StoreEvent::Reply(Ok(value.to_vec())))
}

fn err(tag: u64, error: Errno) -> (u64, StoreEvent) {
    (tag, StoreEvent::Reply(Err(error)))
}

fn changed(tag: u64, path: &str) -> (u64, StoreEvent) {
    (tag, StoreEvent::Changed(path.into()))
}

#[test]
fn requests_are_answered_in_order_under_their_tags() {
    let mut host = Host::new();
    host.submit(1, StoreOp::Write("data/a".into(), b"x\0y".to_vec()));
    host.submit(2, StoreOp::Read("data/a".into()));
    host.submit(3, StoreOp::Read("data/b\0c".into()));
    host.submit(4, StoreOp::Write("data/b".into(), vec![0; 5000]));
    host.submit(5, StoreOp::Read("/nothing".into()));
    host.submit(6, StoreOp::Directory("data".into()));
    host.submit(7, StoreOp::Remove("data/a".into()));
    host.submit(8, StoreOp::Directory("data".into()));
    assert_eq!(
        host.settle(),
        [
            ok(1, b""),
            ok(2, b"x\0y"),
            err(3, Errno::EINVAL),
            err(4, Errno::E2BIG),
            err(5, Errno::EACCES),
            ok(6, b"a\0"),
            ok(7, b""),
            ok(8, b""),
        ]
    );
    assert_eq!(host.client.pending(), 0);
}

#[test]
fn more_than_the_daemon_takes_at_once_waits() {
    let mut host = Host::new();
    for tag in 0..200 {
        host.submit(
            tag,
            StoreOp::Write(format!("data/{}", tag % 7), vec![b'v'; 900]),
        );
    }
    let expected: Vec<_> = (0..200).map(|tag| ok(tag, b"")).collect();
    assert_eq!(host.settle(), expected);
}

#[test]
fn watches_fire_under_their_tags_until_ended() {
    let mut host = Host::new();
    host.submit(1, StoreOp::Watch("data".into()));
    host.submit(2, StoreOp::Watch("data".into()));
    host.submit(3, StoreOp::Watch("bad name".into()));
    let registered = [
        ok(1, b""),
        changed(1, "data"),
        ok(2, b""),
        changed(2, "data"),
        err(3, Errno::EINVAL),
    ];
    assert_eq!(host.settle(), registered);
    host.daemon.write_as_host("/local/domain/7/data/k", b"v");
    assert_eq!(host.settle(), [changed(1, "data/k"), changed(2, "data/k")]);
    host.submit(1, StoreOp::Unwatch("data".into()));
    host.submit(9, StoreOp::Unwatch("data".into()));
    assert_eq!(host.settle(), [ok(1, b""), err(9, Errno::ENOENT)]);
    host.daemon.write_as_host("/local/domain/7/data/k", b"w");
    assert_eq!(host.settle(), [changed(2, "data/k")]);
}

#[test]
fn a_replacement_keeps_its_place_in_the_order() {
    let mut host = Host::new();
    let node = "/local/domain/7/control/shutdown";
    host.daemon.write_as_host(node, b"suspend");
    host.submit(1, StoreOp::Read("control/shutdown".into()));
    let path = || String::from("control/shutdown");
    host.client
        .replace_if(Tag(2), path(), b"suspend".to_vec(), Vec::new());
    host.client
        .replace_if(Tag(3), path(), b"suspend".to_vec(), Vec::new());
    host.submit(4, StoreOp::Read("control/shutdown".into()));
    assert_eq!(
        host.settle(),
        [ok(1, b"suspend"), ok(2, b"T"), ok(3, b"F"), ok(4, b"")]
    );
}

#[test]
fn a_replacement_that_races_looks_again() {
    let mut host = Host::new();
    let node = "/local/domain/7/control/shutdown";
    host.daemon.write_as_host(node, b"suspend");
    let path = String::from("control/shutdown");
    host.client
        .replace_if(Tag(2), path, b"suspend".to_vec(), Vec::new());
    // After the value was read, the toolstack withdraws it and asks for something else.
    for _ in 0..2 {
        host.client.flush(&host.frames);
        host.daemon.service(&host.frames);
        assert_eq!(host.client.poll(&host.frames), None);
    }
    host.daemon.write_as_host(node, b"poweroff");
    assert_eq!(host.settle(), [ok(2, b"F")]);
    assert_eq!(host.daemon.read(node).as_deref(), Some(&b"poweroff"[..]));
}

#[test]
fn a_call_waits_and_keeps_what_others_get() {
    let mut host = Host::new();
    host.submit(1, StoreOp::Watch("data".into()));
    let Host {
        frames,
        daemon,
        client,
    } = &mut host;
    let value = client.call(frames, StoreOp::Directory("data".into()), |notify| {
        assert!(notify);
        daemon.service(frames);
        true
    });
    assert_eq!(value, Ok(Vec::new()));
    let given_up = client.call(frames, StoreOp::Read("data".into()), |_| false);
    assert_eq!(given_up, Err(Errno::ETIMEDOUT));
    let next = client.call(frames, StoreOp::Read("data/none".into()), |_| {
        daemon.service(frames);
        true
    });
    assert_eq!(next, Err(Errno::ENOENT));
    assert_eq!(host.settle(), [ok(1, b""), changed(1, "data")]);
}

#[test]
fn after_a_reset_nothing_of_before_comes_back() {
    let mut host = Host::new();
    host.submit(1, StoreOp::Watch("data".into()));
    host.settle();
    host.submit(2, StoreOp::Read("data".into()));
    host.client.flush(&host.frames);
    // The domain wakes up on another host: an empty page, a daemon that knows nothing.
    host.frames.clear(PAGE);
    let Host {
        frames,
        daemon,
        client,
    } = &mut host;
    daemon.connect(frames, PAGE);
    client.reset();
    host.daemon.write_as_host("/local/domain/7/data", b"new");
    assert_eq!(host.settle(), []);
    host.submit(3, StoreOp::Read("data".into()));
    assert_eq!(host.settle(), [ok(3, b"new")]);
}

#[test]
fn a_subtree_is_read_whole() {
    let mut host = Host::new();
    for (path, value) in [("data/a", "1"), ("data/a/b", "2"), ("data/c/d/e", "3")] {
        host.daemon
            .write_as_host(&format!("/local/domain/7/{path}"), value.as_bytes());
    }
    let mut reader = TreeReader::new(&mut host.client, Tag(5), &["data", "missing", "control"]);
    while !reader.is_done() {
        for (tag, event) in host.settle() {
            assert_eq!(tag, 5);
            reader.event(&mut host.client, event);
        }
    }
    let mut nodes = reader.into_nodes();
    nodes.sort();
    let paths: Vec<_> = nodes.iter().map(|(path, _)| path.as_str()).collect();
    let expected = [
        "control",
        "control/shutdown",
        "data",
        "data/a",
        "data/a/b",
        "data/c",
        "data/c/d",
        "data/c/d/e",
    ];
    assert_eq!(paths, expected);
    assert_eq!(nodes[4].1, b"2");
}

#[test]
fn answers_are_given_out_in_order_even_if_they_come_in_another() {
    let mut host = Host::new();
    for tag in 1..=3 {
        host.submit(tag, StoreOp::Read("a".into()));
    }
    host.client.flush(&host.frames);
    let mut bytes = Vec::new();
    for id in [3u32, 9, 2, 2, 1] {
        let kind = if id == 2 {
            MsgType::WRITE
        } else {
            MsgType::READ
        };
        super::message::encode(&mut bytes, kind, id, 0, &[&[b'0' + id as u8]]).expect("short");
    }
    host.frames.write(PAGE, ring::RSP, &bytes);
    host.frames
        .store32(PAGE, ring::RSP_PROD, bytes.len() as u32);
    let got: Vec<_> = std::iter::from_fn(|| host.client.poll(&host.frames)).collect();
    let got: Vec<_> = got
        .into_iter()
        .map(|(Tag(tag), event)| (tag, event))
        .collect();
    assert_eq!(got, [ok(1, b"1"), err(2, Errno::EIO), ok(3, b"3")]);
}

proptest! {
    /// Whatever a daemon writes into the page, each request gets at most one answer, and exactly
    /// one once the connection was given up.
    #[test]
    fn a_hostile_daemon_harms_nobody(
        steps in proptest::collection::vec(
            (
                prop_oneof![0u32..2000, any::<u32>()],
                proptest::collection::vec(prop_oneof![0u8..24, any::<u8>()], 0..200),
                prop_oneof![Just(None), (0usize..8).prop_map(Some)],
            ),
            1..30,
        )
    ) {
        let frames = FakeFrames::new(1);
        let mut client = StoreConnection::new(PAGE);
        let (mut asked, mut answered) = (0u64, Vec::new());
        for (index, bytes, wild) in steps {
            for op in [StoreOp::Read("a".into()), StoreOp::Watch("b".into())] {
                client.submit(Tag(asked), op);
                asked += 1;
            }
            client.flush(&frames);
            frames.store32(PAGE, ring::REQ_CONS, frames.load32(PAGE, ring::REQ_PROD));
            let prod = frames.load32(PAGE, ring::RSP_PROD);
            for (at, byte) in bytes.iter().enumerate() {
                frames.store8(PAGE, ring::RSP + (prod as usize + at) % 1024, *byte);
            }
            frames.store32(PAGE, ring::RSP_PROD, prod.wrapping_add(bytes.len() as u32));
            if let Some(field) = wild {
                frames.store32(PAGE, ring::REQ_CONS + 4 * field, index);
            }
            for _ in 0..100 {
                match client.poll(&frames) {
                    Some((tag, StoreEvent::Reply(_))) => answered.push(tag),
                    Some(_) => {}
                    None => break,
                }
            }
        }
        let count = answered.len();
        answered.sort();
        answered.dedup();
        assert_eq!(answered.len(), count, "answered twice");
        assert_eq!(count + client.pending(), asked as usize);
        assert!(!client.is_broken() || client.pending() == 0);
    }
}
