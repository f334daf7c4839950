//! The rules of the protocol, as the order of the steps and a few conditions; and every change of them that is tried.
//!
//! A program is a list of steps. Most mutants are the same list in another order, which is the point: the protocol *is*
//! its order.

use crate::activator::Step as Activate;
use crate::appender::Step as Append;
use crate::publisher::{Purpose, Step as Publish};
use crate::reader::Step as Read;
use crate::scenes::Feeding;
use crate::world::Delivery;

/// One rule broken, or one left out that is not needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    // Append and publish.
    CheckBeforeLease,
    CheckBeforePresence,
    PositionsBeforeLease,
    PositionsBeforeKeys,
    KeysNotLocked,
    LeaseDroppedBeforeCommit,
    LeaseKeptWhileWaiting,
    StatesReadBeforeGeneration,
    WokenByTheGenerationOnly,
    NoLeaseInTheHorizon,
    SnapshotBeforeHorizon,
    CheckpointNotClaimed,
    CheckpointInAnotherTransaction,
    ReplayerNotAdmitted,
    PublisherNotAdmitted,
    PublisherNotPresent,
    BatchesWithoutLimit,
    // Activate.
    GenerationSetBeforeMark,
    GenerationNotSet,
    GenerationUsedTwice,
    LookedBeforeGeneration,
    LeasesNotWaitedFor,
    PresencesNotWaitedFor,
    TailNotFed,
    TailFedWithoutToken,
    TokenCheckedBeforeTheHorizon,
    TailFedToTheLeasesOnce,
    TailFedTwiceOver,
    TailFedInPlaceBeforeTheSwitch,
    TailFedIntoSharedTables,
    StatesLockedToFeed,
    RetiredWithoutItsHorizon,
    NoToken,
    NoDeadline,
    SwitchUnconditional,
    SwitchInTwoTransactions,
    // Safe.
    LastGenerationNotSet,
    SwitchAfterTheDeadline,
    CheckpointNotClaimedButMovedConditionally,
    TailFedToTheLeases,
    TailNotClaimed,
    TailFedUnconditionally,
    FeederNotPresent,
    FeederNotAdmitted,
    KeysBeforeLease,
}

/// What the switch is conditional on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SwitchCondition {
    TokenAndDeadline,
    Token,
    AnyActivation,
    None,
}

/// The protocol, or the protocol with one change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) change: Option<Change>,
}

/// The rules by which appends, publishes and readers go.
impl Rules {
    /// The steps of an append.
    #[rustfmt::skip] // A table: only so can the lines be compared.
    pub(crate) fn append(self) -> &'static [Append] {
        use Append::{Admit, Commit, Draw, DropLease, LockKeys, ReadGeneration, ReadLastValue, ReadStates, TakeLease};
        match self.change {
            Some(Change::StatesReadBeforeGeneration) =>
                &[ReadStates, ReadGeneration, ReadLastValue, TakeLease, Admit, LockKeys, Draw, Commit],
            Some(Change::CheckBeforeLease) =>
                &[ReadGeneration, ReadStates, Admit, ReadLastValue, TakeLease, LockKeys, Draw, Commit],
            Some(Change::PositionsBeforeLease) =>
                &[ReadGeneration, ReadStates, LockKeys, Draw, ReadLastValue, TakeLease, Admit, Commit],
            Some(Change::PositionsBeforeKeys) =>
                &[ReadGeneration, ReadStates, ReadLastValue, TakeLease, Admit, Draw, LockKeys, Commit],
            Some(Change::KeysBeforeLease) =>
                &[ReadGeneration, ReadStates, LockKeys, ReadLastValue, TakeLease, Admit, Draw, Commit],
            Some(Change::LeaseDroppedBeforeCommit) =>
                &[ReadGeneration, ReadStates, ReadLastValue, TakeLease, Admit, LockKeys, Draw, DropLease, Commit],
            _ =>
                &[ReadGeneration, ReadStates, ReadLastValue, TakeLease, Admit, LockKeys, Draw, Commit],
        }
    }

    pub(crate) fn append_after(self, step: Append, delivery: Delivery) -> Append {
        match after(self.append(), step) {
            // A background version has no rows that an append could touch.
            Some(Append::LockKeys) if delivery == Delivery::Background => {
                self.append_after(Append::LockKeys, delivery)
            }
            next => next.unwrap_or(Append::Ended),
        }
    }

    pub(crate) fn lock_keys(self) -> bool {
        self.change != Some(Change::KeysNotLocked)
    }

    pub(crate) fn keep_the_lease_while_waiting(self) -> bool {
        self.change == Some(Change::LeaseKeptWhileWaiting)
    }

    /// Do those who wait look at the states again on a timer, and not only when the generation moves?
    pub(crate) fn look_again_on_a_timer(self) -> bool {
        self.change != Some(Change::WokenByTheGenerationOnly)
    }

    /// The steps by which the log is read.
    pub(crate) fn read(self) -> &'static [Read] {
        match self.change {
            Some(Change::NoLeaseInTheHorizon) => &[Read::ReadLastValue, Read::TakeSnapshot],
            Some(Change::SnapshotBeforeHorizon) => {
                &[Read::TakeSnapshot, Read::ReadLastValue, Read::LookAtLeases]
            }
            _ => &[Read::ReadLastValue, Read::LookAtLeases, Read::TakeSnapshot],
        }
    }

    pub(crate) fn read_after(self, step: Read) -> Option<Read> {
        after(self.read(), step)
    }

    /// The steps of a batch before it reads.
    pub(crate) fn publish(self, purpose: Purpose) -> &'static [Publish] {
        use Publish::{Admit, Claim, ReadGeneration, ReadStates, TakePresence};
        match (self.change, purpose) {
            (Some(Change::CheckBeforePresence), _) => {
                &[ReadGeneration, ReadStates, Admit, TakePresence, Claim]
            }
            (Some(Change::ReplayerNotAdmitted), Purpose::Replay) => &[ReadGeneration, ReadStates, Claim],
            (Some(Change::PublisherNotAdmitted), Purpose::Publish) => {
                &[ReadGeneration, ReadStates, TakePresence, Claim]
            }
            (Some(Change::PublisherNotPresent), Purpose::Publish) => {
                &[ReadGeneration, ReadStates, Admit, Claim]
            }
            _ => &[ReadGeneration, ReadStates, TakePresence, Admit, Claim],
        }
    }

    pub(crate) fn publish_after(self, step: Publish, purpose: Purpose) -> Publish {
        let read = match step {
            Publish::Read(step) => self.read_after(step),
            _ => match after(self.publish(purpose), step) {
                Some(next) => return next,
                None => Some(self.read()[0]),
            },
        };
        read.map_or(Publish::Commit, Publish::Read)
    }

    pub(crate) fn claim_the_checkpoint(self) -> bool {
        !matches!(
            self.change,
            Some(Change::CheckpointNotClaimed | Change::CheckpointNotClaimedButMovedConditionally)
        )
    }

    pub(crate) fn move_the_checkpoint_conditionally(self) -> bool {
        self.change != Some(Change::CheckpointNotClaimed)
    }

    pub(crate) fn move_the_checkpoint_with_the_rows(self) -> bool {
        self.change != Some(Change::CheckpointInAnotherTransaction)
    }

    /// Does the server end a batch that sits idle in its transaction for too long? What it does then is what it does when
    /// a process dies.
    pub(crate) fn limit_batches(self) -> bool {
        self.change != Some(Change::BatchesWithoutLimit)
    }
}

/// The rules by which an activation goes.
impl Rules {
    /// The steps of an activation.
    #[rustfmt::skip] // A table, see above.
    pub(crate) fn activate(self) -> &'static [Activate] {
        use Activate::{
            Admit, CheckToken, Claim, Feed, Look, LookAtLeases, Mark, ReadHorizon, RetireOther, SetGeneration, Switch,
            TakePresence, WaitOut, Wake,
        };
        match self.change {
            Some(Change::GenerationSetBeforeMark) =>
                &[SetGeneration, Mark, Look, WaitOut, ReadHorizon, CheckToken, TakePresence, Admit, Claim, Feed, Switch, Wake],
            Some(Change::GenerationNotSet) =>
                &[Mark, Look, WaitOut, ReadHorizon, CheckToken, TakePresence, Admit, Claim, Feed, Switch, Wake],
            Some(Change::LookedBeforeGeneration) =>
                &[Mark, Look, SetGeneration, WaitOut, ReadHorizon, CheckToken, TakePresence, Admit, Claim, Feed, Switch, Wake],
            Some(Change::TailNotFed) =>
                &[Mark, SetGeneration, Look, WaitOut, ReadHorizon, CheckToken, Switch, Wake],
            Some(Change::TailFedWithoutToken) =>
                &[Mark, SetGeneration, Look, WaitOut, ReadHorizon, TakePresence, Admit, Claim, Feed, Switch, Wake],
            Some(Change::TokenCheckedBeforeTheHorizon) =>
                &[Mark, SetGeneration, Look, WaitOut, CheckToken, ReadHorizon, TakePresence, Admit, Claim, Feed, Switch, Wake],
            Some(Change::TailFedToTheLeases | Change::TailFedToTheLeasesOnce) =>
                &[Mark, SetGeneration, Look, WaitOut, ReadHorizon, LookAtLeases, TakePresence, Admit, Claim, Feed, Switch, Wake],
            Some(Change::FeederNotPresent) =>
                &[Mark, SetGeneration, Look, WaitOut, ReadHorizon, CheckToken, Admit, Claim, Feed, Switch, Wake],
            Some(Change::FeederNotAdmitted) =>
                &[Mark, SetGeneration, Look, WaitOut, ReadHorizon, CheckToken, TakePresence, Claim, Feed, Switch, Wake],
            Some(Change::SwitchInTwoTransactions) =>
                &[Mark, SetGeneration, Look, WaitOut, ReadHorizon, CheckToken, TakePresence, Admit, Claim, Feed, RetireOther, Switch, Wake],
            Some(Change::LastGenerationNotSet) =>
                &[Mark, SetGeneration, Look, WaitOut, ReadHorizon, CheckToken, TakePresence, Admit, Claim, Feed, Switch],
            _ =>
                &[Mark, SetGeneration, Look, WaitOut, ReadHorizon, CheckToken, TakePresence, Admit, Claim, Feed, Switch, Wake],
        }
    }

    pub(crate) fn activate_after(self, step: Activate, feeding: Feeding) -> Option<Activate> {
        use Activate::{Admit, Claim, Feed, LookAtLeases, TakePresence};
        match (after(self.activate(), step), feeding) {
            // The new version takes over what the old one has fed, and an inline one has fed everything: its checkpoint
            // has not moved since it became active, so feeding from there would project it all again.
            (Some(next @ (LookAtLeases | TakePresence | Admit | Claim | Feed)), Feeding::None)
                if self.change != Some(Change::TailFedIntoSharedTables) =>
            {
                self.activate_after(next, feeding)
            }
            (Some(Feed), Feeding::InPlace) if self.feed_with_the_switch(feeding) => {
                self.activate_after(Feed, feeding)
            }
            (next, _) => next,
        }
    }

    /// Where the batch begins that feeds the tail.
    pub(crate) fn begin_the_feed(self) -> Activate {
        let begins = |step: &&Activate| matches!(step, Activate::TakePresence | Activate::Admit);
        *self.activate().iter().find(begins).expect("BUG: a program that feeds nothing fed")
    }

    /// What follows when another generation was found than the one that admits.
    pub(crate) fn after_another_generation(self) -> Activate {
        let asks = self.activate().contains(&Activate::CheckToken);
        if asks { Activate::CheckToken } else { self.begin_the_feed() }
    }

    /// What follows when there is nothing to feed.
    pub(crate) fn after_the_feed(self) -> Activate {
        after(self.activate(), Activate::Feed).expect("BUG: an activation that ends with feeding")
    }

    /// Is the tail committed with the switch? Only where it is fed into tables that the other version goes on with.
    pub(crate) fn feed_with_the_switch(self, feeding: Feeding) -> bool {
        feeding == Feeding::InPlace && self.change != Some(Change::TailFedInPlaceBeforeTheSwitch)
    }

    /// Does the transaction that feeds the tail lock the row of the states from its beginning, so that nobody can
    /// put it back meanwhile? The protocol makes sure that what it feeds is final instead.
    pub(crate) fn lock_the_states_to_feed(self) -> bool {
        self.change == Some(Change::StatesLockedToFeed)
    }

    /// Does an inline version get the horizon as its checkpoint when it retires?
    pub(crate) fn retire_at_the_horizon(self) -> bool {
        self.change != Some(Change::RetiredWithoutItsHorizon)
    }

    /// Does the activator claim the checkpoint of the version that it feeds?
    pub(crate) fn claim_to_feed(self) -> bool {
        !matches!(self.change, Some(Change::TailNotClaimed | Change::TailFedTwiceOver))
    }

    /// Does it move the checkpoint only from where it read it?
    pub(crate) fn feed_conditionally(self) -> bool {
        !matches!(self.change, Some(Change::TailFedUnconditionally | Change::TailFedTwiceOver))
    }

    pub(crate) fn compute_the_generation(self) -> bool {
        self.change == Some(Change::GenerationUsedTwice)
    }

    pub(crate) fn wait_for_leases(self) -> bool {
        self.change != Some(Change::LeasesNotWaitedFor)
    }

    pub(crate) fn wait_for_presences(self) -> bool {
        self.change != Some(Change::PresencesNotWaitedFor)
    }

    /// Is the tail looked at again until nothing is left of it? Only where it is read up to the leases.
    pub(crate) fn feed_until_nothing_is_left(self) -> bool {
        self.change == Some(Change::TailFedToTheLeases)
    }

    pub(crate) fn have_a_deadline(self) -> bool {
        self.change != Some(Change::NoDeadline)
    }

    pub(crate) fn switch_condition(self) -> SwitchCondition {
        match self.change {
            Some(Change::NoToken) => SwitchCondition::AnyActivation,
            Some(Change::SwitchUnconditional) => SwitchCondition::None,
            Some(Change::SwitchAfterTheDeadline) => SwitchCondition::Token,
            _ => SwitchCondition::TokenAndDeadline,
        }
    }

    /// Is the generation set after a switch, an abort and an expiry?
    pub(crate) fn wake(self) -> bool {
        self.change != Some(Change::LastGenerationNotSet)
    }
}

/// The step that follows in a program.
fn after<Step: Copy + PartialEq>(program: &[Step], step: Step) -> Option<Step> {
    let at = program.iter().position(|&other| other == step).expect("BUG: a step of another program");
    program.get(at + 1).copied()
}
