//! What people give a view, and what becomes of it when the view is made anew: owner, options, grants, comments.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::store::quote::{ident, literal};

/// What people gave a relation. Kept as JSON while there is no view to have it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Properties {
    pub(crate) owner: String,
    /// As in `security_barrier=true`.
    pub(crate) options: Vec<String>,
    /// Whether the relation's rights were ever changed; if not, its owner has all of them and nobody else any.
    pub(crate) granted: bool,
    pub(crate) grants: Vec<Grant>,
    pub(crate) comments: Vec<Comment>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Grant {
    /// None is everybody.
    pub(crate) grantee: Option<String>,
    pub(crate) privilege: String,
    pub(crate) grantable: bool,
    /// None is the whole relation.
    pub(crate) column: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comment {
    /// None is the relation itself.
    pub(crate) column: Option<String>,
    pub(crate) text: String,
}

/// Who there is to give something to.
#[derive(Debug, Default)]
pub(crate) struct Roles {
    pub(crate) present: BTreeSet<String>,
    /// Who gets rights on a new relation by itself.
    pub(crate) by_default: BTreeSet<String>,
}

impl Properties {
    /// Adds what was kept of columns that this relation does not have right now. Another version may have them again.
    pub(crate) fn and_of_other_columns(mut self, kept: Option<Self>, columns: &[String]) -> Self {
        let elsewhere = |column: &Option<String>| column.as_ref().is_some_and(|c| !columns.contains(c));
        let Some(kept) = kept else { return self };
        self.grants.extend(kept.grants.into_iter().filter(|grant| elsewhere(&grant.column)));
        self.comments.extend(kept.comments.into_iter().filter(|comment| elsewhere(&comment.column)));
        self
    }

    /// Everybody whom it names.
    pub(crate) fn roles(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.owner.as_str())
            .chain(self.grants.iter().filter_map(|grant| grant.grantee.as_deref()))
    }

    /// Gives all of it to a view that was just made, and to nobody else anything. What is about a column or a role that is
    /// not there is left out.
    pub(crate) fn give(&self, view: &str, columns: &[String], roles: &Roles) -> String {
        let mut ddl = String::new();
        // Writing to a `String` cannot fail.
        if roles.present.contains(&self.owner) {
            let _ = writeln!(ddl, "ALTER VIEW {view} OWNER TO {};", ident(&self.owner));
        }
        let mut cleared: Vec<String> = roles.by_default.iter().map(|role| ident(role)).collect();
        cleared.retain(|role| *role != ident(&self.owner));
        if self.granted && roles.present.contains(&self.owner) {
            cleared.push(ident(&self.owner));
        }
        cleared.push("PUBLIC".to_owned());
        let _ = writeln!(ddl, "REVOKE ALL ON {view} FROM {};", cleared.join(", "));
        ddl + &self.give_columns(view, columns, roles, |_| true)
    }

    /// Gives what is about some columns of a view alone, of those that are there.
    pub(crate) fn give_of(&self, view: &str, columns: &[String], roles: &Roles) -> String {
        self.give_columns(view, columns, roles, Option::is_some)
    }

    fn give_columns(
        &self,
        view: &str,
        columns: &[String],
        roles: &Roles,
        which: impl Fn(&Option<String>) -> bool,
    ) -> String {
        let mut ddl = String::new();
        let there =
            |column: &Option<String>| which(column) && column.as_ref().is_none_or(|c| columns.contains(c));
        for Grant { grantee, privilege, grantable, column } in
            self.grants.iter().filter(|grant| there(&grant.column))
        {
            let grantee = match grantee {
                None => "PUBLIC".to_owned(),
                Some(role) if roles.present.contains(role) => ident(role),
                Some(_) => continue,
            };
            let of = column.as_ref().map_or_else(String::new, |column| format!(" ({})", ident(column)));
            // Nobody can give themselves a grant option, and an owner needs none.
            let option = if *grantable && grantee != ident(&self.owner) { " WITH GRANT OPTION" } else { "" };
            let _ = writeln!(ddl, "GRANT {privilege}{of} ON {view} TO {grantee}{option};");
        }
        for Comment { column, text } in self.comments.iter().filter(|comment| there(&comment.column)) {
            let on = match column {
                None => format!("VIEW {view}"),
                Some(column) => format!("COLUMN {view}.{}", ident(column)),
            };
            let _ = writeln!(ddl, "COMMENT ON {on} IS {};", literal(text));
        }
        ddl
    }

    /// The options, as `CREATE VIEW` takes them.
    pub(crate) fn with_options(&self) -> String {
        let options: Vec<String> = self
            .options
            .iter()
            .map(|option| match option.split_once('=') {
                Some((name, value)) => format!("{} = {}", ident(name), literal(value)),
                None => ident(option),
            })
            .collect();
        if options.is_empty() { String::new() } else { format!(" WITH ({})", options.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(grantee: Option<&str>, privilege: &str, grantable: bool, column: Option<&str>) -> Grant {
        let (grantee, column) = (grantee.map(str::to_owned), column.map(str::to_owned));
        Grant { grantee, privilege: privilege.to_owned(), grantable, column }
    }

    fn roles(present: &[&str], by_default: &[&str]) -> Roles {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Roles { present: set(present), by_default: set(by_default) }
    }

    fn columns(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_view_that_is_made_anew_has_what_it_had_and_nothing_else() {
        let properties = Properties {
            owner: "owner".to_owned(),
            options: vec!["security_barrier=true".to_owned(), "check_option=local".to_owned()],
            granted: true,
            grants: vec![
                grant(Some("owner"), "SELECT", true, None),
                grant(Some("reader"), "SELECT", true, None),
                grant(None, "SELECT", false, Some("id")),
                grant(Some("gone"), "SELECT", false, None),
                grant(Some("reader"), "UPDATE", false, Some("was")),
            ],
            comments: vec![
                Comment { column: None, text: "Ada's".to_owned() },
                Comment { column: Some("was".to_owned()), text: "gone".to_owned() },
            ],
        };
        let ddl = properties.give(
            "\"v\"",
            &columns(&["id"]),
            &roles(&["owner", "reader", "app"], &["app", "owner"]),
        );
        assert_eq!(
            ddl,
            "ALTER VIEW \"v\" OWNER TO \"owner\";\n\
             REVOKE ALL ON \"v\" FROM \"app\", \"owner\", PUBLIC;\n\
             GRANT SELECT ON \"v\" TO \"owner\";\n\
             GRANT SELECT ON \"v\" TO \"reader\" WITH GRANT OPTION;\n\
             GRANT SELECT (\"id\") ON \"v\" TO PUBLIC;\n\
             COMMENT ON VIEW \"v\" IS 'Ada''s';\n"
        );
        assert_eq!(
            properties.with_options(),
            " WITH (\"security_barrier\" = 'true', \"check_option\" = 'local')"
        );
        let of_a_column = properties.give_of("\"v\"", &columns(&["was"]), &roles(&["reader"], &[]));
        assert_eq!(
            of_a_column,
            "GRANT UPDATE (\"was\") ON \"v\" TO \"reader\";\nCOMMENT ON COLUMN \"v\".\"was\" IS 'gone';\n"
        );
    }

    #[test]
    fn rights_that_were_never_changed_stay_with_the_owner() {
        let untouched = Properties { owner: "owner".to_owned(), ..Properties::default() };
        let ddl = untouched.give("v", &[], &roles(&["owner", "app"], &["app", "owner"]));
        assert_eq!(ddl, "ALTER VIEW v OWNER TO \"owner\";\nREVOKE ALL ON v FROM \"app\", PUBLIC;\n");
        // Whoever owned it is gone: it stays with whoever made it.
        let ddl = untouched.give("v", &[], &roles(&[], &[]));
        assert_eq!(ddl, "REVOKE ALL ON v FROM PUBLIC;\n");
        assert_eq!(untouched.with_options(), "");
    }

    #[test]
    fn what_is_about_columns_outlives_them() {
        let now =
            Properties { grants: vec![grant(None, "SELECT", false, Some("a"))], ..Properties::default() };
        let kept = Properties {
            grants: vec![grant(None, "UPDATE", false, Some("a")), grant(None, "SELECT", false, Some("b"))],
            ..Properties::default()
        };
        let both = now.clone().and_of_other_columns(Some(kept), &columns(&["a"]));
        assert_eq!(both.grants, [now.grants[0].clone(), grant(None, "SELECT", false, Some("b"))]);
    }
}
