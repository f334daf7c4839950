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
pub(crate) struct DecodedOnce {
    /// The event types that are read, among which an event has the place of its own.
    names: Arc<[String]>,
    decoded: Vec<(TypeId, Arc<dyn Any + Send + Sync>)>,
}

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
    /// Nothing yet.
    pub(crate) fn new(names: Arc<[String]>) -> Self {
        Self { names, decoded: Vec::new() }
    }

    /// Room for the types of so many events.
    pub(super) fn types(&self, events: usize) -> Types {
        Types { names: self.names.clone(), of: Vec::with_capacity(events) }
    }

    /// The events decoded as `E`. Of one value all calls are to be about the same events.
    pub(super) fn get<E: DeserializeOwned + Send + Sync + 'static>(
        &mut self,
        copied: &[CopiedEvent<'_>],
    ) -> Arc<Decoded<E>> {
        let known = self.decoded.iter().find(|(of, _)| *of == TypeId::of::<E>());
        if let Some(decoded) = known.and_then(|(_, decoded)| decoded.clone().downcast().ok()) {
            return decoded;
        }
        let decoded = Arc::new(Decoded::<E>::of(copied, self.types(copied.len())));
        self.decoded.push((TypeId::of::<E>(), decoded.clone()));
        decoded
    }
}

impl<E: DeserializeOwned> Decoded<E> {
    fn of(copied: &[CopiedEvent<'_>], mut types: Types) -> Self {
        let mut events: Vec<Recorded<E>> = Vec::with_capacity(copied.len());
        let decoding = catch_unwind(AssertUnwindSafe(|| {
            for event in copied {
                events.push(event.recorded(codec::decode(event.event_type, event.data)?));
                types.push(event);
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
    names: Arc<[String]>,
    of: Vec<u16>,
}

impl Types {
    pub(super) fn push(&mut self, event: &CopiedEvent<'_>) {
        self.of.push(event.of_type);
    }

    pub(super) fn get(&self, event: usize) -> String {
        self.names[usize::from(self.of[event])].clone()
    }
}
