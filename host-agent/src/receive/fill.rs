//! Puts memory and state into a domain that the toolstack has built and that has not run.
//!
//! The toolstack got the frames without contents, and a first version of the state.  It creates the devices
//! while everything else comes here.  What it has put into the domain's memory itself stays: the pages that
//! connect the domain to xenstored and its console are new after every migration.

use std::collections::{BTreeMap, BTreeSet};

use unmoved_stream::libxc::RecordType;

use crate::job::{Batch, Error, PAGE_SIZE, Result, StateDigests, has_content};
use crate::records::Record;
use crate::verify;
use crate::xen::abi::param;
use crate::xen::domain::{Domain, TscInfo};
use crate::xen::sys::Mapping;

/// Bits of a word that are the frame's number.
const PFN: u64 = (1 << 52) - 1;

/// The last state records.
#[derive(Debug, Default)]
pub(super) struct State {
    tsc: Option<TscInfo>,
    context: Option<Vec<u8>>,
    /// Parameters, as the toolstack got them and as they arrived last.
    given: BTreeMap<u32, u64>,
    params: BTreeMap<u32, u64>,
    /// Of the last records.
    pub(super) digests: StateDigests,
    /// Frames that the source must not write.
    pub(super) ours: BTreeSet<u64>,
}

impl State {
    /// Stores a state record.
    ///
    /// # Errors
    /// If it is of another type, or malformed.
    pub(super) fn note(&mut self, record: Record<'_>) -> Result<()> {
        verify::note(&mut self.digests, record.kind, record.body);
        match record.kind {
            RecordType::X86_TSC_INFO => self.tsc = Some(tsc_info(record.body)?),
            RecordType::HVM_CONTEXT => self.context = Some(record.body.to_vec()),
            RecordType::HVM_PARAMS => {
                self.params = params(record.body)?;
                // The toolstack has made the rings from what it got first.
                if self.ours.is_empty() {
                    self.ours = our_frames(&self.params);
                    self.given.clone_from(&self.params);
                }
            }
            other => {
                return Err(Error::Peer(format!(
                    "a record of type {other} is out of place: only memory and state can follow here"
                )));
            }
        }
        Ok(())
    }

    /// Whether the state is complete.
    pub(super) fn is_complete(&self) -> bool {
        self.tsc.is_some() && self.context.is_some() && !self.ours.is_empty()
    }

    /// Sets the domain's state to the last one that was stored.
    ///
    /// # Errors
    /// If a part never arrived, or Xen refuses.
    pub(super) fn apply(&self, domain: Domain<'_>) -> Result<()> {
        let (Some(tsc), Some(context)) = (self.tsc, &self.context) else {
            return Err(Error::Peer("the stream has no domain state".to_owned()));
        };
        for (index, value) in self.changed_params()? {
            domain.set_param(index, value)?;
        }
        domain.set_tsc_info(tsc)?;
        domain.set_hvm_context(context)
    }

    /// Parameters that have changed since the toolstack got them.  A missing one is 0, because the writer
    /// leaves zeros out.
    fn changed_params(&self) -> Result<Vec<(u32, u64)>> {
        if our_frames(&self.params) != self.ours {
            return Err(Error::Peer(
                "the domain's rings have moved since it was built".to_owned(),
            ));
        }
        let gone = self
            .given
            .keys()
            .filter(|index| !self.params.contains_key(index));
        let last = self.params.iter().map(|(index, value)| (*index, *value));
        let last = last.chain(gone.map(|index| (*index, 0)));
        Ok(last
            .filter(|(index, value)| self.given.get(index).copied().unwrap_or(0) != *value)
            .collect())
    }
}

/// Copies pages into the domain.
///
/// # Errors
/// If the batch is inconsistent, or Xen refuses.
pub(super) fn fill(domain: Domain<'_>, batch: &Batch, ours: &BTreeSet<u64>) -> Result<()> {
    if !batch.is_sound() {
        return Err(Error::Peer("a batch of pages is inconsistent".to_owned()));
    }
    let with_content = batch.words.iter().filter(|word| has_content(**word));
    let frames: Vec<u64> = with_content.map(|word| word & PFN).collect();
    let mut errors = Vec::new();
    if frames.is_empty() {
        return Ok(());
    }
    let mapping = domain.map(&frames, &mut errors, true)?;
    let mut pages = frames.iter().zip(batch.data.chunks_exact(PAGE_SIZE));
    let mut missing = Vec::new();
    for (index, error) in errors.iter().enumerate() {
        let Some((frame, page)) = pages.next() else {
            break;
        };
        if ours.contains(frame) {
            continue;
        }
        if *error == 0 {
            mapping.write(index * PAGE_SIZE, page);
        } else {
            missing.push((*frame, page));
        }
    }
    add(domain, &missing)
}

/// The guest got these frames after the domain was built.
fn add(domain: Domain<'_>, missing: &[(u64, &[u8])]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let frames: Vec<u64> = missing.iter().map(|(frame, _)| *frame).collect();
    let given = domain.populate(&frames)?;
    let mut errors = Vec::new();
    let mapping: Mapping = domain.map(&frames, &mut errors, true)?;
    if given != frames.len() || errors.iter().any(|error| *error != 0) {
        return Err(Error::Xen(format!(
            "Xen gives domain {1} only part of the {0} frames that the source has",
            frames.len(),
            domain.domid()
        )));
    }
    for (index, (_, page)) in missing.iter().enumerate() {
        mapping.write(index * PAGE_SIZE, page);
    }
    Ok(())
}

fn tsc_info(body: &[u8]) -> Result<TscInfo> {
    let fields: Option<&[u8; 24]> = body.try_into().ok();
    let fields = fields
        .ok_or_else(|| Error::Peer(format!("an X86_TSC_INFO record has {} bytes", body.len())))?;
    let word = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&fields[at..at + 4]);
        u32::from_le_bytes(bytes)
    };
    Ok(TscInfo {
        tsc_mode: word(0),
        gtsc_khz: word(4),
        elapsed_nsec: u64::from(word(8)) | u64::from(word(12)) << 32,
        incarnation: word(16),
        pad: 0,
    })
}

/// The frames of rings between the domain and this host, by its parameters.
fn our_frames(params: &BTreeMap<u32, u64>) -> BTreeSet<u64> {
    let ours = param::RINGS.iter().filter_map(|index| params.get(index));
    ours.copied().collect()
}

/// The content of an HVM_PARAMS record.  The last value of a repeated parameter counts, as for the toolstack.
fn params(body: &[u8]) -> Result<BTreeMap<u32, u64>> {
    let torn = || Error::Peer("an HVM_PARAMS record is incomplete".to_owned());
    let pairs = body.get(8..).ok_or_else(torn)?;
    if !pairs.len().is_multiple_of(16) {
        return Err(torn());
    }
    let mut params = BTreeMap::new();
    for pair in pairs.chunks_exact(16) {
        let (index, value) = pair.split_at(8);
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let index = number(index);
        let index = u32::try_from(index)
            .map_err(|_| Error::Peer(format!("unknown HVM parameter {index:#x}")))?;
        params.insert(index, number(value));
    }
    Ok(params)
}

#[cfg(test)]
mod tests {
    use unmoved_stream::libxc::{
        DomainHeader, DomainType, HvmParam, ImageHeader, RecordType, TscInfo, Writer,
    };

    use super::State;
    use crate::records::records;

    /// Nothing but what is written after this.
    fn begun() -> Writer<Vec<u8>> {
        let image = ImageHeader { version: 3 };
        let domain = DomainHeader {
            kind: DomainType::Hvm,
            xen_major: 4,
            xen_minor: 20,
        };
        let mut writer = Writer::new(Vec::new(), image, domain).unwrap();
        writer.static_data_end().unwrap();
        writer.get_mut().clear();
        writer
    }

    fn state() -> Vec<u8> {
        let mut writer = begun();
        let tsc = TscInfo {
            mode: 1,
            khz: 2_600_000,
            elapsed_ns: 0x1_2345_6789,
            incarnation: 3,
        };
        writer.tsc_info(tsc).unwrap();
        writer.hvm_context(b"abc").unwrap();
        let param = |index, value| HvmParam { index, value };
        let params = [param(1, 0xfeffc), param(17, 0xfefff), param(12, 0xfeffe)];
        writer.hvm_params(&params).unwrap();
        std::mem::take(writer.get_mut())
    }

    #[test]
    fn the_state_is_taken_from_its_records() {
        let bytes = state();
        let mut state = State::default();
        for record in records(&bytes).unwrap() {
            state.note(record).unwrap();
        }
        let tsc = state.tsc.unwrap();
        assert_eq!(
            (tsc.tsc_mode, tsc.gtsc_khz, tsc.incarnation),
            (1, 2_600_000, 3)
        );
        assert_eq!(tsc.elapsed_nsec, 0x1_2345_6789);
        assert_eq!(state.context.unwrap(), b"abc");
        // The identity page table is the domain's own.
        assert_eq!(Vec::from_iter(state.ours), [0xfeffc, 0xfefff]);
    }

    /// A state whose parameters were told once after the other.
    fn told(all: &[&[(u64, u64)]]) -> State {
        let mut writer = begun();
        for params in all {
            let param = |(index, value): &(u64, u64)| HvmParam {
                index: *index,
                value: *value,
            };
            let params: Vec<HvmParam> = params.iter().map(param).collect();
            writer.hvm_params(&params).unwrap();
        }
        let bytes = std::mem::take(writer.get_mut());
        let mut state = State::default();
        for record in records(&bytes).unwrap() {
            state.note(record).unwrap();
        }
        state
    }

    #[test]
    fn the_frames_of_rings_are_those_that_the_toolstack_got() {
        let state = told(&[&[(1, 5), (1, 6)], &[(1, 7)]]);
        assert_eq!(Vec::from_iter(state.ours.clone()), [6]);
        assert!(state.changed_params().is_err(), "the ring is where it was");
    }

    #[test]
    fn of_parameters_the_last_word_counts() {
        let state = told(&[
            &[(1, 6), (34, 8), (36, 4)],
            &[(1, 6), (34, 8), (36, 8), (9, 1)],
        ]);
        assert_eq!(state.changed_params().unwrap(), [(9, 1), (36, 8)]);
        assert_eq!(told(&[&[(1, 6)]]).changed_params().unwrap(), []);
        let gone = told(&[&[(1, 6), (9, 1)], &[(1, 6)]]);
        assert_eq!(gone.changed_params().unwrap(), [(9, 0)]);
    }

    #[test]
    fn nothing_but_state_is_noted() {
        let bytes = [RecordType::VERIFY.0.to_le_bytes(), [0; 4]].concat();
        let record = records(&bytes).unwrap()[0];
        assert!(State::default().note(record).is_err());
    }
}
