//! What a verification found, for people.

use std::fmt::Write;

use changeover::{Against, RowDifference, RowDiffers, TableVerdict, Values, Verified};

use super::plain;
use super::tables::{several, table, thousands};

/// What was found, and the first rows that differ. Writing to a `String` cannot fail: what `write!` returns is let go.
pub(crate) fn verified(verified: &Verified) -> String {
    let Verified { from, to, skipped_events, tables, .. } = verified;
    let at = if from == to {
        format!("at position {}", thousands(to.get()))
    } else {
        format!("at positions {} to {}", thousands(from.get()), thousands(to.get()))
    };
    let rows = several(number(verified.rows()), "row");
    let mut text = format!("{}; {rows} compared {at}.\n", plain(&verified.to_string()));
    if *skipped_events > 0 {
        let events = several(i64::try_from(*skipped_events).unwrap_or(i64::MAX), "event");
        let _ = writeln!(text, "Left out, because somebody had it skipped: {events}.");
    }
    text.push('\n');
    let columns = ["table", "rows", "expected", "missing", "extra", "different"];
    text += &table(
        &columns,
        &columns[1..],
        tables.iter().map(|of| {
            let counts = [of.rows, of.expected_rows, of.missing, of.extra, of.different];
            let counts = counts.into_iter().map(|count| thousands(number(count)));
            std::iter::once(plain(&of.table)).chain(counts).collect()
        }),
    );
    for table in tables.iter().filter(|table| table.differences() > 0) {
        differences(&mut text, table);
    }
    if !verified.is_equal() {
        let _ = write!(text, "\n{}\n", next_step(verified));
    }
    text
}

/// What to do about rows that differ.
fn next_step(verified: &Verified) -> String {
    let Verified { projector, version, against, .. } = verified;
    match against {
        Against::Log => format!(
            "Before {version} has ever been active, `replay {projector} --restart` starts over with a mended build. \
             Afterwards, raise its major version and run `upgrade`."
        ),
        Against::Version(other) => format!(
            "What is meant to differ is declared with --map and --leave-out. Which of {other} and {version} is not what the log says \
             is told by `verify {projector}` of the build that registers it."
        ),
    }
}

fn differences(text: &mut String, table: &TableVerdict) {
    let name = plain(&table.table);
    if !table.columns.is_empty() {
        let columns = table.columns.iter();
        let columns: Vec<String> = columns
            .map(|(column, rows)| format!("{} in {}", plain(column), several(number(*rows), "row")))
            .collect();
        let _ = write!(text, "\nColumns of {name} that differ: {}\n", columns.join(", "));
    }
    if table.examples.is_empty() {
        return;
    }
    let all = table.examples.len() as u64 == table.differences();
    let which = if all { "Rows".to_owned() } else { format!("The first {} rows", table.examples.len()) };
    let _ = write!(text, "\n{which} of {name} that differ:\n");
    for example in &table.examples {
        let _ = writeln!(text, "  {}", plain(&row(example)));
    }
}

/// In one line, with the first rows that differ.
pub(crate) fn in_short(verified: &Verified) -> Vec<String> {
    let rows = verified
        .tables
        .iter()
        .flat_map(|table| table.examples.iter().map(|example| format!("{}: {}", table.table, row(example))));
    std::iter::once(verified.to_string()).chain(rows).collect()
}

fn row(example: &RowDifference) -> String {
    let how = match example.difference {
        RowDiffers::Missing => "missing",
        RowDiffers::Extra => "extra",
        RowDiffers::Different => "different",
    };
    let key: Vec<String> = example.key.iter().map(|(column, value)| format!("{column} = {value}")).collect();
    let mut text = format!("{how:<9}  {}", key.join(", "));
    if let Some(values) = &example.values {
        let values = values.iter().map(|value| side_by_side(example.difference, value));
        text = format!("{text}: {}", values.collect::<Vec<_>>().join(", "));
    } else if !example.columns.is_empty() {
        text = format!("{text}: {}", example.columns.join(", "));
    }
    text
}

fn side_by_side(difference: RowDiffers, Values { column, found, expected }: &Values) -> String {
    let of = |value: &Option<String>| value.as_deref().unwrap_or("null").to_owned();
    match difference {
        RowDiffers::Missing => format!("{column} should be {}", of(expected)),
        RowDiffers::Extra => format!("{column} is {}", of(found)),
        RowDiffers::Different => format!("{column} is {}, should be {}", of(found), of(expected)),
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
