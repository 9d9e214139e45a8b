//! `event_channel_op`: copies in and out, errors, and who hears of a notification.  What ports do
//! with each other is tested beside them.

use xen_abi::evtchn::{
    AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, Status, op, status, virq,
};
use xen_abi::hypercall::EVENT_CHANNEL_OP;
use xen_abi::shared_info::EVTCHN_MASK;
use xen_abi::xs_wire::MsgType;
use xen_abi::{DomId, Errno, Port};

use super::{HOLE, UNMAPPED, WILD};
use crate::mem::Frames;
use crate::testing::Bench;

const OWN: u16 = DomId::SELF.0;
const HANDLER: u64 = Bench::KERNEL + 0x100;

fn with_port(bench: &mut Bench, command: u64, port: u32) -> Result<u64, Errno> {
    let arg = bench.arg(&port);
    bench.call(EVENT_CHANNEL_OP, &[command, arg])
}

fn alloc(bench: &mut Bench, dom: u16, remote_dom: u16) -> Result<u32, Errno> {
    let arg = bench.arg(&AllocUnbound {
        dom,
        remote_dom,
        port: 0,
    });
    bench.call(EVENT_CHANNEL_OP, &[op::ALLOC_UNBOUND, arg])?;
    Ok(bench.get(arg + 4))
}

fn status_of(bench: &mut Bench, port: u32) -> Result<Status, Errno> {
    let arg = bench.arg(&Status {
        dom: OWN,
        port,
        ..Status::default()
    });
    bench.call(EVENT_CHANNEL_OP, &[op::STATUS, arg])?;
    Ok(bench.get(arg))
}

#[test]
fn ports_are_the_lowest_that_are_free() {
    let mut bench = Bench::new();
    // 1 and 2 are the store's and the console's.
    assert_eq!(alloc(&mut bench, OWN, 0), Ok(3));
    assert_eq!(alloc(&mut bench, 1, 0), Ok(4), "its own id does as well");
    assert_eq!(with_port(&mut bench, op::CLOSE, 3), Ok(0));
    assert_eq!(bench.bind_virq(virq::TIMER), Port(3));
    assert_eq!(alloc(&mut bench, 0, 0), Err(Errno::EPERM));
    assert_eq!(alloc(&mut bench, 0x7ff4, 0), Err(Errno::ESRCH));
}

#[test]
fn all_4095_ports_can_be_had_and_no_more() {
    let mut bench = Bench::new();
    for expected in 3..4096 {
        assert_eq!(alloc(&mut bench, OWN, 0), Ok(expected));
    }
    assert_eq!(alloc(&mut bench, OWN, 0), Err(Errno::ENOSPC));
    assert_eq!(with_port(&mut bench, op::SEND, 4095), Ok(0));
    assert_eq!(with_port(&mut bench, op::SEND, 4096), Err(Errno::EINVAL));
}

#[test]
fn a_virq_can_be_bound_once() {
    let mut bench = Bench::new();
    let mut bind = |virq, vcpu| {
        let arg = bench.arg(&BindVirq {
            virq,
            vcpu,
            port: 0,
        });
        bench.call(EVENT_CHANNEL_OP, &[op::BIND_VIRQ, arg])
    };
    assert_eq!(bind(virq::TIMER, 0), Ok(0));
    assert_eq!(bind(virq::TIMER, 0), Err(Errno::EEXIST));
    assert_eq!(bind(virq::DEBUG, 1), Err(Errno::ENOENT));
    assert_eq!(bind(24, 0), Err(Errno::EINVAL));
    assert_eq!(bind(u32::MAX, 0), Err(Errno::EINVAL));
    assert_eq!(bind(2, 1), Err(Errno::EINVAL), "a global one is vCPU 0's");
}

#[test]
fn ipis_reach_their_vcpu_and_stay_there() {
    let mut bench = Bench::new();
    bench.listen(HANDLER);
    let arg = bench.arg(&BindIpi { vcpu: 0, port: 0 });
    assert_eq!(bench.call(EVENT_CHANNEL_OP, &[op::BIND_IPI, arg]), Ok(0));
    let port: u32 = bench.get(arg + 4);
    assert_eq!(with_port(&mut bench, op::SEND, port), Ok(0));
    assert_eq!(bench.regs.rip, HANDLER);
    assert_eq!(bench.take_events(), [port]);
    let arg = bench.arg(&BindVcpu { port, vcpu: 0 });
    let moved = bench.call(EVENT_CHANNEL_OP, &[op::BIND_VCPU, arg]);
    assert_eq!(moved, Err(Errno::EINVAL));
    let arg = bench.arg(&BindVcpu { port: 1, vcpu: 1 });
    let moved = bench.call(EVENT_CHANNEL_OP, &[op::BIND_VCPU, arg]);
    assert_eq!(moved, Err(Errno::ENOENT));
    let arg = bench.arg(&BindVcpu { port: 1, vcpu: 0 });
    assert_eq!(bench.call(EVENT_CHANNEL_OP, &[op::BIND_VCPU, arg]), Ok(0));
    let arg = bench.arg(&BindIpi { vcpu: 1, port: 0 });
    let absent = bench.call(EVENT_CHANNEL_OP, &[op::BIND_IPI, arg]);
    assert_eq!(absent, Err(Errno::ENOENT));
}

#[test]
fn a_notification_goes_to_the_point_behind_the_port() {
    let mut bench = Bench::new();
    bench.say(b"hello");
    bench.write_to_store_ring(MsgType::WRITE, b"data/greeting\0hello");
    let read = |bench: &Bench| bench.guest.host.dom0.read("data/greeting");
    assert_eq!(with_port(&mut bench, op::SEND, 2), Ok(0));
    assert_eq!(bench.guest.host.dom0.said, b"hello");
    assert_eq!(read(&bench), None);
    assert_eq!(with_port(&mut bench, op::SEND, 1), Ok(0));
    assert_eq!(read(&bench).as_deref(), Some("hello"));
    // Nobody is there, which is no mistake; a closed port and a VIRQ are.
    let unbound = alloc(&mut bench, OWN, 0).expect("free");
    assert_eq!(with_port(&mut bench, op::SEND, unbound), Ok(0));
    let timer = bench.bind_virq(virq::TIMER).0;
    for port in [0, timer, 77, u32::MAX] {
        let answer = with_port(&mut bench, op::SEND, port);
        assert_eq!(answer, Err(Errno::EINVAL), "port {port}");
    }
}

#[test]
fn the_guest_can_talk_to_itself() {
    let mut bench = Bench::new();
    let remote_port = alloc(&mut bench, OWN, OWN).expect("free");
    let arg = bench.arg(&BindInterdomain {
        remote_dom: OWN,
        remote_port,
        ..BindInterdomain::default()
    });
    let bind = [op::BIND_INTERDOMAIN, arg];
    assert_eq!(bench.call(EVENT_CHANNEL_OP, &bind), Ok(0));
    let local: u32 = bench.get(arg + 8);
    assert_eq!(bench.take_events(), [local], "the new end has an event");
    assert_eq!(with_port(&mut bench, op::SEND, local), Ok(0));
    assert_eq!(bench.take_events(), [remote_port]);
    let told = status_of(&mut bench, local).expect("open");
    assert_eq!(told.status, status::INTERDOMAIN);
    assert_eq!((told.detail, told.remote_port), (1, remote_port));
    assert_eq!(with_port(&mut bench, op::CLOSE, local), Ok(0));
    let told = status_of(&mut bench, remote_port).expect("open");
    assert_eq!((told.status, told.detail), (status::UNBOUND, 1));
    for (remote_dom, remote_port, expected) in [
        (0, remote_port, Errno::EINVAL),
        (7, remote_port, Errno::ESRCH),
        (OWN, 77, Errno::EINVAL),
        (OWN, 1, Errno::EINVAL),
    ] {
        let arg = bench.arg(&BindInterdomain {
            remote_dom,
            remote_port,
            ..BindInterdomain::default()
        });
        let answer = bench.call(EVENT_CHANNEL_OP, &[op::BIND_INTERDOMAIN, arg]);
        assert_eq!(answer, Err(expected));
    }
}

#[test]
fn unmasking_a_pending_port_announces_it() {
    let mut bench = Bench::new();
    let port = bench.bind_virq(virq::TIMER);
    bench.guest.m.store64(Bench::SHARED_INFO, EVTCHN_MASK, !0);
    let guest = &bench.guest;
    guest.channels.raise(&guest.m, &guest.vcpus, port);
    assert_eq!(bench.upcall(), (0, 1));
    bench.listen(HANDLER);
    assert_eq!(with_port(&mut bench, op::UNMASK, port.0), Ok(0));
    assert_eq!(bench.regs.rip, HANDLER);
    assert_eq!(bench.take_events(), [port.0]);
    bench.regs.rip = Bench::KERNEL;
    bench.mask_events(false);
    assert_eq!(with_port(&mut bench, op::UNMASK, port.0), Ok(0));
    assert_eq!(bench.regs.rip, Bench::KERNEL + 2, "nothing is pending");
}

#[test]
fn status_tells_what_a_port_is() {
    let mut bench = Bench::new();
    let timer = bench.bind_virq(virq::TIMER).0;
    let told = status_of(&mut bench, timer).expect("open");
    assert_eq!((told.status, told.detail), (status::VIRQ, virq::TIMER));
    let told = status_of(&mut bench, 1).expect("open");
    assert_eq!((told.status, told.detail), (status::INTERDOMAIN, 0));
    let told = status_of(&mut bench, 99).expect("there is none");
    assert_eq!(told.status, status::CLOSED);
    assert_eq!(status_of(&mut bench, 4096).map(|_| ()), Err(Errno::EINVAL));
}

#[test]
fn the_other_domain_is_there_and_no_third_one() {
    let mut bench = Bench::new();
    for (dom, expected) in [(0, Errno::EPERM), (7, Errno::ESRCH), (0x7ff1, Errno::ESRCH)] {
        let arg = bench.arg(&Status {
            dom,
            port: 1,
            ..Status::default()
        });
        let told = bench.call(EVENT_CHANNEL_OP, &[op::STATUS, arg]);
        assert_eq!(told, Err(expected), "{dom:#x}");
        assert_eq!(alloc(&mut bench, dom, 0), Err(expected), "{dom:#x}");
    }
}

#[test]
fn port_0_can_be_unmasked_and_does_nothing() {
    let mut bench = Bench::new();
    assert_eq!(with_port(&mut bench, op::UNMASK, 0), Ok(0));
    assert_eq!(bench.upcall().0, 0);
}

#[test]
fn reset_closes_everything() {
    let mut bench = Bench::new();
    bench.bind_virq(virq::TIMER);
    let arg = bench.arg(&0u16);
    let foreign = bench.call(EVENT_CHANNEL_OP, &[op::RESET, arg]);
    assert_eq!(foreign, Err(Errno::EPERM));
    let arg = bench.arg(&OWN);
    assert_eq!(bench.call(EVENT_CHANNEL_OP, &[op::RESET, arg]), Ok(0));
    assert_eq!(bench.guest.channels.open_ports(), 0);
    assert_eq!(alloc(&mut bench, OWN, 0), Ok(1));
}

#[test]
fn what_is_not_there_is_refused_after_a_look_at_the_argument() {
    let mut bench = Bench::new();
    let arg = bench.arg(&[0u64; 4]);
    for command in [op::INIT_CONTROL, op::EXPAND_ARRAY, op::SET_PRIORITY] {
        let answer = bench.call(EVENT_CHANNEL_OP, &[command, arg]);
        assert_eq!(answer, Err(Errno::EOPNOTSUPP), "command {command}");
    }
    for command in 0..14 {
        if command == op::BIND_PIRQ {
            continue;
        }
        for va in [0, UNMAPPED, HOLE, WILD, u64::MAX] {
            let answer = bench.call(EVENT_CHANNEL_OP, &[command, va]);
            assert_eq!(answer, Err(Errno::EFAULT), "command {command}");
        }
    }
    for command in [14, 99, !0] {
        let answer = bench.call(EVENT_CHANNEL_OP, &[command, arg]);
        assert_eq!(answer, Err(Errno::ENOSYS));
    }
    assert_eq!(
        bench.guest.channels.open_ports(),
        2,
        "nothing was left behind"
    );
}
