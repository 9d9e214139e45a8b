//! Which libxl record may come when.

use crate::error::Defect;
use crate::libxc::DomainType;
use crate::libxl::{CheckpointState, Content};

/// The state of a stream between two records.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Order {
    /// The kind of domain, once its libxc stream has begun.
    domain: Option<DomainType>,
    /// libxc has handed over at a checkpoint and waits for CHECKPOINT_END.
    in_checkpoint: bool,
    ended: bool,
}

impl Order {
    /// The libxc stream has told its kind of domain.
    pub(crate) fn domain(&mut self, kind: DomainType) {
        self.domain = Some(kind);
    }

    /// libxc has written CHECKPOINT.
    pub(crate) fn checkpoint(&mut self) {
        self.in_checkpoint = true;
    }

    /// Takes note of the next record, or says why it may not come now.
    pub(crate) fn accept(&mut self, content: &Content) -> Result<(), Defect> {
        if self.ended {
            return Err(Defect::Order("END was the last record"));
        }
        match content {
            Content::LibxcContext if self.domain.is_some() => {
                Err(Defect::Order("there has been one"))
            }
            Content::XenstoreData { .. } | Content::EmulatorContext { .. } => match self.domain {
                None => Err(Defect::Order("LIBXC_CONTEXT must come before")),
                Some(DomainType::Pv) => Err(Defect::Order(
                    "this is the stream of a PV guest, which has no emulator",
                )),
                Some(DomainType::Hvm) => Ok(()),
            },
            Content::CheckpointEnd if !self.in_checkpoint => {
                Err(Defect::Order("no checkpoint has begun"))
            }
            Content::CheckpointEnd => {
                self.in_checkpoint = false;
                Ok(())
            }
            Content::CheckpointState(CheckpointState::New) => Ok(()),
            Content::CheckpointState(_) => Err(Defect::Order(
                "it belongs on COLO's way back, from the secondary to the primary",
            )),
            Content::End if self.in_checkpoint => Err(Defect::Missing("CHECKPOINT_END")),
            Content::End if self.domain.is_none() => Err(Defect::Missing("LIBXC_CONTEXT")),
            Content::End => {
                self.ended = true;
                Ok(())
            }
            Content::LibxcContext | Content::Optional => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Order;
    use crate::libxc::DomainType;
    use crate::libxl::{CheckpointState, Content, Emulator};

    const CONTEXT: Content = Content::EmulatorContext {
        emulator: Emulator::QemuUpstream,
        index: 0,
    };

    #[test]
    fn emulators_belong_to_hvm_guests_and_come_last() {
        let mut order = Order::default();
        assert!(order.accept(&CONTEXT).is_err());
        assert!(order.accept(&Content::End).is_err());
        order.accept(&Content::LibxcContext).unwrap();
        order.domain(DomainType::Hvm);
        order.accept(&CONTEXT).unwrap();
        assert!(order.accept(&Content::LibxcContext).is_err());
        order.accept(&Content::End).unwrap();
        assert!(order.accept(&Content::Optional).is_err());
        let mut pv = Order::default();
        pv.domain(DomainType::Pv);
        assert!(pv.accept(&CONTEXT).is_err());
    }

    #[test]
    fn checkpoints_end() {
        let mut order = Order::default();
        order.domain(DomainType::Hvm);
        assert!(order.accept(&Content::CheckpointEnd).is_err());
        order.checkpoint();
        assert!(order.accept(&Content::End).is_err());
        order.accept(&CONTEXT).unwrap();
        order.accept(&Content::CheckpointEnd).unwrap();
        let state = Content::CheckpointState;
        order.accept(&state(CheckpointState::New)).unwrap();
        assert!(order.accept(&state(CheckpointState::Ready)).is_err());
        order.accept(&Content::End).unwrap();
    }
}
