//! What a disk does at each state of its backend, at each stage of the connection.
//!
//! A row is a stage, a column a state.  A cell has the stage that follows, if it is another one, the
//! state that the backend is told, `?` if its nodes are asked for and `u` if the guest is asked to close.

use xen_abi::xenbus::XenbusState;

use super::GOOD;
use crate::host::StoreOp;
use crate::points::disk::host::Stage;
use crate::points::disk::model::backend::Backend;
use crate::points::disk::model::world::World;
use crate::points::xenbus::LinkEvent;

fn letter(stage: &Stage) -> char {
    match stage {
        Stage::Waiting => 'W',
        Stage::Negotiating => 'N',
        Stage::Initialised => 'G',
        Stage::Describing => 'D',
        Stage::Connected => 'C',
        Stage::Absent(_) => 'A',
        Stage::Refused(_) => 'F',
        Stage::Broken(_) => 'B',
        Stage::Closed => 'X',
    }
}

fn cell(stage: &Stage, state: u32, was_reattached: bool) -> String {
    let mut world = World::new(Backend::new(4, GOOD));
    world.handshake();
    world.vbd.host.stage = stage.clone();
    world.vbd.was_reattached = was_reattached;
    world.with(|vbd, cx| vbd.host_link_event(cx, LinkEvent::State(XenbusState(state))));
    let mut cell = String::new();
    if world.vbd.host.stage != *stage {
        cell.push(letter(&world.vbd.host.stage));
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
    if world.vbd.is_unplugging {
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
        Stage::Initialised,
        Stage::Describing,
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
        "G: X56u .   .   .   D?  X6u X56u .   .",
        "D: X56u .   .   .   .   X6u X56u .   .",
        "C: X56u .   .   .   ?   X6u X56u .   .",
        "A: .   .   N?  N?  .   .   .   .   .",
        "F: X56u .   .   .   .   X6u X56u .   .",
        "B: X6u .   .   .   .   X6u X6u .   .",
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
        "N: A1  .   .   .   .   A1  A1  .   .",
        "G: A1  .   .   .   D?  A1  A1  .   .",
        "D: A1  .   .   .   .   A1  A1  .   .",
        "C: X56u .   .   .   ?   X6u X56u .   .",
        "A: .   .   N?  N?  .   .   .   .   .",
        "F: A1  .   .   .   .   A1  A1  .   .",
        "B: A1  .   .   .   .   A1  A1  .   .",
        "X: .   .   .   .   .   .   .   .   .",
    ];
    assert_eq!(table(true), expected);
}
