//! What follows from a state that the other end writes, at each stage: one table for the host's backend, and
//! one for the guest's driver.
//!
//! Both hold for every class of devices.  What differs between classes is at which state a driver is ready
//! to be connected, and whether the host's half waits for a driver (so that [`ConnectionStage::Offered`] and
//! [`ConnectionStage::Reopening`] are met) or for a description ([`ConnectionStage::Describing`]).
//!
//! Where disks and interfaces once differed, it was decided so:
//!
//! * A broken backend that says Closing is told Closed, and the guest nothing.  It closes because we asked it to;
//!   nobody took the device away, and the next host may make it good.  Linux's block backend gives up the ring
//!   only at Closed.
//! * A broken backend that says Closed has come to the end of what we asked for, and nothing follows.
//! * When a broken backend's directory goes, the device is unplugged: only the toolstack removes it.
//! * When a driver starts while one is connected, that one is disconnected and the new one served.  Another kernel
//!   has taken over without a word (kexec).  What the old one has in flight is waited for first.
//! * A driver that starts while the backend is broken or refused connects.  The guest must not see what its host's
//!   backend does, and a driver that is turned away does not come back by itself, not on a better host either.
//! * A driver is told Closed when nothing that it granted is in use.  What a backend still has of *ours* does not
//!   concern it.

use xen_abi::xenbus::XenbusState;

use super::ConnectionStage;

/// What follows from a state of the host's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendAct {
    /// Nothing.
    Nothing,
    /// It is asked what it offers.
    Negotiate,
    /// It is told this state, which leads it on to where it can take rings.
    Tell(XenbusState),
    /// It has closed, and is told to start again.
    Restart,
    /// It has taken the rings.
    Taken,
    /// It wrote its state again, which says that something about the device has changed.
    LookAgain,
    /// It is gone where the guest has only just come to: another one is waited for.
    WaitForAnother,
    /// The host wants the device gone.
    Unplug,
    /// It is gone without a word, and so is the device.
    Gone,
}

/// Returns what follows from the backend's state.  `may_wait` is said of a guest that has come to another
/// host and not run there yet.
pub fn on_backend(stage: &ConnectionStage, state: XenbusState, may_wait: bool) -> BackendAct {
    let goes = || match state {
        XenbusState::CLOSING | XenbusState::CLOSED | XenbusState::UNKNOWN if may_wait => {
            BackendAct::WaitForAnother
        }
        XenbusState::CLOSING => BackendAct::Unplug,
        XenbusState::CLOSED | XenbusState::UNKNOWN => BackendAct::Gone,
        _ => BackendAct::Nothing,
    };
    match (stage, state) {
        (ConnectionStage::Closed, _) => BackendAct::Nothing,
        (
            ConnectionStage::Waiting | ConnectionStage::Absent(_),
            XenbusState::INIT_WAIT | XenbusState::INITIALISED,
        ) => BackendAct::Negotiate,
        // Connected, but not with us: left over from a domain that was resumed where it was.
        // It is led once around to where it began.
        (ConnectionStage::Waiting, XenbusState::CONNECTED) => {
            BackendAct::Tell(XenbusState::CLOSING)
        }
        (
            ConnectionStage::Waiting | ConnectionStage::Reopening | ConnectionStage::Broken(_),
            XenbusState::CLOSING,
        ) => BackendAct::Tell(XenbusState::CLOSED),
        (ConnectionStage::Waiting | ConnectionStage::Reopening, XenbusState::CLOSED) => {
            BackendAct::Restart
        }
        (ConnectionStage::Broken(_), XenbusState::CLOSED) => BackendAct::Nothing,
        (ConnectionStage::Waiting | ConnectionStage::Absent(_), _) => BackendAct::Nothing,
        (ConnectionStage::Given, XenbusState::CONNECTED) => BackendAct::Taken,
        (ConnectionStage::Connected, XenbusState::CONNECTED) => BackendAct::LookAgain,
        (
            ConnectionStage::Negotiating
            | ConnectionStage::Offered
            | ConnectionStage::Given
            | ConnectionStage::Describing
            | ConnectionStage::Connected
            | ConnectionStage::Reopening
            | ConnectionStage::Refused(_)
            | ConnectionStage::Broken(_),
            _,
        ) => goes(),
    }
}

/// What follows from a state of the guest's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontendAct {
    /// Nothing.
    Nothing,
    /// It is told that it may begin.
    Welcome,
    /// It is connected.
    Connect,
    /// It closes, and is told that we do, too.
    Close,
    /// It is gone.
    Disconnect,
}

/// How far the connection to the guest's driver has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The state that the guest was told last.
    pub ours: XenbusState,
    /// Whether a driver is connected.
    pub has_driver: bool,
    /// Whether the host wants the device gone.
    pub is_unplugging: bool,
}

impl Frontend {
    /// Returns what follows from the driver's state, which `is_ready` says is one at which it has
    /// published its rings.
    pub fn on_state(self, state: XenbusState, is_ready: bool) -> FrontendAct {
        match state {
            // Asked to close before it ever connected.
            XenbusState::INITIALISING | XenbusState::INIT_WAIT if self.is_unplugging => {
                FrontendAct::Disconnect
            }
            XenbusState::INITIALISING if self.ours == XenbusState::CLOSED => FrontendAct::Welcome,
            // Another kernel has taken over from one that left without a word.
            XenbusState::INITIALISING if self.has_driver => FrontendAct::Disconnect,
            _ if is_ready && self.ours == XenbusState::INIT_WAIT && !self.has_driver => {
                FrontendAct::Connect
            }
            XenbusState::CLOSING if self.ours < XenbusState::CLOSING => FrontendAct::Close,
            XenbusState::CLOSED | XenbusState::UNKNOWN if self.ours != XenbusState::CLOSED => {
                FrontendAct::Disconnect
            }
            _ => FrontendAct::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use xen_abi::xenbus::XenbusState;

    use super::{BackendAct, ConnectionStage, Frontend, FrontendAct, on_backend};

    fn backend_row(stage: &ConnectionStage, may_wait: bool) -> String {
        let cells = (0..=8).map(|state| {
            let act = match on_backend(stage, XenbusState(state), may_wait) {
                BackendAct::Nothing => ".",
                BackendAct::Negotiate => "ask",
                BackendAct::Tell(XenbusState::CLOSING) => "5",
                BackendAct::Tell(XenbusState::CLOSED) => "6",
                BackendAct::Tell(other) => panic!("it is never told {other:?}"),
                BackendAct::Restart => "1",
                BackendAct::Taken => "took",
                BackendAct::LookAgain => "look",
                BackendAct::WaitForAnother => "wait",
                BackendAct::Unplug => "unpl",
                BackendAct::Gone => "gone",
            };
            format!("{act:<5}")
        });
        let name = format!("{stage:?}").replace("(\"\")", "");
        let row = format!("{name:<11} {}", cells.collect::<String>());
        row.trim_end().to_owned()
    }

    fn backend_table(may_wait: bool) -> Vec<String> {
        let why = String::new;
        let stages = [
            ConnectionStage::Waiting,
            ConnectionStage::Negotiating,
            ConnectionStage::Offered,
            ConnectionStage::Given,
            ConnectionStage::Describing,
            ConnectionStage::Connected,
            ConnectionStage::Reopening,
            ConnectionStage::Absent(why()),
            ConnectionStage::Refused(why()),
            ConnectionStage::Broken(why()),
            ConnectionStage::Closed,
        ];
        stages.map(|stage| backend_row(&stage, may_wait)).to_vec()
    }

    #[test]
    #[rustfmt::skip]
    fn each_state_of_a_backend_has_its_answer_at_each_stage() {
        assert_eq!(backend_table(false), [
            //           0    1    2    3    4    5    6    7    8
            "Waiting     .    .    ask  ask  5    6    1    .    .",
            "Negotiating gone .    .    .    .    unpl gone .    .",
            "Offered     gone .    .    .    .    unpl gone .    .",
            "Given       gone .    .    .    took unpl gone .    .",
            "Describing  gone .    .    .    .    unpl gone .    .",
            "Connected   gone .    .    .    look unpl gone .    .",
            "Reopening   gone .    .    .    .    6    1    .    .",
            "Absent      .    .    ask  ask  .    .    .    .    .",
            "Refused     gone .    .    .    .    unpl gone .    .",
            "Broken      gone .    .    .    .    6    .    .    .",
            "Closed      .    .    .    .    .    .    .    .    .",
        ]);
    }

    #[test]
    #[rustfmt::skip]
    fn where_the_guest_has_only_just_come_to_another_backend_is_waited_for() {
        assert_eq!(backend_table(true), [
            //           0    1    2    3    4    5    6    7    8
            "Waiting     .    .    ask  ask  5    6    1    .    .",
            "Negotiating wait .    .    .    .    wait wait .    .",
            "Offered     wait .    .    .    .    wait wait .    .",
            "Given       wait .    .    .    took wait wait .    .",
            "Describing  wait .    .    .    .    wait wait .    .",
            // Never asked: a connected backend is one that works.
            "Connected   wait .    .    .    look wait wait .    .",
            "Reopening   wait .    .    .    .    6    1    .    .",
            "Absent      .    .    ask  ask  .    .    .    .    .",
            "Refused     wait .    .    .    .    wait wait .    .",
            "Broken      wait .    .    .    .    6    .    .    .",
            "Closed      .    .    .    .    .    .    .    .    .",
        ]);
    }

    /// The answers to the driver's states 0 to 8 and to one that there is not; `ready` are the states at
    /// which its class has published its rings.
    fn frontend_row(ours: u32, has_driver: bool, is_unplugging: bool, ready: &[u32]) -> String {
        let frontend = Frontend {
            ours: XenbusState(ours),
            has_driver,
            is_unplugging,
        };
        let cells = (0..=9).map(|state| {
            match frontend.on_state(XenbusState(state), ready.contains(&state)) {
                FrontendAct::Nothing => ".   ",
                FrontendAct::Welcome => "2   ",
                FrontendAct::Connect => "conn",
                FrontendAct::Close => "5   ",
                FrontendAct::Disconnect => "gone",
            }
        });
        cells.collect::<Vec<_>>().join(" ").trim_end().to_owned()
    }

    #[test]
    #[rustfmt::skip]
    fn each_state_of_a_driver_has_its_answer() {
        let (disk, net) = (&[3, 4][..], &[4][..]);
        for (ours, has_driver, is_unplugging, ready, expected) in [
            // Ours, driver, unplugging            0    1    2    3    4    5    6    7    8    9
            (1, false, false, disk,               "gone .    .    .    .    5    gone .    .    ."),
            (2, false, false, disk,               "gone .    .    conn conn 5    gone .    .    ."),
            (2, false, false, net,                "gone .    .    .    conn 5    gone .    .    ."),
            // Connected towards us, but the host is not ready.
            (2, true, false, net,                 "gone gone .    .    .    5    gone .    .    ."),
            (4, true, false, disk,                "gone gone .    .    .    5    gone .    .    ."),
            // It went, and what it asked for has not all ended.
            (4, false, false, disk,               "gone .    .    .    .    5    gone .    .    ."),
            (5, true, false, disk,                "gone gone .    .    .    .    gone .    .    ."),
            (5, false, false, disk,               "gone .    .    .    .    .    gone .    .    ."),
            (6, false, false, disk,               ".    2    .    .    .    .    .    .    .    ."),
            (5, true, true, disk,                 "gone gone gone .    .    .    gone .    .    ."),
            (5, false, true, disk,                "gone gone gone .    .    .    gone .    .    ."),
            (6, false, true, disk,                ".    gone gone .    .    .    .    .    .    ."),
        ] {
            let row = frontend_row(ours, has_driver, is_unplugging, ready);
            assert_eq!(row, expected, "ours {ours}, {has_driver}, {is_unplugging}");
        }
    }
}
