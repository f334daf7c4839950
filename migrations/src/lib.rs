//! The numbered SQL files that make up Changeover's own schema.
//!
//! Data only: the library applies them. A file is never changed once released, only followed by the next number, and
//! only adds: two releases of the library run side by side by design.

/// One numbered file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// Its number; the version of the schema once it is applied.
    pub version: i32,
    /// What it brings, as in its file name.
    pub name: &'static str,
    /// Its text, in which `{schema}` stands for the quoted name of the schema.
    pub sql: &'static str,
}

/// Every migration, in order.
///
/// ```
/// let newest = changeover_migrations::MIGRATIONS.last().unwrap();
/// assert_eq!(newest.version as usize, changeover_migrations::MIGRATIONS.len());
/// ```
pub const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "log", sql: include_str!("../sql/V1__log.sql") },
    Migration { version: 2, name: "projectors", sql: include_str!("../sql/V2__projectors.sql") },
];

#[cfg(test)]
mod tests {
    use super::MIGRATIONS;

    #[test]
    fn every_file_is_listed_once_and_in_order() {
        let mut files: Vec<String> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/sql"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort_by_key(|file| file[1..file.find("__").unwrap()].parse::<i32>().unwrap());
        let listed: Vec<String> =
            MIGRATIONS.iter().map(|m| format!("V{}__{}.sql", m.version, m.name)).collect();
        assert_eq!(files, listed);
    }
}
