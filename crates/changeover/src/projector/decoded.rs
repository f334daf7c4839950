//! Events that are decoded once for all projectors which read the same ones as the same type.
//!
//! Decoding is what a replay spends most of its own time on, and most applications have one enum of events for several
//! projectors.

use std::any::{Any, TypeId};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::ProjectError;
use crate::codec;
use crate::copied::CopiedEvent;
use crate::words::event::Recorded;

/// What is decoded of some events, by the type that they were decoded into.
#[derive(Default)]
pub(crate) struct DecodedOnce(Vec<(TypeId, Arc<dyn Any + Send + Sync>)>);

/// Events up to the first one that does not decode.
pub(super) struct Decoded<E> {
    pub(super) events: Vec<Recorded<E>>,
    pub(super) types: Types,
    /// What is wrong with the one behind the last.
    wrong: Option<Wrong>,
}

enum Wrong {
    DoesNotFit(String),
    Panics,
}

impl DecodedOnce {
    /// The events decoded as `E`. Of one value all calls are to be about the same events.
    pub(super) fn get<E: DeserializeOwned + Send + Sync + 'static>(
        &mut self,
        copied: &[CopiedEvent<'_>],
    ) -> Arc<Decoded<E>> {
        let known = self.0.iter().find(|(of, _)| *of == TypeId::of::<E>());
        if let Some(decoded) = known.and_then(|(_, decoded)| decoded.clone().downcast().ok()) {
            return decoded;
        }
        let decoded = Arc::new(Decoded::<E>::of(copied));
        self.0.push((TypeId::of::<E>(), decoded.clone()));
        decoded
    }
}

impl<E: DeserializeOwned> Decoded<E> {
    fn of(copied: &[CopiedEvent<'_>]) -> Self {
        let mut events: Vec<Recorded<E>> = Vec::with_capacity(copied.len());
        let mut types = Types::default();
        let decoding = catch_unwind(AssertUnwindSafe(|| {
            for event in copied {
                events.push(event.recorded(codec::decode(event.event_type, event.data)?));
                types.push(event.event_type);
            }
            Ok(())
        }));
        let wrong = match decoding {
            Ok(Ok(())) => None,
            Ok(Err(reason)) => Some(Wrong::DoesNotFit(reason)),
            Err(_) => Some(Wrong::Panics),
        };
        Self { events, types, wrong }
    }

    /// What is wrong with the event behind the last one, of those that it was decoded from.
    pub(super) fn error(&self, copied: &[CopiedEvent<'_>]) -> Option<ProjectError> {
        let wrong = self.wrong.as_ref()?;
        let event = &copied[self.events.len()];
        Some(match wrong {
            Wrong::DoesNotFit(reason) => ProjectError::Undecodable {
                position: event.position,
                event_type: event.event_type.to_owned(),
                reason: reason.clone(),
            },
            Wrong::Panics => panicked(event),
        })
    }
}

/// The projector's code panicked at an event.
pub(super) fn panicked(event: &CopiedEvent<'_>) -> ProjectError {
    ProjectError::Panicked { position: event.position, event_type: event.event_type.to_owned() }
}

/// The type of each event, which is needed only where something is wrong with it.
#[derive(Default)]
pub(super) struct Types {
    names: Vec<String>,
    of: Vec<u16>,
}

impl Types {
    pub(super) fn push(&mut self, event_type: &str) {
        let known = self.names.iter().position(|name| name == event_type);
        let at = known.unwrap_or_else(|| {
            self.names.push(event_type.to_owned());
            self.names.len() - 1
        });
        self.of.push(u16::try_from(at).expect("BUG: a projector of more than 65,535 event types"));
    }

    pub(super) fn get(&self, event: usize) -> String {
        self.names[usize::from(self.of[event])].clone()
    }
}
