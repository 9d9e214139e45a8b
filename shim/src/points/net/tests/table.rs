//! What an interface does at each state of its backend, at each stage of the connection.
//!
//! A row is a stage, a column a state.  A cell has the stage that follows, if it is another one, the
//! state that the backend is told, `?` if its nodes are asked for and `u` if the guest is asked to close.

use xen_abi::xenbus::XenbusState;

use crate::host::StoreOp;
use crate::points::net::host::Stage;
use crate::points::net::model::backend::Backend;
use crate::points::net::model::world::World;
use crate::points::xenbus::LinkEvent;

fn letter(stage: &Stage) -> char {
    match stage {
        Stage::Waiting => 'W',
        Stage::Negotiating => 'N',
        Stage::Connecting => 'G',
        Stage::Offered => 'O',
        Stage::Reopening => 'R',
        Stage::Connected => 'C',
        Stage::Absent(_) => 'A',
        Stage::Refused(_) => 'F',
        Stage::Broken(_) => 'B',
        Stage::Closed => 'X',
    }
}

fn cell(stage: &Stage, state: u32, was_reattached: bool) -> String {
    let mut world = World::new(Backend::new(&[("feature-rx-copy", true)]));
    world.handshake();
    world.vif.host.stage = stage.clone();
    world.vif.was_reattached = was_reattached;
    world.with(|vif, cx| vif.host_link_event(cx, LinkEvent::State(XenbusState(state))));
    let mut cell = String::new();
    if world.vif.host.stage != *stage {
        cell.push(letter(&world.vif.host.stage));
    }
    let asked = world.real.take_asked();
    for op in &asked {
        if let StoreOp::Write(path, value) = op
            && path.ends_with("/state")
        {
            cell.push_str(core::str::from_utf8(value).unwrap());
        }
    }
    if asked.iter().any(|op| matches!(op, StoreOp::Read(_))) {
        cell.push('?');
    }
    if world.vif.is_unplugging {
        cell.push('u');
    }
    if cell.is_empty() {
        cell.push('.');
    }
    cell
}

fn table(was_reattached: bool) -> Vec<String> {
    let why = String::new;
    let stages = [
        Stage::Waiting,
        Stage::Negotiating,
        Stage::Connecting,
        Stage::Offered,
        Stage::Reopening,
        Stage::Connected,
        Stage::Absent(why()),
        Stage::Refused(why()),
        Stage::Broken(why()),
        Stage::Closed,
    ];
    let rows = stages.iter().map(|stage| {
        let cells = (0..=8).map(|state| format!(" {:<3}", cell(stage, state, was_reattached)));
        let row = format!("{}:{}", letter(stage), cells.collect::<String>());
        row.trim_end().to_owned()
    });
    rows.collect()
}

#[test]
fn each_state_of_the_backend_is_answered_as_the_table_says() {
    #[rustfmt::skip]
    let expected = [
        //0   1   2   3   4   5   6   7   8
        "W: .   .   N?  N?  5   6   1   .   .",
        "N: X56u .   .   .   .   X6u X56u .   .",
        "G: X56u .   .   .   C   X56u X56u .   .",
        "O: X56u .   .   .   .   X6u X56u .   .",
        "R: X56u .   .   .   .   6   W1  .   .",
        "C: X56u .   .   .   .   X56u X56u .   .",
        "A: .   .   N?  N?  .   .   .   .   .",
        "F: X56u .   .   .   .   X6u X56u .   .",
        "B: X6u .   .   .   .   6   .   .   .",
        "X: .   .   .   .   .   .   .   .   .",
    ];
    assert_eq!(table(false), expected);
}

#[test]
fn after_a_move_a_backend_that_goes_is_waited_for() {
    #[rustfmt::skip]
    let expected = [
        //0   1   2   3   4   5   6   7   8
        "W: .   .   N?  N?  5   6   1   .   .",
        "N: A   .   .   .   .   A   A   .   .",
        "G: A   .   .   .   C   A   A   .   .",
        "O: A   .   .   .   .   A   A   .   .",
        "R: A   .   .   .   .   6   W1  .   .",
        "C: X56u .   .   .   .   X56u X56u .   .",
        "A: .   .   N?  N?  .   .   .   .   .",
        "F: A   .   .   .   .   A   A   .   .",
        "B: A   .   .   .   .   6   .   .   .",
        "X: .   .   .   .   .   .   .   .   .",
    ];
    assert_eq!(table(true), expected);
}
