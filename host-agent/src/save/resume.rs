//! Resumes a guest that a killed save or send left suspended, for an operator.
//!
//! Only an operator may do so: a save or send has no journal, so nothing tells how far it had got.  And it
//! works only for saves and sends.  A guest that a job of the daemon suspended may have been handed over; its
//! journal knows, and `unmoved recover` asks.  A guest that someone else suspended is theirs.  The marker on
//! the domain tells these cases apart.  It is set while the guest runs here, so no older journal can have
//! handed the guest over, and a suspended guest gets no other marker.

use super::guest::XenGuest;
use super::live::{AWAY, LiveSource};
use super::source_marker::{self, Asker};
use super::suspend::settle;
use crate::job::{Error, Result, Source, Standalone};
use crate::xen::abi::DomainInfo;
use crate::xen::state::DomainFlags;

/// What is known of a domain that an operator wants to resume.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// Who asked it to suspend.
    asker: Option<Asker>,
    /// It is suspended.
    is_suspended: bool,
    /// Another domain of this host has its UUID.
    has_twin: bool,
    /// The operator vouches that no other copy runs.
    is_vouched: bool,
}

impl Left {
    /// The interrupted operation, if the domain may resume.
    fn may_go_on(self, name: &str) -> Result<Standalone> {
        let refuse = |why: &str| Err(Error::Refused(format!("{name} {why}")));
        let operation = match self.asker {
            None if self.is_suspended => {
                return refuse(
                    "was not suspended by an agent: the tool that did it (such as xl save or xl migrate) has \
                     to resume it",
                );
            }
            None => return refuse("is not suspended"),
            Some(Asker::Job) => {
                return refuse(
                    "was suspended by a job of the daemon: see `unmoved status`, and use `unmoved recover` to \
                     decide where the guest runs",
                );
            }
            Some(Asker::Standalone(operation)) => operation,
        };
        if !self.is_suspended {
            return Ok(operation);
        }
        if self.has_twin {
            return refuse("has a second copy on this host: destroy one of them first");
        }
        if operation == Standalone::Send && !self.is_vouched {
            return refuse(
                "may run on the host it was sent to: look there, and use --vouch if it does not run there and \
                 never will",
            );
        }
        Ok(operation)
    }
}

impl LiveSource {
    /// Makes this an operation without a journal.
    pub(crate) fn standalone(mut self, operation: Standalone) -> Self {
        self.by = Asker::Standalone(operation);
        self
    }

    /// Makes sure that no other save or send has left the domain suspended.  Its copy may run elsewhere,
    /// whatever the journal of an earlier, interrupted job says.
    ///
    /// # Errors
    /// [`Error::Refused`] if one has.
    pub(super) fn refuse_if_suspended_by_another(&self) -> Result<()> {
        let asker = source_marker::asker(&*self.store, self.domid, &self.uuid)?;
        match asker {
            Some(Asker::Standalone(operation))
                if asker != Some(self.by) && self.is_suspended_now()? =>
            {
                Err(Error::Refused(format!(
                    "{} was suspended by a {} whose outcome is unknown: use `unmoved direct resume`",
                    self.name,
                    match operation {
                        Standalone::Save => "save",
                        Standalone::Send => "send",
                    }
                )))
            }
            _ => Ok(()),
        }
    }

    /// A message, if a dead save or send has left the guest suspended.
    pub(crate) fn is_left(&mut self) -> Result<Option<String>> {
        let asker = source_marker::asker(&*self.store, self.domid, &self.uuid)?;
        // A process that is still at work on it holds the lock.
        if !matches!(asker, Some(Asker::Standalone(_)))
            || !self.is_suspended_now()?
            || self.lock().is_err()
        {
            return Ok(None);
        }
        Ok(Some(format!(
            "a killed save or send left {} suspended: use `unmoved direct resume {}`",
            self.name, self.domid
        )))
    }

    /// The domain once its state is settled: after a suspend request, by whichever run of the agent, it may
    /// be about to suspend.
    pub(super) fn settled(&self) -> Result<DomainInfo> {
        let info = self.info_if_there()?;
        if !info.state().contains(DomainFlags::SHUTDOWN)
            && source_marker::is_asked(&*self.store, self.domid, &self.uuid)?
        {
            let guest = XenGuest::new(self.xen.clone(), self.domid)?;
            settle(self.domid, &guest, &*self.store)?;
            return self.info_if_there();
        }
        Ok(info)
    }

    fn is_suspended_now(&self) -> Result<bool> {
        Ok(self
            .info_if_there()?
            .state()
            .contains(DomainFlags::SHUTDOWN))
    }

    /// Resumes the guest; returns the interrupted operation.  `has_twin`: another domain of this host has its
    /// UUID.  `is_vouched`: the operator says that no other copy runs.
    ///
    /// # Errors
    /// [`Error::Refused`] if it may not resume, or another process of the agent works on it.
    pub(crate) fn resume_left(&mut self, has_twin: bool, is_vouched: bool) -> Result<Standalone> {
        // Whoever holds the lock decides; from here on nobody else changes the marker.
        self.lock()?;
        let info = self.settled()?;
        let left = Left {
            asker: source_marker::asker(&*self.store, self.domid, &self.uuid)?,
            is_suspended: info.state().contains(DomainFlags::SHUTDOWN),
            has_twin,
            is_vouched,
        };
        let operation = left.may_go_on(&self.name)?;
        self.by = Asker::Standalone(operation);
        if let Some(own) = self.name.strip_suffix(AWAY) {
            self.name = own.to_owned();
        }
        self.resume_here()?;
        Ok(operation)
    }
}

#[cfg(test)]
mod tests {
    use super::Left;
    use crate::job::Standalone;
    use crate::save::source_marker::Asker;

    const SUSPENDED: Left = Left {
        asker: None,
        is_suspended: true,
        has_twin: false,
        is_vouched: false,
    };

    fn refused(left: Left) -> String {
        left.may_go_on("web").unwrap_err().to_string()
    }

    #[test]
    fn what_a_killed_save_has_left_goes_on() {
        let asker = Some(Asker::Standalone(Standalone::Save));
        let left = Left { asker, ..SUSPENDED };
        assert_eq!(left.may_go_on("web").unwrap(), Standalone::Save);
        let restored = Left {
            has_twin: true,
            is_vouched: true,
            ..left
        };
        assert!(refused(restored).contains("web has a second copy on this host"));
    }

    #[test]
    fn what_was_sent_goes_on_only_if_somebody_vouches() {
        let asker = Some(Asker::Standalone(Standalone::Send));
        let left = Left { asker, ..SUSPENDED };
        assert!(refused(left).contains("--vouch"));
        let vouched = Left {
            is_vouched: true,
            ..left
        };
        assert_eq!(vouched.may_go_on("web").unwrap(), Standalone::Send);
        // It had only been asked, so nobody has got all of it.
        let asked = Left {
            is_suspended: false,
            ..left
        };
        assert_eq!(asked.may_go_on("web").unwrap(), Standalone::Send);
    }

    #[test]
    fn what_others_have_suspended_is_theirs_whoever_vouches() {
        for is_vouched in [false, true] {
            for is_suspended in [false, true] {
                let job = Left {
                    asker: Some(Asker::Job),
                    is_suspended,
                    is_vouched,
                    ..SUSPENDED
                };
                assert!(refused(job).contains("unmoved recover"));
            }
            let foreign = Left {
                is_vouched,
                ..SUSPENDED
            };
            assert!(refused(foreign).contains("not suspended by an agent"));
            let running = Left {
                is_suspended: false,
                ..foreign
            };
            assert_eq!(refused(running), "web is not suspended");
        }
    }
}
