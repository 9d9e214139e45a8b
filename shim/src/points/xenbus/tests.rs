//! A link to the host's store, served by hand.

use std::collections::VecDeque;

use xen_abi::xenbus::XenbusState;
use xen_abi::{DomId, Errno};

use super::{HostLink, LinkEvent, Nodes, number, text};
use crate::host::{StoreClient, StoreEvent, StoreOp, Tag};
use crate::points::{DeviceClass, DeviceId};

const DEVICE: DeviceId = DeviceId {
    class: DeviceClass::Vbd,
    index: 51712,
};

#[derive(Default)]
struct Queue(VecDeque<(Tag, StoreOp)>);
impl StoreClient for Queue {
    fn submit(&mut self, tag: Tag, op: StoreOp) {
        self.0.push_back((tag, op));
    }
}

/// Answers everything in the queue from `nodes` and returns what the link makes of it.
fn serve(link: &mut HostLink, queue: &mut Queue, nodes: &[(&str, &str)]) -> Vec<LinkEvent> {
    let mut events = Vec::new();
    while let Some((tag, op)) = queue.0.pop_front() {
        let reply = match op {
            StoreOp::Read(path) => nodes
                .iter()
                .find(|(name, _)| *name == path)
                .map(|(_, value)| value.as_bytes().to_vec())
                .ok_or(Errno::ENOENT),
            StoreOp::Watch(path) => {
                let event = StoreEvent::Changed(path);
                events.extend(link.event(queue, tag.0 as u32, event));
                Ok(Vec::new())
            }
            _ => Ok(Vec::new()),
        };
        events.extend(link.event(queue, tag.0 as u32, StoreEvent::Reply(reply)));
    }
    events
}

const STORE: &[(&str, &str)] = &[
    (
        "device/vbd/51712/backend",
        "/local/domain/3/backend/vbd/9/51712",
    ),
    ("device/vbd/51712/backend-id", "3"),
    ("device/vbd/51712/virtual-device", "51712"),
    ("/local/domain/3/backend/vbd/9/51712/state", "2"),
    ("/local/domain/3/backend/vbd/9/51712/sectors", "2048\0"),
];

#[test]
fn a_backend_is_found_and_read() {
    let (mut link, mut queue) = (HostLink::new(DEVICE), Queue::default());
    link.start(
        &mut queue,
        "device/vbd/51712",
        &["virtual-device", "absent"],
    );
    let events = serve(&mut link, &mut queue, STORE);
    assert_eq!(
        events,
        [
            LinkEvent::Found(Nodes::from_pairs(&[("virtual-device", "51712")])),
            LinkEvent::State(XenbusState::INIT_WAIT),
        ]
    );
    assert_eq!(link.backend_id(), DomId(3));
    link.collect(&mut queue, 1, &["sectors", "info"]);
    let events = serve(&mut link, &mut queue, STORE);
    let [LinkEvent::Nodes { what: 1, nodes }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(nodes.number::<u64>("sectors"), Some(2048));
    assert_eq!(nodes.number::<u32>("info"), None);
}

#[test]
fn a_missing_backend_is_a_failure() {
    let (mut link, mut queue) = (HostLink::new(DEVICE), Queue::default());
    link.start(&mut queue, "device/vbd/51712", &[]);
    assert!(matches!(
        serve(&mut link, &mut queue, &[])[..],
        [LinkEvent::Failed { .. }]
    ));
}

#[test]
fn answers_to_an_earlier_link_are_ignored() {
    let (mut link, mut queue) = (HostLink::new(DEVICE), Queue::default());
    link.start(&mut queue, "device/vbd/51712", &[]);
    let mut stale = Queue(core::mem::take(&mut queue.0));
    link.start(&mut queue, "device/vbd/51712", &["virtual-device"]);
    assert!(serve(&mut link, &mut stale, STORE).is_empty());
    assert_eq!(serve(&mut link, &mut queue, STORE).len(), 2);
    link.stop(&mut queue);
    assert!(serve(&mut link, &mut queue, STORE).is_empty());
}

#[test]
fn values_are_bounded_and_trimmed() {
    assert_eq!(text(b" 12\0\n"), Some("12"));
    assert_eq!(number::<u16>(b"65536"), None);
    assert_eq!(number::<u32>(b"-1"), None);
    assert_eq!(text(&[b'1'; 2000]), None);
    assert_eq!(text(&[0xff]), None);
}
