//! A session that will never hand over: the guest goes on here, and the destination is told, in whichever
//! order that can be done.

use super::{SourceEffect, SourceEvent, SourceSession};
use crate::session::{Answer, Order, SourceRecord};

impl SourceSession {
    /// Decides that this session will never hand over.
    pub(super) fn abort(&mut self, reason: String) -> SourceEffect {
        self.journal(SourceRecord::Aborting { reason })
    }

    pub(super) fn aborting(&mut self, reason: String, event: SourceEvent) -> SourceEffect {
        match event {
            SourceEvent::Resumed(Ok(())) => {
                self.is_resumed = true;
                self.trouble = None;
            }
            SourceEvent::Resumed(Err(trouble)) => {
                // What is gone cannot be resumed however often we try.
                self.is_resumed = trouble.is_gone;
                self.trouble = Some(trouble.reason);
            }
            SourceEvent::Answered(Answer::NotYet(why)) => return self.wait(why),
            // Any other answer: there is no copy there that could be run with this session's token.
            SourceEvent::Answered(answer) => {
                self.is_told = true;
                self.explanation = explanation(&reason, answer);
            }
            SourceEvent::NotAnswered(why) => {
                return self.wait(format!(
                    "aborted ({reason}); the destination cannot be told: {why}"
                ));
            }
            _ => {}
        }
        if !self.is_told {
            return self.call(Order::Failed(reason));
        }
        if !self.is_resumed {
            let trouble = self.trouble.clone().unwrap_or_default();
            return self.wait(format!("the guest cannot be resumed: {trouble}"));
        }
        let reason = match &self.trouble {
            Some(trouble) => format!("{reason}; and the guest is gone: {trouble}"),
            None => reason,
        } + &self.explanation;
        self.journal(SourceRecord::Aborted { reason })
    }

    /// Again, whatever of it is not done yet; the guest comes first.
    pub(super) fn abort_further(&mut self, reason: String) -> SourceEffect {
        if self.is_resumed {
            return self.call(Order::Failed(reason));
        }
        self.act(SourceEffect::Resume)
    }
}

/// What the destination adds to the reason that it was told.
fn explanation(reason: &str, answer: Answer) -> String {
    let Answer::Discarded(why) = answer else {
        return String::new();
    };
    why.split_once(reason)
        .map_or_else(String::new, |(_, more)| more.to_owned())
}

pub(super) fn no_answer(why: &str) -> String {
    format!("the destination does not answer: {why}")
}

pub(super) fn refusal(answer: Answer) -> String {
    match answer {
        Answer::Discarded(why) | Answer::Lost(why) | Answer::Refused(why) => {
            format!("the destination: {why}")
        }
        Answer::NotYet(why) => format!("the destination is not ready: {why}"),
        Answer::Unknown => "the destination knows nothing of this session".to_owned(),
        Answer::Complete | Answer::Continue => "the destination's answer makes no sense".to_owned(),
    }
}
