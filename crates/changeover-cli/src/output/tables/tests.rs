use std::time::{Duration, SystemTime};

use changeover::{
    Delivery, Generation, Obstacle, Position, ProjectorName, ProjectorState, ReplayProgress, RunningReplay,
    TablesStatus,
};
use insta::assert_snapshot;

use super::*;

fn name(name: &str) -> ProjectorName {
    name.parse().unwrap()
}

fn version(version: &str) -> changeover::semver::Version {
    version.parse().unwrap()
}

fn projector(
    projector: &str,
    of: &str,
    state: ProjectorState,
    tables: Option<TablesStatus>,
) -> ProjectorStatus {
    ProjectorStatus {
        projector: name(projector),
        version: version(of),
        state,
        in_activation: false,
        followed: false,
        delivery: Delivery::Background,
        changed_by: "ci".to_owned(),
        changed_at: SystemTime::UNIX_EPOCH,
        tables,
    }
}

fn tables(position: i64, lag_events: i64, lag_secs: f64) -> TablesStatus {
    TablesStatus {
        schema: "schema".to_owned(),
        position: Position::new(position),
        inline: false,
        lag_events,
        lag_secs,
        stalled: None,
    }
}

fn stalled_tables() -> TablesStatus {
    let stall = Stall {
        since: SystemTime::UNIX_EPOCH,
        error: "no such\ncurrency \u{1b}[31m".to_owned(),
        position: Some(Position::new(1_001)),
        event_type: Some("Paid".to_owned()),
    };
    TablesStatus { stalled: Some(stall), ..tables(1_000, 1_233_567, 60.0) }
}

fn an_instance(application: &str, silent_secs: f64) -> Instance {
    Instance {
        id: uuid::Uuid::from_u128(1),
        application: application.to_owned(),
        application_version: "2.3.0".to_owned(),
        configuration: [(name("orders"), version("2.0.0")), (name("totals"), version("1.0.0"))].into(),
        address: Some("http://10.0.0.7:8080".to_owned()),
        readiness: "waiting".to_owned(),
        started_at: SystemTime::UNIX_EPOCH,
        silent_secs,
        alive: silent_secs < 10.0,
    }
}

fn a_status(projectors: Vec<ProjectorStatus>) -> Status {
    Status {
        schema: "changeover".to_owned(),
        generation: Generation::new(7),
        horizon: Position::new(1_234_567),
        newest: Position::new(1_234_570),
        projectors,
        views: Vec::new(),
        activation: None,
        replays: Vec::new(),
        in_flight: Vec::new(),
        instances: Vec::new(),
    }
}

#[test]
fn status_in_the_middle_of_everything() {
    use ProjectorState::{Activating, Active, Replaying, Retired};
    let inline = TablesStatus { inline: true, ..tables(1_000, 0, 0.0) };
    let mut status = a_status(vec![
        ProjectorStatus {
            in_activation: true,
            ..projector("orders", "1.0.0", Active, Some(tables(1_234_567, 0, 0.0)))
        },
        ProjectorStatus {
            in_activation: true,
            ..projector("orders", "2.0.0", Activating, Some(tables(1_234_000, 567, 12.4)))
        },
        ProjectorStatus { delivery: Delivery::Inline, ..projector("stock", "1.10.0", Active, Some(inline)) },
        ProjectorStatus {
            followed: true,
            ..projector("stock", "2.0.0", Retired, Some(tables(1_234_560, 7, 0.1)))
        },
        projector("invoices", "1.0.0", Retired, Some(stalled_tables())),
        projector("invoices", "1.1.0", Active, Some(stalled_tables())),
        projector("later", "1.0.0", Replaying, None),
    ]);
    let replay = RunningReplay {
        id: uuid::Uuid::from_u128(2),
        projector: name("orders"),
        version: version("2.0.0"),
        purpose: "replay".to_owned(),
        phase: "bulk".to_owned(),
        position: Position::new(234_567),
        lag_events: 1_000_000,
        events: 234_000,
        events_per_sec: Some(40_000.4),
        left_secs: Some(25.0),
        indexes_built: None,
        indexes: None,
        requested_by: Some("ci@build".to_owned()),
        instance: uuid::Uuid::from_u128(3),
        application: "shop".to_owned(),
        application_version: "2.3.0".to_owned(),
        host: Some("build-7".to_owned()),
        pid: 4_711,
        age_secs: 6.0,
        silent_secs: 0.4,
        alive: true,
        aborted_by: None,
    };
    status.replays = vec![
        RunningReplay {
            phase: "indexing".to_owned(),
            events_per_sec: None,
            left_secs: None,
            indexes_built: Some(1),
            indexes: Some(3),
            aborted_by: Some("ada".to_owned()),
            ..replay.clone()
        },
        RunningReplay { host: None, alive: false, silent_secs: 72.0, ..replay.clone() },
        replay,
    ];
    status.activation = Some(OpenActivation {
        id: 12,
        requested_by: "ci@build".to_owned(),
        age_secs: 754.0,
        paused: true,
        pause_left_secs: Some(1.25),
    });
    status.instances = vec![an_instance("shop", 0.4), an_instance("shop\u{7}admin", 400.0)];
    assert_snapshot!(super::status(&status), @r"
Schema changeover, generation 7, horizon 1,234,567 (3 positions drawn beyond it)

PROJECTOR  VERSION  STATE                  DELIVERY     POSITION  LAG                        CHANGED BY
orders     1.0.0    active, switching      background  1,234,567  none                       ci
orders     2.0.0    activating, switching  background  1,234,000  567 events, 12 s           ci
stock      1.10.0   active                 inline          1,000  none: fed by appends       ci
stock      2.0.0    retired, followed      background  1,234,560  7 events, 0.1 s            ci
invoices   1.0.0    retired                background      1,000  1,233,567 events, stalled  ci
invoices   1.1.0    active                 background      1,000  1,233,567 events, stalled  ci
later      1.0.0    replaying              background                                        ci

invoices 1.1.0 is stalled at position 1001 (Paid): no such currency  [31m
  mend it and `retry invoices`, or go on without this event: `skip invoices --position 1001`

Activation 12 by ci@build has been under way for 13 min; writers are paused, for 1.2 s more at most.

UNDER WAY  PROJECTOR  VERSION  PHASE              EVENTS  EVENTS/S        LAG  LEFT  PROCESS          APPLICATION  ASKED BY  SEEN
replay     orders     2.0.0    indexing, 1 of 3  234,000            1,000,000        4711 on build-7  shop 2.3.0   ci@build  now, aborted by ada
replay     orders     2.0.0    bulk              234,000    40,000  1,000,000  25 s  4711             shop 2.3.0   ci@build  72 s ago: gone
replay     orders     2.0.0    bulk              234,000    40,000  1,000,000  25 s  4711 on build-7  shop 2.3.0   ci@build  now

No transaction has been in flight for more than 1 s.

INSTANCE                              APPLICATION  VERSION  READINESS  SEEN            ADDRESS               CONFIGURATION
00000000-0000-0000-0000-000000000001  shop         2.3.0    waiting    alive           http://10.0.0.7:8080  orders 2.0.0, totals 1.0.0
00000000-0000-0000-0000-000000000001  shop admin   2.3.0    waiting    gone for 7 min  http://10.0.0.7:8080  orders 2.0.0, totals 1.0.0
");
}

#[test]
fn an_activation_is_told_in_each_of_its_phases() {
    let check = |paused: bool, pause_left_secs: Option<f64>, expected: &str| {
        let open =
            OpenActivation { id: 3, requested_by: "ci".to_owned(), age_secs: 5.0, paused, pause_left_secs };
        assert_eq!(activation(Some(&open)), expected);
    };
    check(false, None, "Activation 3 by ci has been under way for 5.0 s.\n");
    check(
        true,
        Some(1.0),
        "Activation 3 by ci has been under way for 5.0 s; writers are paused, for 1.0 s more at most.\n",
    );
    check(
        true,
        Some(-1.0),
        "Activation 3 by ci has been under way for 5.0 s; writers are paused, and its deadline has passed: whoever looks next gives it back.\n",
    );
}

#[test]
fn a_plan_of_every_kind_of_step() {
    let (one, two) = (|| version("1.0.0"), || version("2.0.0"));
    let plan = Plan {
        steps: vec![
            Step::Keep { projector: name("kept"), version: one() },
            Step::Replay {
                projector: name("orders"),
                version: two(),
                replaces: Some(one()),
                from: Position::new(12_000),
            },
            Step::Replay { projector: name("new"), version: one(), replaces: None, from: Position::START },
            Step::Activate { projector: name("mended"), version: version("1.1.0"), replaces: one() },
            Step::Retire { projector: name("gone"), version: two() },
        ],
        obstacles: vec![Obstacle::OtherTables { projector: name("orders"), version: two(), major: 2 }],
    };
    assert_snapshot!(super::plan(&plan), @r"
ACTION    PROJECTOR  FROM   TO     WHAT HAPPENS
keep      kept       1.0.0  1.0.0  nothing
replay    orders     1.0.0  2.0.0  replayed from position 12,000, then activated
replay    new        none   1.0.0  replayed from position 0, then activated
activate  mended     1.0.0  1.1.0  takes over in place
retire    gone       2.0.0  none   is fed no more; its tables are kept

In the way:
  the tables of orders v2 were created with other definitions than those of 2.0.0: raise its major version
");
    let nothing = Plan { steps: Vec::new(), obstacles: Vec::new() };
    assert!(
        super::plan(&nothing).starts_with("Neither this configuration nor the active one has a projector.")
    );
}

#[test]
fn an_activation_without_a_pause_says_so() {
    let step =
        Step::Activate { projector: name("orders"), version: version("1.0.1"), replaces: version("1.0.0") };
    let plan = Plan { steps: vec![step], obstacles: Vec::new() };
    let mut done = Activated {
        activation: Some(3),
        plan,
        horizon: None,
        pause_ms: 0.0,
        drain_ms: 0.0,
        feed_ms: 0.0,
        views: vec![],
    };
    assert!(activated(&done).ends_with("\n\nActivation 3 switched without a pause.\n"));
    done =
        Activated { horizon: Some(Position::new(9)), pause_ms: 12.34, drain_ms: 8.0, feed_ms: 4.0, ..done };
    let text = "Activation 3 switched at position 9. Writers were paused for 12.3 ms: 8.0 ms until nothing was in flight, 4.0 ms to feed the rest.\n";
    assert!(activated(&done).ends_with(text));
}

#[test]
fn what_was_replayed() {
    let progress = ReplayProgress {
        projector: name("orders"),
        version: version("2.0.0"),
        position: Position::new(1_000_000),
        horizon: Position::new(1_000_120),
        indexing: None,
        phase: changeover::ReplayPhase::Bulk,
        events: 900_000,
        elapsed: Duration::from_secs(90),
    };
    assert_snapshot!(replayed(&[CaughtUp { progress, activated: false }]), @r"
PROJECTOR  VERSION   POSITION  LAG   EVENTS  TIME  EVENTS/S
orders     2.0.0    1,000,000  120  900,000  90 s    10,000
");
    assert_eq!(replayed(&[]), "There is nothing to replay.\n");
}

#[test]
fn numbers_are_told_as_people_say_them() {
    let check = |number: i64, expected: &str| assert_eq!(thousands(number), expected);
    check(0, "0");
    check(999, "999");
    check(1_000, "1,000");
    check(-1_234_567, "-1,234,567");
    check(i64::MIN, "-9,223,372,036,854,775,808");
    let check = |secs: f64, expected: &str| assert_eq!(seconds(secs), expected);
    check(-1.0, "0.0 s");
    check(0.04, "0.0 s");
    check(9.94, "9.9 s");
    check(9.96, "10 s");
    check(119.0, "119 s");
    check(120.0, "2 min");
    check(7_000.0, "117 min");
    check(7_200.0, "2 h");
    check(200_000.0, "2 days");
}
