//! JSON for pipelines.

use std::time::{Duration, SystemTime};

use changeover::{
    Abandoned, Activated, AdoptAt, Adopted, CaughtUp, Optimized, Plan, ProjectorViews, PrunePlan, Pruned,
    RunningReplay, Status, Upgraded, Verified,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::exit::Failure;

/// One document, as it is printed.
pub(crate) fn document(value: &Value) -> String {
    format!("{value:#}\n")
}

pub(crate) fn error(failure: &Failure) -> Value {
    json!({ "error": value(failure) })
}

pub(crate) fn status(status: &Status) -> Value {
    value(status)
}

/// The plan, whether there is anything to do, and every obstacle in words as well.
pub(crate) fn plan(plan: &Plan) -> Value {
    let mut json = value(plan);
    json["done"] = plan.is_done().into();
    if let Some(obstacles) = json["obstacles"].as_array_mut() {
        for (obstacle, json) in plan.obstacles.iter().zip(obstacles) {
            json["message"] = obstacle.to_string().into();
        }
    }
    json
}

pub(crate) fn activated(activated: &Activated) -> Value {
    let mut json = value(activated);
    json["plan"] = plan(&activated.plan);
    json["views"] = views(&activated.views);
    json
}

pub(crate) fn upgraded(upgraded: &Upgraded) -> Value {
    let mut json = value(upgraded);
    json["activated"] = activated(&upgraded.activated);
    json["verified"] = upgraded.verified.iter().map(verified).collect();
    json
}

pub(crate) fn replays(replays: &[RunningReplay]) -> Value {
    value(&replays)
}

pub(crate) fn abandoned(abandoned: &Abandoned) -> Value {
    value(abandoned)
}

pub(crate) fn optimized(optimized: &[Optimized]) -> Value {
    json!({ "optimized": value(&optimized) })
}

pub(crate) fn prune_plan(plan: &PrunePlan) -> Value {
    value(plan)
}

pub(crate) fn pruned(pruned: &Pruned) -> Value {
    value(pruned)
}

pub(crate) fn adopted(adopted: &Adopted) -> Value {
    let mut json = value(adopted);
    json["position"] = match adopted.position {
        AdoptAt::Position(position) => value(&position),
        AdoptAt::Horizon => "horizon".into(),
    };
    json["activation"] = activated(&adopted.activation);
    json
}

pub(crate) fn repointed(repointed: &[ProjectorViews]) -> Value {
    json!({ "views": views(repointed) })
}

/// Every problem in words as well.
fn views(views: &[ProjectorViews]) -> Value {
    let of = |views: &ProjectorViews| {
        let mut json = value(views);
        if let Some(problems) = json["problems"].as_array_mut() {
            for (problem, json) in views.problems.iter().zip(problems) {
                json["message"] = problem.to_string().into();
            }
        }
        json
    };
    views.iter().map(of).collect()
}

pub(crate) fn replayed(replayed: &[CaughtUp]) -> Value {
    let list = replayed.iter().map(|CaughtUp { progress, activated, .. }| {
        json!({
            "projector": progress.projector,
            "version": progress.version,
            "position": progress.position,
            "horizon": progress.horizon,
            "lag_events": progress.lag_events(),
            "events": progress.events,
            "elapsed_secs": progress.elapsed.as_secs_f64(),
            "activated": activated,
        })
    });
    json!({ "replayed": list.collect::<Vec<_>>() })
}

/// What was found, and whether nothing differs.
pub(crate) fn verified(verified: &Verified) -> Value {
    let mut json = value(verified);
    json["equal"] = verified.is_equal().into();
    json
}

pub(crate) fn value(of: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(of).expect("BUG: what is printed must be JSON");
    times(&mut value);
    value
}

/// Points in time as text, in UTC: two numbers in an object are nobody's format.
fn times(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let number = |name: &str| fields.get(name).and_then(Value::as_u64);
            if let (2, Some(secs), Some(nanos)) =
                (fields.len(), number("secs_since_epoch"), number("nanos_since_epoch"))
            {
                let since = Duration::from_secs(secs) + Duration::from_nanos(nanos);
                *value = humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + since).to_string().into();
                return;
            }
            fields.values_mut().for_each(times);
        }
        Value::Array(items) => items.iter_mut().for_each(times),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time_are_text() {
        #[derive(Serialize)]
        struct Nested {
            at: Vec<Option<SystemTime>>,
            secs_since_epoch: u64,
        }
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_123);
        let json = value(&Nested { at: vec![None, Some(at)], secs_since_epoch: 7 });
        assert_eq!(json, json!({ "at": [null, "2026-01-01T00:00:00.123Z"], "secs_since_epoch": 7 }));
    }
}
