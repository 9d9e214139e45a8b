//! The stream of a departing guest: its connections, what they carry, and the report.

use std::time::{Duration, Instant};

use super::{Outgoing, guest};
use crate::daemon::job::Report;
use crate::daemon::link;
use crate::daemon::wire::{Hello, StreamOffer};
use crate::job::{Error, Phase, Result, Sink};
use crate::session::Sent;
use crate::transport::{Duplex, Sender, Watch};

impl Outgoing<'_> {
    pub(super) fn open_lanes(&mut self, stream: Option<StreamOffer>, parallel: u8) -> Result<()> {
        let missing = || Error::Peer("no ticket for the stream".to_owned());
        let StreamOffer {
            ticket,
            builds_early,
        } = stream.ok_or_else(missing)?;
        let watch = Watch::of(self.job.control.clone());
        self.watch = watch.clone();
        let mut lanes: Vec<Box<dyn Duplex>> = Vec::new();
        for lane in 0..parallel {
            let hello = Hello::Data {
                session: self.session,
                ticket,
                lane,
            };
            let identity = &self.daemon.identity;
            lanes.push(Box::new(link::lane(
                identity,
                self.peer,
                watch.clone(),
                &hello,
            )?));
        }
        let sender = Sender::compressing(lanes, self.job.control.clone(), self.compress);
        let mut sender = sender.map_err(Error::io("the stream"))?;
        sender.set_builds_early(builds_early);
        self.sender = Some(sender);
        Ok(())
    }

    /// Why a copy failed.  To a thread that waits for it, an abort looks like a lost connection.
    pub(super) fn why(&self, error: Error) -> String {
        self.job.control.check().err().unwrap_or(error).to_string()
    }

    pub(super) fn copy_live(&mut self) -> Result<()> {
        std::mem::replace(&mut self.lanes_opened, Ok(()))?;
        let control = &self.job.control;
        let setup = control.elapsed();
        control.update(|statistics| {
            statistics.setup_time = u64::try_from(setup.as_millis()).unwrap_or(u64::MAX);
        });
        control.enter(Phase::Live, "copying memory while the guest runs");
        let sink: &dyn Sink = stream(self.sender.as_ref())?;
        guest(&mut self.source)?.copy_live(sink, control)?;
        // The source tells when its first round begins.
        let begun = Duration::from_millis(control.statistics().setup_time);
        self.copying = control.elapsed().saturating_sub(begun);
        Ok(())
    }

    pub(super) fn copy_rest(&mut self) -> Result<Sent> {
        let control = &self.job.control;
        control.enter(
            Phase::StopAndCopy,
            "suspending the guest and copying the rest",
        );
        let sender = stream(self.sender.as_ref())?;
        control.limit_blackout();
        self.watch.hurry();
        if let Some(link) = &self.link {
            link.hurry();
        }
        let begun = Instant::now();
        self.copied = guest(&mut self.source)?.copy_rest(sender, control)?;
        let suspend = Duration::try_from_secs_f64(self.copied.suspend_ms / 1000.0);
        self.suspended = Some(begun + suspend.unwrap_or_default());
        let bytes = sender.finish()?;
        control.enter(
            Phase::Building,
            "everything is sent; the destination is building the domain",
        );
        Ok(Sent {
            bytes,
            limits: self.copied.limits,
        })
    }

    /// The guest runs at the destination.
    pub(super) fn report(&self) {
        let total = self.job.control.elapsed();
        let blackout = self
            .suspended
            .map(|since| since.elapsed())
            .unwrap_or_default();
        self.job.control.update(|statistics| {
            let ms = u64::try_from(blackout.as_millis()).unwrap_or(u64::MAX);
            statistics.downtime = Some(ms);
        });
        let statistics = self.job.control.statistics();
        let prediction = self.job.prediction();
        if let (Some(expected), Some(prediction)) = (&self.expected, &prediction) {
            let preparing =
                Duration::from_millis(statistics.setup_time).saturating_sub(expected.at);
            let past = &expected.past;
            let mut shown = past.corrected(prediction, preparing, self.copying, blackout);
            if prediction.verifying_ms > 0.0 {
                // This host does not know how long that took at the destination.
                shown.blackout_ms = past.blackout_ms;
            }
            log::debug!(
                "session {}: expected {past:?}, measured {shown:?}",
                self.session
            );
            self.daemon.history.add(&self.peer.name, shown);
        }
        self.job.report(Report {
            tool: "unmoved".to_owned(),
            total_ms: total.as_secs_f64() * 1000.0,
            blackout_ms: blackout.as_secs_f64() * 1000.0,
            rounds: self.copied.rounds,
            bytes_on_wire: statistics.wire_bytes,
            bytes_total: self.copied.pages * crate::job::PAGE_SIZE as u64,
            predicted_blackout_ms: prediction.map(|expected| expected.blackout_ms),
            predicted_total_ms: prediction.map(|expected| expected.total_ms),
        });
    }
}

fn stream(sender: Option<&Sender>) -> Result<&Sender> {
    sender.ok_or_else(|| Error::Peer("there is no stream".to_owned()))
}
